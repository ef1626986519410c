"""The order of units: a build.ninja of CMake 4.4.5, the wrapper around ninja, and ninja's log."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from llamafleet.onhost import ninja
from llamafleet.onhost.ninja import Costs, Unordered, learned, ordered, packing, statements, unit
from llamafleet.tables import unit_costs

DATA = Path(__file__).parent / "data" / "ninja"
REAL = (DATA / "build.ninja").read_text(encoding="utf-8")
"""Of a project with two shared libraries in a row, a static one, a source that a command makes and
a library that is not part of `all`; one path holds a blank."""

COSTS = Costs(
    {"kernels.dir/kernels/long.c": 60.0, "common.dir/arguments.c": 30.0, "base.dir/base.c": 0.1},
    [(r"kernels\.dir/.*", 10.0), (r".*\.c", 1.0)],
)
LONGEST_FIRST = [
    "CMakeFiles/kernels.dir/kernels/long.c.o",
    "CMakeFiles/common.dir/arguments.c.o",
    "CMakeFiles/kernels.dir/kernels/short_one.c.o",
    "CMakeFiles/kernels.dir/kernels/unknown.c.o",
    "CMakeFiles/http.dir/http.c.o",
    "CMakeFiles/common.dir/common.c.o",
    "CMakeFiles/common.dir/made.c.o",
    "CMakeFiles/base.dir/base.c.o",
]


def test_the_longest_come_first_and_what_all_does_not_need_is_not_asked_for() -> None:
    text, objects = ordered(REAL, COSTS.of)
    assert objects == LONGEST_FIRST
    places = [text.index(f"\nbuild {name}: ") for name in objects]
    assert places == sorted(places)


def test_statements_change_places_and_nothing_else_changes() -> None:
    text, _ = ordered(REAL, COSTS.of)
    before, after = REAL.split("\n"), text.split("\n")
    assert before != after and sorted(before) == sorted(after)

    def told(lines: list[str]) -> list[str]:
        return sorted("\n".join(lines[one.first : one.last]) for one in statements(lines))

    assert told(before) == told(after)
    # Where all cost the same CMake's own order stays.
    assert ordered(REAL, lambda unit: 1.0)[0] == REAL


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("\n  DEP_FILE = CM", "\n  DEP_FILE = $\n CM", "goes on in the next"),
        ("\nbuild libkernels.so: ", "\nFLAGS = -O3\nbuild libkernels.so: ", "a variable is set"),
        ("\nbuild libhttp.a: ", "\nbuild libhttp.a ", "is no build statement"),
        ("\nbuild libhttp.a: ", "\nbuild : ", "makes nothing"),
        ("\ndefault all", "\n", "found no unit"),
        ("_COMPILER__", "_OTHER__", "found no unit"),
    ],
)
def test_what_is_not_understood_is_left_alone(old: str, new: str, why: str) -> None:
    assert old in REAL
    with pytest.raises(Unordered, match=why):
        ordered(REAL.replace(old, new), COSTS.of)


def test_the_table_names_what_takes_longest() -> None:
    table = ninja.costs_from(unit_costs.rows())
    assert table.of("ggml-cuda.dir/mmvq.cu") > table.of("ggml-cuda.dir/scale.cu") > 0
    instance = "ggml-cuda.dir/template-instances/mmq-instance-of-tomorrow.cu"
    assert instance not in table.units
    assert table.of(instance) >= max(
        seconds for name, seconds in table.units.items() if "/mmq-instance-" in name
    )
    assert table.of("other.dir/new.cpp") > 0 == table.of("other.dir/new.f90")


def test_a_unit_that_the_table_lacks_costs_what_it_took_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = "# ninja log v7\n0\t9000\t1\ta/CMakeFiles/new.dir/new.c.o\tff\n"
    log += "0\t9000\t1\tCMakeFiles/base.dir/base.c.o\tff\n"
    monkeypatch.setattr(ninja, "shipped", lambda: COSTS)
    known = learned(log)
    assert (known.of("new.dir/new.c"), known.of("base.dir/base.c")) == (9.0, 0.1)


# ---- the wrapper

FAKE = r"""#!/bin/sh
# Tells what it is asked, as the real one is: by its arguments and the folder.
[ "$1" = --version ] && echo 1.13.2 && exit 0
printf '%s\n' "$*" >> {said}
case " $* " in *" -n "*) exit {rehearsal} ;; *" -f "*) exit {units} ;; esac
"""


class Wrapped:
    """A wrapper around a ninja that writes down what it is asked."""

    def __init__(self, folder: Path, rehearsal: int = 0, units: int = 0) -> None:
        self.tree = folder / "the tree"
        self.tree.mkdir()
        (self.tree / "build.ninja").write_text(REAL)
        self.said = folder / "said"
        own = folder / "own"
        own.write_text(FAKE.format(said=self.said, rehearsal=rehearsal, units=units))
        own.chmod(0o755)
        self.program = ninja.wrap(folder / "order", own, self.tree, COSTS)

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments],
            cwd=cwd or self.tree,
            capture_output=True,
            text=True,
            check=False,
        )

    def asked(self) -> list[str]:
        return self.said.read_text().splitlines()


def test_first_the_units_then_what_cmake_asked_for(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path)
    done = wrapped.run("-v", "-j", "2")
    assert done.returncode == 0
    assert done.stdout == "build order: longest first, 8 units, 3 of them by name\n"
    units = f"-f {ninja.SORTED} -v -j 2 {' '.join(LONGEST_FIRST)}"
    assert wrapped.asked()[1:] == [units, "-v -j 2"]
    assert (wrapped.tree / "build.ninja").read_text() == REAL


@pytest.mark.parametrize(
    "arguments", [("-t", "restat", "build.ninja"), ("-v", "install"), ("-n",), ("--version",)]
)
def test_any_other_question_goes_to_ninja_itself(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    wrapped = Wrapped(tmp_path)
    assert wrapped.run(*arguments).stderr == ""
    assert arguments == ("--version",) or wrapped.asked() == [" ".join(arguments)]


def test_another_folder_is_none_of_its_business(tmp_path: Path) -> None:
    """CMake tries its compilers in many small trees."""
    wrapped = Wrapped(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    (small / "build.ninja").write_text(REAL)
    assert (wrapped.run(cwd=small).stdout, wrapped.asked()) == ("", [""])


def test_it_is_never_the_reason_that_a_build_fails(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path)
    (wrapped.tree / "build.ninja").write_text("ninja_required_version = 1.5\n")
    assert wrapped.run("-v").stdout == (
        "build order: as CMake wrote it: found no unit in build.ninja\n"
    )
    (wrapped.tree / "build.ninja").write_bytes(b"\xff")
    assert "as CMake wrote it: 'utf-8' codec can't decode" in wrapped.run("-v").stdout
    (tmp_path / "order" / "costs.json").write_text("{}")
    assert "as CMake wrote it: " in wrapped.run("-v").stdout
    (tmp_path / "order" / "order.py").unlink()
    assert "the program for it ended with status 2" in wrapped.run("-v").stdout
    assert wrapped.asked() == ["-v"] * 4


def test_a_file_that_ninja_does_not_read_is_not_built_from(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, rehearsal=1)
    done = wrapped.run("-v")
    assert done.stdout == "build order: as CMake wrote it: ninja ended with status 1\n"
    assert done.returncode == 0 and wrapped.asked()[-1] == "-v" and len(wrapped.asked()) == 2


def test_a_unit_that_does_not_compile_ends_the_build_once(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, units=1)
    assert wrapped.run("-v").returncode == 1
    assert [line.split()[0] for line in wrapped.asked()] == ["-f", "-f"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_where_nothing_may_be_executed_there_is_no_wrapper(tmp_path: Path) -> None:
    """A mount with noexec: CMake would say that it finds no build program."""
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\necho 1.13.2\n")
    own.chmod(0o755)
    root = Path(ninja.__file__).parents[2]
    script = f"""
