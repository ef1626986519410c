"""Compilers that make wrong code: what is kept out, and that nothing pinned is among them."""

from __future__ import annotations

import re

import pytest

from llamafleet.plans.toolkit.compatibility import miscompiles
from llamafleet.protocol.miscompiles import wrong_build, wrong_release
from llamafleet.protocol.models import COMPARED
from llamafleet.tables.pinned import pins, toolkit_file
from llamafleet.tables.toolkits import runfiles, toolkit, wheel_toolkits

BLACKWELL = ("10.0", "10.3", "11.0", "12.0", "12.1")
OLDER = ("7.5", "8.0", "8.6", "8.9", "9.0")


@pytest.mark.parametrize("build", ["13.2.51", "13.2.78"])
@pytest.mark.parametrize("capability", BLACKWELL)
def test_bad_on_blackwell(build: str, capability: str) -> None:
    why = wrong_build(miscompiles(), build, "13.2", ["8.9", capability])
    assert f"nvcc {build} computes iq1_s, iq2_s, iq3_s wrongly" in why
    assert f"on compute capability {capability} " in why and "13.2.86" in why


@pytest.mark.parametrize("build", ["13.1.115", "13.2.86", "13.3.73", "13.4.92", "13.5.37"])
def test_good_on_blackwell(build: str) -> None:
    assert wrong_build(miscompiles(), build, build[:4], BLACKWELL) == ""


@pytest.mark.parametrize("build", ["13.2.51", "13.2.78", ""])
def test_older_gpus_are_not_concerned(build: str) -> None:
    assert wrong_build(miscompiles(), build, "13.2", OLDER) == ""


def test_a_build_that_is_not_told_is_doubted_where_its_version_has_a_bad_one() -> None:
    why = wrong_build(miscompiles(), "", "13.2", ["12.0"])
    assert "does not tell its build and may be one of 13.2.51 and 13.2.78" in why
    assert wrong_build(miscompiles(), "", "13.0", ["12.0"]) == ""


def test_by_release() -> None:
    assert "nvcc 13.2.78" in wrong_release(miscompiles(), "13.2.1", ["12.0"])
    assert wrong_release(miscompiles(), "13.2.1", ["8.9"]) == ""
    assert wrong_release(miscompiles(), "13.2.2", ["12.0"]) == ""


def test_no_pinned_wheel_is_among_them() -> None:
    """A toolkit from wheels is not asked about before it is installed: none is bad."""
    bad = {build for row in miscompiles() for build in row.releases.values()}
    for version in {row.cuda for row in wheel_toolkits()}:
        found = {
            pin.requirement.name: str(pin.requirement.specifier)
            for pin in pins(toolkit_file(version))
        }
        for name in ("nvidia-cuda-nvcc", "nvidia-nvvm"):
            assert re.fullmatch(r"==\d+\.\d+\.\d+", found[name])
            assert found[name].removeprefix("==") not in bad, version


def test_rows_speak_of_what_is_known() -> None:
    for row in miscompiles():
        for release, build in row.releases.items():
            assert release.rsplit(".", 1)[0] == build.rsplit(".", 1)[0]
            known = toolkit(build.rsplit(".", 1)[0])
            assert known is not None
            assert {int(c.replace(".", "")) for c in row.capabilities} <= known.sm
        # A wrong kernel shows in a type that is compared on the host.
        assert {*row.types} & {*COMPARED}


def test_a_runfile_that_is_bad_is_known_by_its_release() -> None:
    assert [r.version for r in runfiles() if wrong_release(miscompiles(), r.version, ["12.0"])] == [
        "13.2.1",
        "13.2.1",
    ]
