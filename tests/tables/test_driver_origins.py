"""Where a driver comes from: each row whole, and the right one for each host."""

from __future__ import annotations

from typing import get_args

import pytest

from llamafleet.protocol.managers import MANAGERS, YUM
from llamafleet.tables import driver_origins, overlaid
from llamafleet.tables.driver_origins import Purpose, origin_of, origins, runfile
from llamafleet.tables.rows import TableError

PROGRAMS = {"apt": ("apt", "ubuntu-drivers"), "dnf": ("dnf", "akmods", "sh", "rm"), "": ("sh",)}


@pytest.mark.parametrize("row", origins(), ids=lambda row: row.id)
def test_each_row_speaks_of_its_own_manager(row: driver_origins.DriverOrigin) -> None:
    assert row.manager in {"", YUM.program, *MANAGERS}
    allowed = PROGRAMS.get(row.manager, (row.manager,))
    for purpose in get_args(Purpose):
        for command in row.commands[purpose]:
            filled = command.format(branch="580", flavour="", version="580.95.05")
            assert filled.startswith(("!", *(f"{program} " for program in allowed))), filled


@pytest.mark.parametrize(
    ("manager", "installed", "system", "id"),
    [
        ("apt", ["nvidia-driver-580-open"], ("ubuntu", (), "24.04"), "ubuntu"),
        ("apt", ["nvidia-open", "libnvidia-compute"], ("ubuntu", (), "24.04"), "nvidia-apt"),
        ("apt", ["nvidia-kernel-dkms"], ("debian", (), "13"), "debian"),
        ("apt", [], ("ubuntu", (), "24.04"), "ubuntu"),
        ("dnf", ["xorg-x11-drv-nvidia-cuda", "akmod-nvidia"], ("fedora", (), "42"), "rpmfusion"),
        ("dnf", ["akmod-nvidia", "nvidia-driver"], ("rhel", ("fedora",), "9.6"), "negativo17"),
        ("dnf", [], ("rocky", ("rhel", "centos", "fedora"), "9.5"), "nvidia-modules"),
        ("dnf", [], ("rhel", ("centos", "fedora"), "10.0"), "nvidia-dnf"),
        ("dnf", ["nvidia-driver"], ("rhel", ("fedora",), "8.10"), "nvidia-modules"),
        ("dnf", ["nvidia-driver", "nvidia-open"], ("fedora", (), "44"), "nvidia-dnf"),
        ("dnf", [], ("amzn", ("fedora",), "2023"), "nvidia-modules"),
        ("yum", [], ("centos", ("rhel", "fedora"), "7"), "rhel7"),
        ("pacman", [], ("cachyos", ("arch",), ""), "arch"),
        ("zypper", [], ("opensuse-tumbleweed", ("opensuse", "suse"), "20251101"), "suse"),
        ("apk", [], ("alpine", (), "3.22"), None),
        ("", [], ("gentoo", (), ""), None),
    ],
)
def test_the_row_of_a_host(
    manager: str, installed: list[str], system: tuple[str, tuple[str, ...], str], id: str | None
) -> None:
    row = origin_of(manager, installed, *system)
    assert (row.id if row else None) == id


def test_the_installer_s_row_is_the_last() -> None:
    assert runfile().id == "runfile" and runfile().manager == ""


def test_a_row_that_lacks_a_purpose_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "driver-origins.yaml").write_text(
        "origins:\n- {id: x, manager: apt, packages: [], systems: [], source: UNVERIFIED,"
        " commands: {install: [apt install x]}}\n"
    )
    with overlaid(tmp_path), pytest.raises(TableError, match="are missing"):
        origins()
