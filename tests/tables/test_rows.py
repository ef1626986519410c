"""Reading a table: what is refused, and what a file that stands in for another changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from llamafleet import tables
from llamafleet.tables.distributions import distributions, repository_keys, toolkit_packages
from llamafleet.tables.failures import failures
from llamafleet.tables.gpus import generations, gpus, xids
from llamafleet.tables.rows import TableError
from llamafleet.tables.toolkits import runfiles, toolkits

Plant = Callable[[str, str, str], None]

READ: dict[str, Callable[[], object]] = {
    "toolkits.yaml": toolkits,
    "runfiles.yaml": runfiles,
    "distributions.yaml": distributions,
    "gpus.yaml": gpus,
    "xid-actions.yaml": xids,
    "generations.yaml": generations,
    "failures.yaml": failures,
}


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """Reads a table with its first `old` replaced by `new`, until the test ends."""
    with ExitStack() as until:

        def planted(name: str, old: str, new: str) -> None:
            text = tables.text(name)
            assert old in text
            (tmp_path / name).write_text(text.replace(old, new, 1), encoding="utf-8")
            until.enter_context(tables.overlaid(tmp_path))

        yield planted


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("toolkits.yaml", "    gcc: 11\n", "    gcc: '11'\n", "valid integer; found '11'"),
        ("toolkits.yaml", "    gcc: 11\n", "", "gcc: Field required; found {'version': '11.8'"),
        ("toolkits.yaml", "    gcc: 11\n", "    gcc: 11\n    icc: 1\n", "icc: Extra inputs"),
        ("toolkits.yaml", "    glibc_source: *glibc\n", "", "glibc_source: Field required"),
        ("toolkits.yaml", 'version: "11.8"', "version: 11.8", "version: Input should be a valid s"),
        ("toolkits.yaml", "machine: aarch64", "machine: sbsa", "machine: Input should be 'x86_64'"),
        ("toolkits.yaml", "sm: [35, ", "sm: [3.5, ", "sm.0: Input should be a valid integer"),
        ("toolkits.yaml", "UNVERIFIED: the", "recalled: the", "source: String should match"),
        ("toolkits.yaml", "measured: ptxas", "measured ptxas", "sm_source: String should match"),
        ("runfiles.yaml", "    machine: x86_64\n", "    mib: 1\n", "mib: Extra inputs"),
        ("runfiles.yaml", "9223c4af", "9223C4AF", "sha256: String should match"),
        ("distributions.yaml", "    own: null\n", "", "own: Field required"),
        ("distributions.yaml", "manager: apt", "manager: apk", "manager: Input should be 'apt' or"),
        ("distributions.yaml", "{major: 9, ", "{major: 9, path: x, ", "path: Extra inputs"),
        ("distributions.yaml", "aarch64: sbsa", "aarch64: arm", "machines.aarch64: Input should"),
        ("distributions.yaml", "fingerprint: EB69", "fingerprint: eb69", "fingerprint: String sh"),
        ("distributions.yaml", 'own: {cuda: "12.0", ', "own: {", "own.cuda: Field required"),
        ("distributions.yaml", 'name: "cuda-nvcc-{v}"', "name: x, arch: y", "arch: Extra inputs"),
        ("gpus.yaml", 'pci: ["1e89"]', 'pci: ["1E89"]', "pci.0: String should match"),
        ("gpus.yaml", "source: *ids}", "vram_gib: 6}", "source: Field required"),
        ("xid-actions.yaml", "  action: watch\n", "", "action: Field required"),
        ("generations.yaml", "open: must", "open: maybe", "open: Input should be 'never'"),
        ("failures.yaml", "stage: compile", "stage: Compile", "stage: Input should be 'detection'"),
        ("failures.yaml", r"\[Errno 28\]", "[Errno 28", "no regular expression: unterminated"),
        ("failures.yaml", "  source: '", "  source: ''\n  was: '", "source: String should have at"),
    ],
)
def test_a_malformed_row_is_named(plant: Plant, name: str, old: str, new: str, said: str) -> None:
    plant(name, old, new)
    with pytest.raises(TableError) as refused:
        READ[name]()
    lines = str(refused.value).splitlines()
    assert any(said in line for line in lines), lines
    assert all(line.startswith(f"tables/{name}: ") for line in lines)
    assert all("; found " in line and "; next: " in line for line in lines)


def test_all_errors_of_a_table_are_said_at_once(plant: Plant) -> None:
    plant("toolkits.yaml", "    gcc: 11\n    clang: 14\n", '    gcc: "11"\n')
    with pytest.raises(TableError) as refused:
        toolkits()
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gpus:\n", "gpus: [\n", "tables/gpus.yaml: "),
        ("source: *ids}", "source: *id}", "undefined alias"),
        ("source: *ids}", "source: 2026-08-22}", "date"),
        ("gpus:\n", "cards:\n", "gpus: Field required"),
    ],
)
def test_a_file_that_is_no_table(plant: Plant, old: str, new: str, said: str) -> None:
    plant("gpus.yaml", old, new)
    with pytest.raises(TableError, match=r"tables/gpus\.yaml: ") as refused:
        gpus()
    assert said in str(refused.value) and "; next: correct" in str(refused.value)


def test_a_row_is_not_changed_by_its_readers() -> None:
    row = toolkits()[0]
    with pytest.raises(ValueError, match="frozen"):
        row.gcc = 99  # type: ignore[misc]


def test_a_file_stands_in_for_one_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "xid-actions.yaml").write_text(
        "xids: [{codes: [1], action: reset, source: UNVERIFIED}]"
    )
    real, others = xids(), (toolkits(), repository_keys(), toolkit_packages("apt", "12.8"))
    with tables.overlaid(tmp_path):
        assert [row.codes for row in xids()] == [{1}]
        assert (toolkits(), repository_keys(), toolkit_packages("apt", "12.8")) == others
    assert xids() == real and len(real) > 1


def test_what_stood_before_stands_again_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "xid-actions.yaml").write_text("{}")
    with pytest.raises(TableError), tables.overlaid(tmp_path):
        xids()
    assert len(xids()) > 1


def test_an_inner_stand_in_wins(tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "note.txt").write_text(name)
    with tables.overlaid(tmp_path / "outer"):
        with tables.overlaid(tmp_path / "inner"):
            assert tables.text("note.txt") == "inner"
        assert tables.text("note.txt") == "outer"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"toolkit-wheels-12\.8\.txt"):
        tables.text("toolkit-wheels-12.8.txt")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("580.65.06", (580, 65, 6)),
        ("13.0", (13, 0)),
        ("3.14.0rc1", (3, 14, 0)),
        ("N/A", ()),
        ("", ()),
    ],
)
def test_parse_version(text: str, version: tuple[int, ...]) -> None:
    assert tables.parse_version(text) == version
