"""What package managers say they would do: recorded answers of the real ones.

data/packages/apt-*: apt of Debian 12 asked to simulate the installation of its own
nvidia-cuda-toolkit, without and with Debian's driver. dnf-*: dnf 4.14 asked with --assumeno about
empty packages with such names.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamafleet.onhost.job import JobFailed
from llamafleet.onhost.toolkit import changes as toolkit_changes
from llamafleet.onhost.toolkit.changes import (
    Changes,
    apk_changes,
    apt_changes,
    dnf_changes,
    unknown,
    zypper_changes,
)
from llamafleet.tables import driver_packages

DATA = Path(__file__).parents[1] / "data" / "packages"
REFUSED = toolkit_changes.refused


@pytest.fixture(autouse=True)
def rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the zipapp brings, and the source tree does not."""
    pattern = re.compile(driver_packages.expression("refused"))
    monkeypatch.setattr(toolkit_changes, "refused", lambda: pattern)


def refuse(changes: Changes) -> None:
    toolkit_changes.refuse(changes, ("cuda-nvcc-12-8",), "think")


def lines(name: str) -> list[str]:
    return (DATA / name).read_text().splitlines()


def test_apt_beside_the_distributions_driver_adds_the_toolkit_alone() -> None:
    changes = apt_changes(lines("apt-debian12-with-driver.txt"))
    assert {"nvidia-cuda-toolkit", "nvidia-cuda-dev", "libcublas11"} <= set(changes.new)
    assert not changes.replaced and not changes.removed
    refuse(changes)


def test_apt_that_would_bring_a_driver_is_refused() -> None:
    changes = apt_changes(lines("apt-debian12-without-driver.txt"))
    with pytest.raises(JobFailed, match=r"install or replace .*libcuda1.*; next:") as raised:
        refuse(changes)
    named = str(raised.value)
    assert "libnvidia-ptxjitcompiler1" in named and "libcublas11" not in named


def test_apt_that_would_replace_or_remove() -> None:
    said = [
        "Remv nvidia-utils-535 [535.183.01-0ubuntu1]",
        "Inst libnvidia-compute-535:amd64 [535.183.01] (535.230.02 Ubuntu:22.04 [amd64]) []",
        "Inst cuda-nvcc-12-2 (12.2.140-1 NVIDIA CUDA:1.0 [amd64])",
        "Conf cuda-nvcc-12-2 (12.2.140-1 NVIDIA CUDA:1.0 [amd64])",
    ]
    changes = apt_changes(said)
    assert changes == Changes(
        new=("cuda-nvcc-12-2",),
        replaced=("libnvidia-compute-535",),
        removed=("nvidia-utils-535",),
    )
    with pytest.raises(JobFailed, match="libnvidia-compute-535 and remove nvidia-utils-535"):
        refuse(changes)


def test_dnf_that_adds_the_toolkit_alone() -> None:
    changes = dnf_changes(lines("dnf-install.txt"))
    assert changes == Changes(
        new=("cuda-nvcc-12-8", "libcublas-devel-12-8", "cuda-crt-12-8", "libcublas-12-8")
    )
    refuse(changes)


def test_dnf_that_would_change_the_driver() -> None:
    changes = dnf_changes(lines("dnf-erasing.txt"))
    assert changes.removed == ("other",)
    assert set(changes.replaced) == {"nvidia-driver", "old-toolkit"}
    assert not changes.downgraded
    with pytest.raises(JobFailed, match=r"nvidia-driver-with-a-very-long-name.* and remove other"):
        refuse(changes)


def test_without_its_rule_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit_changes, "refused", REFUSED)
    with pytest.raises(JobFailed, match=r"found no refused-packages\.json .*; expected .*; next: "):
        refuse(Changes(new=("cuda-nvcc-12-8",)))


def test_a_downgrade_is_refused() -> None:
    said = ["Downgrading:", " gcc   x86_64  11.4-1  base  30 M", "", "Transaction Summary"]
    changes = dnf_changes(said)
    assert changes == Changes(downgraded=("gcc",))
    with pytest.raises(JobFailed, match=r"would downgrade gcc; expected cuda-nvcc-12-8 alone"):
        refuse(changes)


def test_apk_and_zypper() -> None:
    """By their documentation and sources: apk-tools 2.14 src/commit.c, zypper src/Summary.cc."""
    assert apk_changes(
        [
            "(1/4) Installing gcc (13.2.1_git20231014-r0)",
            "(2/4) Upgrading musl (1.2.4-r1 -> 1.2.4-r2)",
            "(3/4) Downgrading zlib (1.3-r2 -> 1.3-r1)",
            "(4/4) Purging nvidia-utils (1-r0)",
            "OK: 10 MiB in 15 packages",
        ]
    ) == Changes(("gcc",), ("musl",), ("zlib",), ("nvidia-utils",))
    assert zypper_changes(
        [
            "Reading installed packages...",
            "The following 2 NEW packages are going to be installed:",
            "  gcc-c++ libstdc++6-devel-gcc13",
            "  gcc13-c++",
            "",
            "The following package is going to be upgraded:",
            "  glibc",
            "",
            "The following package is going to be downgraded:",
            "  zlib",
            "",
            "The following package is going to be REMOVED:",
            "  nvidia-driver-G06",
            "",
            "The following item is locked and will not be changed by any action:",
            " Available:",
            "  other",
        ]
    ) == Changes(
        ("gcc-c++", "libstdc++6-devel-gcc13", "gcc13-c++"),
        ("glibc",),
        ("zlib",),
        ("nvidia-driver-G06",),
    )


def test_what_was_wanted_and_would_not_come() -> None:
    """As "g++" did, taken for a pattern: the names of a driver's packages matched it."""
    came = Changes(new=("libg++", "nvidia-driver"), replaced=("b",))
    assert unknown(came, ("g++", "b", "c"), {"c": "1"}) == ["g++"]
