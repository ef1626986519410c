"""What package managers say they would do: recorded answers of the real ones.

data/packages/apt-*: apt of Debian 12 asked to simulate the installation of its own
nvidia-cuda-toolkit, without and with Debian's driver. dnf-*: dnf 4.14 asked with --assumeno about
empty packages with such names.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import packages as toolkit_packages
from llamafleet.onhost.toolkit.packages import (
    Changes,
    apt_changes,
    dnf_changes,
    refuse,
    refuse_unpinned,
)
from llamafleet.protocol.job import PackagesConfig, RepositoryConfig, ToolkitInputs
from llamafleet.tables import driver_packages

DATA = Path(__file__).parents[1] / "data" / "packages"
URL = "https://mirror.example/repos/debian12/x86_64/"
REFUSED = toolkit_packages.refused


@pytest.fixture(autouse=True)
def rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the zipapp brings, and the source tree does not."""
    pattern = re.compile(driver_packages.expression("refused"))
    monkeypatch.setattr(toolkit_packages, "refused", lambda: pattern)


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
    with pytest.raises(JobFailed, match=r"nvidia-driver-with-a-very-long-name.* and remove other"):
        refuse(changes)


def test_without_its_rule_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit_packages, "refused", REFUSED)
    with pytest.raises(JobFailed, match=r"found no refused-packages\.json .*; expected .*; next: "):
        refuse(Changes(new=("cuda-nvcc-12-8",)))


KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mAYEAAAAAAE=
-----END PGP PUBLIC KEY BLOCK-----
"""
POLICY = """Package files:
 100 /var/lib/dpkg/status
     release a=now
{priority:>4} https://mirror.example/repos/debian12/x86_64  Packages
     release o=NVIDIA,l={label},c=
     origin mirror.example
 500 http://deb.debian.org/debian bookworm/main amd64 Packages
Pinned packages:
     cuda-nvcc-12-8 -> 12.8.93-1 with priority 500
"""


def test_a_repository_that_the_pin_holds_back() -> None:
    refuse_unpinned(POLICY.format(priority=-1, label="NVIDIA CUDA"), URL)


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        (POLICY.format(priority=500, label="lab"), "priority 500"),
        (
            POLICY.replace("mirror.example", "other.example").format(priority=-1, label=""),
            "no pack",
        ),
        ("", "no packages"),
    ],
)
def test_a_repository_that_the_pin_misses(policy: str, found: str) -> None:
    with pytest.raises(JobFailed, match=f"{found}.*with the label"):
        refuse_unpinned(policy, URL)


@pytest.mark.parametrize(
    ("priority", "wanted"), [(500, "found priority 500"), (-1, "would install or replace libcuda1")]
)
def test_a_source_that_is_refused_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, priority: int, wanted: str
) -> None:
    """Where the pin misses it, the next upgrade would take a driver from it."""
    source, keyring = tmp_path / "cuda.sources", tmp_path / "cuda.asc"
    config = PackagesConfig(
        key="apt-12.8",
        inputs=ToolkitInputs(method="apt"),
        method="apt",
        cuda="12.8",
        root="/usr/local/cuda-12.8",
        cxx="/usr/bin/g++",
        manager="apt",
        packages=("cuda-nvcc-12-8",),
        record=str(tmp_path / "record"),
        repository=RepositoryConfig(
            url=URL,
            source=str(source),
            keyring=str(keyring),
            key=KEY,
            key_url="",
            fingerprint="",
            files={str(source): "Types: deb\n"},
        ),
    )
    monkeypatch.setattr(toolkit_packages, "CERTIFICATES", tmp_path)
    monkeypatch.setattr(toolkit_packages, "_tried", lambda *_: [])
    monkeypatch.setattr(toolkit_packages, "_command", lambda *_: ["Inst libcuda1 (1 x [amd64])"])
    policy = POLICY.format(priority=priority, label="lab")
    monkeypatch.setattr(toolkit_packages, "_output", lambda *_: policy)
    with pytest.raises(JobFailed, match=wanted):
        toolkit_packages.apt(Job("toolkit", tmp_path, config.key), config, {})
    assert not source.exists() and not keyring.exists()