import sys
sys.path.insert(0, {str(root)!r})
from pathlib import Path
from llamafleet.onhost import ninja
folder = Path({str(tmp_path)!r})
try:
    ninja.wrap(folder / "mnt/order", folder / "own", folder, ninja.shipped())
except ninja.Unordered as reason:
    print(reason)
"""
    (tmp_path / "mnt").mkdir()
    mount = 'mount -t tmpfs -o noexec none "$1/mnt" && exec "$2" -c "$3"'
    argv = ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "mnt/order/ninja told version none, and " in done.stdout, done.stderr


# ---- its log


def log_of(*steps: tuple[int, int, str]) -> str:
    lines = [f"{start}\t{end}\t1\t{name}\t{n:x}\n" for n, (start, end, name) in enumerate(steps)]
    return "# ninja log v7\n" + "".join(lines)


def test_link_time_counts_only_what_nothing_ran_beside() -> None:
    log = log_of(
        (0, 1000, "a.c.o"),
        (500, 1500, "libx.a"),  # half of it beside a.c.o
        (2000, 3000, "bin/liby.so"),
        (2500, 3500, "bin/libz.so.0"),  # half of it beside liby.so
        (4000, 5000, "generated.cpp"),
    )
    assert ninja.link_seconds(log, 2) == pytest.approx(0.5 + 1.5)
    assert ninja.link_seconds("# ninja log v7\n", 2) == 0


def test_each_run_of_ninja_begins_where_the_one_before_ended() -> None:
    """Its times begin at 0 again, so what was linked last would seem to run beside the units."""
    log = log_of((0, 4000, "a.c.o"), (0, 5000, "b.c.o"), (3, 1003, "libx.so"))
    assert ninja.link_seconds(log, 2) == pytest.approx(1.0)
    assert packing(log, 2) == pytest.approx((4 + 5 + 1) / (2 * 6.003))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_second_run_is_told_from_the_first_by_how_much_would_run_at_once(jobs: int) -> None:
    """Its first step may end later than all of the first run took."""
    units = [(0, 900, f"{n}.c.o") for n in range(jobs)]
    log = log_of(*units, (2, 1202, "libx.so"))
    assert packing(log, jobs) == pytest.approx((0.9 * jobs + 1.2) / (jobs * 2.102))
    assert ninja.link_seconds(log, jobs) == pytest.approx(1.2)


def test_all_steps_of_a_run_are_one_run_however_long_some_take() -> None:
    """A build of llama.cpp with two jobs, the longest first: the units, then the libraries."""
    log = (DATA / "two-jobs.ninja_log").read_text(encoding="utf-8")
    told = {one.output: one.start for one in ninja.logged(log)}
    begun = sorted({one.start - told[one.output] for one in ninja.steps(log, 2)})
    assert len(begun) == 2 and begun[0] == 0
    assert 0.95 < (packing(log, 2) or 0) <= 1


@pytest.mark.parametrize("jobs", [1, 2, 16])
def test_whatever_the_steps_take_a_second_run_is_one(jobs: int) -> None:
    chance = random.Random(jobs)
    for _ in range(50):
        first, second = (made_at_once(jobs, chance) for _ in range(2))
        end = max(end for _, end, _ in first)
        log = log_of(*first, *second)
        begun = {
            one.start - was
            for one, (was, _, _) in zip(ninja.steps(log, jobs), (*first, *second), strict=True)
        }
        assert 0 in begun and len(begun) <= 2 and begun <= {0, end}
        assert (packing(log, jobs) or 0) <= 1


def made_at_once(jobs: int, chance: random.Random) -> list[tuple[int, int, str]]:
    """Steps as ninja makes them with so many jobs: the next one begins as soon as one ends."""
    free, steps = [0] * jobs, []
    for number in range(60):
        start = free.pop(free.index(min(free)))
        free.append(start + chance.choice((1, 3, 10, 400)))
        steps.append((start, free[-1], f"{number}.c.o"))
    return sorted(steps, key=lambda step: step[1])


def test_a_step_that_begins_as_another_ends_is_of_the_same_run() -> None:
    log = log_of((0, 900, "a.c.o"), (900, 1000, "b.c.o"), (1000, 1300, "libx.so"))
    assert packing(log, 1) == 1


def test_a_step_of_two_outputs_is_one() -> None:
    """What ninja 1.13.2 wrote with one job."""
    log = (
        "# ninja log v7\n"
        "0\t1003\t1795752725447561575\tx\t346a9006df0cbfc1\n"
        "0\t1003\t1795752725447561575\ty\t346a9006df0cbfc1\n"
        "1004\t1507\t1795752726454621366\tz\tc1750f1437aa3825\n"
    )
    assert packing(log, 1) == pytest.approx((1003 + 503) / 1507)


def test_nothing_made_is_packed_in_no_way() -> None:
    assert packing("", 2) is None and packing(log_of((5, 5, "a.c.o")), 2) is None


def test_a_unit_is_named_by_its_target() -> None:
    path = "vendor/llama.cpp/ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir/mmvq.cu.o"
    assert unit(path) == "ggml-cuda.dir/mmvq.cu"
