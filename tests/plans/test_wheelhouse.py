"""A host that uses no registry: what it takes from the wheelhouse, and every way to misfit it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Job, Tool
from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.plan import Problem
from llamafleet.plans.supplies import NO_SUPPLIES
from llamafleet.settings import Settings
from llamafleet.wheelhouse.manifest import MANIFEST, build_command
from tests.plans.driver.test_verdict import UPDATED, failing
from tests.plans.hosts import (
    CPU_HOST,
    GPU_HOST,
    HOUSE,
    LAYOUT,
    build_of,
    chosen,
    driver,
    installed,
    only_problem,
    plan,
    refused,
    there,
    toolkit,
    with_builds,
    with_house,
)

NEW = replace(GPU_HOST, driver=driver("590"))
"""Its driver runs CUDA 13.1."""
CPU: dict[str, Any] = {"accelerator": "cpu"}
PY311 = Tool("/usr/bin/python3.11", "3.11.2")
PY313 = Tool("/usr/bin/python3.13", "3.13.1")


def build(*options: str) -> str:
    return " ".join(["llamafleet wheelhouse build /srv/w", *options])


# The choice of a toolkit


def test_the_newest_toolkit_that_is_in_it() -> None:
    made = chosen(NEW, house=with_house(toolkits=("12.9", "13.0", "13.3")))
    assert (made.version, made.method, made.install) == ("13.0", "wheels", True)
    assert dict(made.ruled_out)["13.1"].startswith(
        "wheels: CUDA 13.1 is not in the wheelhouse (it has 12.9, 13.0, 13.3); "
        "apt: wheelhouse: no network is used"
    )


@pytest.mark.parametrize(
    ("toolkits", "has", "asked", "command"),
    [
        ((), "it has no toolkit", {}, ("--toolkit 13.1",)),
        (("13.3",), "it has 13.3", {}, ("--toolkit 13.3", "--toolkit 13.1")),
        (
            ("13.0",),
            "it has 13.0",
            {"toolkit_version": "13.1"},
            ("--toolkit 13.0", "--toolkit 13.1"),
        ),
    ],
)
def test_none_in_it_fits(
    toolkits: tuple[str, ...], has: str, asked: dict[str, Any], command: tuple[str, ...]
) -> None:
    problem = refused(NEW, house=with_house(toolkits=toolkits), **asked)
    assert problem.check == "toolkit" and problem.found == "no CUDA Toolkit on the host"
    assert f"wheels: CUDA 13.1 is not in the wheelhouse ({has}); " in problem.expected
    common = ("--python 3.11", "--python 3.12", "--arch x86_64", "--arch aarch64")
    assert problem.next == build(*common, *command)


def test_no_toolkit_is_asked_to_be_added_that_wheels_may_not_bring() -> None:
    old = replace(GPU_HOST, driver=driver("570"))
    for host, settings in ((NEW, {"toolkit_method": "runfile"}), (old, {})):
        problem = refused(host, house=with_house(toolkits=()), **settings)
        assert "llamafleet wheelhouse build" not in problem.next


@pytest.mark.parametrize(
    "host",
    [
        replace(NEW, toolkits=(toolkit("13.1"),)),
        replace(
            NEW, toolkits=(toolkit("13.1", LAYOUT.toolkit("13.1")),), jobs=(installed("13.1"),)
        ),
    ],
    ids=["of the administrator", "installed earlier"],
)
def test_one_that_is_there_need_not_be_in_it(host: HostSnapshot) -> None:
    made = chosen(host, house=with_house(toolkits=()))
    assert (made.version, made.install) == ("13.1", False)


def test_one_that_its_job_left_unfinished_must_be_in_it() -> None:
    there = toolkit("13.1", LAYOUT.toolkit("13.1"))
    half = replace(NEW, toolkits=(there,), jobs=(installed("13.1", ok=False),))
    assert chosen(half, house=with_house(toolkits=("13.0",))).version == "13.0"


def test_one_that_is_being_installed_is_waited_for_and_its_wheelhouse_left_alone() -> None:
    house = with_house(toolkits=("13.0",))
    host = replace(NEW, jobs=(Job("toolkit", "13.1", alive=True),))
    made = plan(host, house=house)
    assert made.toolkit and (made.toolkit.version, made.toolkit.install) == ("13.1", True)
    assert made.build and made.build.action == "build" and made.wheelhouse
    build = Job("build", made.build.fingerprint, alive=True)
    running = plan(replace(host, jobs=(*host.jobs, build)), house=house)
    assert running.build and running.build.action == "attach"
    assert running.toolkit and running.toolkit.job and not running.toolkit.job.start
    assert running.wheelhouse is None


def test_a_mirror_has_what_the_wheelhouse_lacks() -> None:
    jammy = replace(
        NEW, os_id="ubuntu", os_version="22.04", toolkits=(), glibc="2.35", package_manager="apt"
    )
    made = chosen(jammy, house=with_house(toolkits=("13.0",)), toolkit_url="http://mirror.lab")
    assert (made.version, made.method) == ("13.1", "apt")


# The choice of a Python


def test_an_older_python_that_it_is_for_comes_first() -> None:
    host = replace(CPU_HOST, pythons=(PY311, PY313))
    assert build_of(host, **CPU).python == PY313.path
    assert build_of(host, house=HOUSE, **CPU).python == PY311.path


def test_no_python_that_it_is_for() -> None:
    host = replace(CPU_HOST, pythons=(PY313,))
    problem = only_problem(plan(host, house=HOUSE, **CPU))
    assert problem.check == "wheelhouse"
    assert problem.found == "Python 3.13 on the host, and the wheelhouse is for 3.11, 3.12"
    assert "--python 3.11 --python 3.12 --python 3.13 " in problem.next


def test_the_python_of_the_settings_must_be_one_that_it_is_for() -> None:
    host = replace(CPU_HOST, pythons=(PY311, PY313))
    problem = only_problem(plan(host, house=HOUSE, python=PY313.path, **CPU))
    assert problem.found.startswith("Python 3.13 on the host")


# Other misfits


def test_a_machine_that_it_is_not_for() -> None:
    problem = only_problem(plan(CPU_HOST, house=with_house(arches=("aarch64",)), **CPU))
    assert problem.found == "machine x86_64, and the wheelhouse is for aarch64"
    assert "--arch aarch64 --arch x86_64" in problem.next


@pytest.mark.parametrize(
    ("version", "fits"), [("3.24", True), ("4.1.0", True), ("3.22.1", False), (None, False)]
)
def test_cmake_of_the_host_or_of_the_wheelhouse(version: str | None, fits: bool) -> None:
    host = replace(CPU_HOST, cmake=Tool("/usr/bin/cmake", version) if version else None)
    assert not plan(host, house=HOUSE, **CPU).problems
    made = plan(host, house=with_house(files={}), **CPU)
    if fits:
        assert not made.problems
        return
    problem = only_problem(made)
    assert problem.found == f"CMake {version or 'none'} on the host, and none in the wheelhouse"
    assert problem.expected == "CMake 3.24 or newer in one of them"
    assert problem.next == build(
        "--python 3.11 --python 3.12 --arch x86_64 --arch aarch64"
    ) + "".join(f" --toolkit {version}" for version in HOUSE.manifest.toolkits)


def found(problems: tuple[Problem, ...]) -> list[str]:
    return [problem.found.split(" on ")[0].split(",")[0] for problem in problems]


POOR = with_house(pythons=("3.12",), arches=("aarch64",), toolkits=(), files={})


BARE = replace(NEW, compilers=())
NOBODY_KNOWS = {
    "before a reboot": failing(**UPDATED),
    "before a compiler is there": BARE,
}


@pytest.mark.parametrize(
    "host",
    [NEW, replace(BARE, os_id="debian", os_version="12"), *NOBODY_KNOWS.values()],
    ids=["ready", "before a compiler of the table is there", *NOBODY_KNOWS],
)
def test_all_misfits_are_told_before_anything_is_done(host: HostSnapshot) -> None:
    made = plan(host, house=POOR, reboot="allow")
    wanted = ["no CUDA Toolkit", "Python 3.11", "machine x86_64", "CMake none"]
    assert found(made.problems) == wanted
    assert made.toolkit is None and made.packages.names == () and made.reboot is None
    assert all("llamafleet wheelhouse build /srv/w " in problem.next for problem in made.problems)


@pytest.mark.parametrize("host", NOBODY_KNOWS.values(), ids=NOBODY_KNOWS)
def test_a_toolkit_that_may_do_is_not_refused_before_that_is_known(host: HostSnapshot) -> None:
    for house, changed in (
        (with_house(toolkits=("13.0",)), host),
        (with_house(toolkits=()), replace(host, toolkits=(toolkit("12.8"),))),
    ):
        made = plan(changed, house=house, reboot="allow")
        assert not made.problems and (made.reboot or made.packages.names)


def test_a_host_that_takes_nothing_from_it_need_not_fit_it() -> None:
    build = build_of(CPU_HOST, **CPU)
    done = with_builds(CPU_HOST, there(build))
    made = plan(done, house=POOR, **CPU)
    assert not made.problems and made.wheelhouse is None
    # The next build does, and one that waits for its compiler.
    assert plan(done, house=POOR, cmake_options={"LLAVA_BUILD": "ON"}, **CPU).problems
    assert plan(replace(done, compilers=()), house=POOR, **CPU).problems


# What is brought


def test_it_is_brought_unless_the_host_has_this_very_one() -> None:
    made = plan(CPU_HOST, house=HOUSE, **CPU).wheelhouse
    assert made and made.bring
    assert (made.source, made.target) == ("/srv/w", "/opt/llamafleet/wheelhouse")
    assert made.files == (*HOUSE.manifest.files, MANIFEST)
    there = plan(replace(CPU_HOST, wheelhouse=HOUSE.sha256), house=HOUSE, **CPU)
    assert there.wheelhouse and not there.wheelhouse.bring
    assert "wheelhouse: use /srv/w (the host has this one)" in explain(there)
    other = replace(CPU_HOST, wheelhouse="0" * 64)
    assert "wheelhouse: bring /srv/w (" in "\n".join(explain(plan(other, house=HOUSE, **CPU)))
    assert plan(CPU_HOST, **CPU).wheelhouse is None


def test_it_is_not_replaced_under_a_job_that_takes_from_it() -> None:
    busy = replace(NEW, wheelhouse="0" * 64, jobs=(Job("toolkit", "13.1", alive=True),))
    house = with_house(toolkits=("13.0",))
    found = plan(busy, house=house).problems
    assert [problem.check for problem in found] == ["wheelhouse"]
    assert "toolkit 13.1, which runs" in found[0].found
    assert not plan(replace(busy, wheelhouse=house.sha256), house=house).problems
    ended = replace(busy, jobs=(Job("toolkit", "13.1", alive=False),))
    assert not plan(ended, house=house).problems


def test_jobs_take_from_it_alone() -> None:
    made = plan(GPU_HOST, house=HOUSE)
    assert made.build and made.toolkit
    for config in (made.build.config, made.toolkit.config):
        assert getattr(config, "find_links", None) == "/opt/llamafleet/wheelhouse"
    assert made.build.config.llama_requirement.endswith("d" * 64), "its archive may be cut"
    assert made.build.config.requirements == "", "none of the pinned files is in it"
    online = plan(GPU_HOST)
    assert online.build and online.build.config.find_links is None


def test_a_wheelhouse_that_nobody_has_read_is_no_plan() -> None:
    with pytest.raises(ValueError, match="wheelhouse /srv/w of lab-1 was not read"):
        make_plan("lab-1", Settings(wheelhouse="/srv/w"), GPU_HOST, LAYOUT, supplies=NO_SUPPLIES)


# The command that makes it again


def test_it_is_made_again_as_it_was() -> None:
    whole = with_house(pythons=("3.12",), arches=("x86_64",), toolkits=(), slim=False)
    assert build_command(whole) == build("--python 3.12", "--arch x86_64", "--no-slim")
    bare = replace(whole, folder="/srv/my w", manifest=replace(whole.manifest, files={}, slim=True))
    assert build_command(bare, python="3.12") == (
        "llamafleet wheelhouse build '/srv/my w' --python 3.12 --arch x86_64 --no-cmake"
    )
