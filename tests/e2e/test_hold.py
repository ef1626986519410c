"""The hold on the driver's packages, by the real command on a booted Debian with real packages.

The packages are empty and named as the driver's; apt takes them from a repository in a folder.
The host has no GPU, so each run ends at the plan: the hold is there all the same.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from llamafleet.layout import HOLD_APT, Layout
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import Run, pyinfra, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-a"
DRIVER = ("nvidia-driver", "nvidia-kernel-dkms", "libcuda1")
THEIRS = "firmware-nvidia-gsp"
"""Held by the administrator before."""
NO_DRIVER = "nvidia-container-toolkit"
ORIGIN = "driver-test"
REPOSITORY = "srv/driver"
UNATTENDED = f"""Unattended-Upgrade::Origins-Pattern {{ "origin={ORIGIN}"; }};
"""


def deb(folder: Path, name: str, version: str) -> str:
    """Build an empty package; returns its paragraph in an index."""
    control = folder / f"{name}.tree/DEBIAN/control"
    control.parent.mkdir(parents=True, exist_ok=True)
    same = "Multi-Arch: same\n" if name.startswith("lib") else ""
    text = (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n{same}"
        "Maintainer: nobody <nobody@example.org>\nDescription: of the driver\n"
    )
    control.write_text(text)
    file = folder / f"{name}_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", control.parents[1], file],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{text}Filename: ./{file.name}\nSize: {len(content)}\nSHA256: {digest}\n\n"


def offer(host: BootedHost, version: str, *more: str) -> None:
    """Offer this version of all packages, and of `more`."""
    folder = host.tree / REPOSITORY
    folder.mkdir(exist_ok=True)
    names = (*DRIVER, THEIRS, NO_DRIVER, *more)
    index = "".join(deb(folder, name, f"{version}-1") for name in names)
    (folder / "Packages").write_text(index)
    lines = (f" {hashlib.sha256(index.encode()).hexdigest()} {len(index)} Packages", "")
    (folder / "Release").write_text(f"Origin: {ORIGIN}\nSHA256:\n" + "\n".join(lines))
    source = host.tree / "etc/apt/sources.list.d/driver.list"
    source.write_text(f"deb [trusted=yes] file:/{REPOSITORY} ./\n")
    apt(host, "update")


def apt(host: BootedHost, *arguments: str) -> str:
    done = host.run(f"DEBIAN_FRONTEND=noninteractive apt-get -y -q {' '.join(arguments)} 2>&1")
    assert done.returncode == 0, done.stdout
    return done.stdout


def versions(host: BootedHost) -> dict[str, str]:
    """Of the packages of this test that are installed, without Debian's revision."""
    said = host.run("dpkg-query -W -f='${Package} ${Version}\\n' '*nvidia*' libcuda1").stdout
    return dict(line.removesuffix("-1").split() for line in said.splitlines())


def held(host: BootedHost) -> set[str]:
    return set(host.run("apt-mark showhold").stdout.split())


def deploy(folder: Path, host: BootedHost, **settings: object) -> Run:
    run = pyinfra(folder, "-y", write_inventory(folder, {HOST: host.data(**settings)}), "deploy.py")
    assert run.returncode != 0 and "gpu: found no NVIDIA GPU" in run.output, run.output
    return run


def test_without_the_setting_an_upgrade_takes_the_driver_along(
    booted: BootedHost, folder: Path
) -> None:
    offer(booted, "580.82.07")
    apt(booted, "install", *DRIVER, THEIRS, NO_DRIVER)
    booted.run(f"apt-mark hold {THEIRS}")
    deploy(folder, booted)
    offer(booted, "580.95.05")
    apt(booted, "dist-upgrade")
    found = versions(booted)
    assert {found[name] for name in (*DRIVER, NO_DRIVER)} == {"580.95.05"}
    assert found[THEIRS] == "580.82.07"


def test_held_packages_stay_and_all_others_are_upgraded(booted: BootedHost, folder: Path) -> None:
    run = deploy(folder, booted, hold_driver=True)
    assert f"hold: libcuda1:amd64 {' '.join(DRIVER[:2])} (hold_driver)" in run.output, run.output
    assert held(booted) == {*DRIVER, THEIRS}
    offer(booted, "580.105.08")
    apt(booted, "dist-upgrade")
    found = versions(booted)
    assert {found[name] for name in DRIVER} == {"580.95.05"}
    assert found[NO_DRIVER] == "580.105.08"


def test_the_second_run_changes_nothing(booted: BootedHost, folder: Path) -> None:
    run = deploy(folder, booted, hold_driver=True)
    assert "hold: nothing to do (hold_driver: 4 held)" in run.output, run.output


def test_unattended_upgrades_reads_the_list_too(booted: BootedHost) -> None:
    apt(booted, "install", "--no-install-recommends", "unattended-upgrades")
    (booted.tree / "etc/apt/apt.conf.d/50unattended-upgrades").write_text(UNATTENDED)
    # By themselves: what is on hold would be left alone without the list.
    booted.run("apt-mark unhold nvidia-driver libcuda1")
    command = "unattended-upgrade --dry-run --debug 2>&1"
    said = booted.run(command).stdout
    assert "Initial blacklist: ^libcuda1(:|$) ^nvidia-driver(:|$) ^nvidia-kernel" in said, said
    assert "No packages found that can be upgraded unattended" in said, said
    listed = booted.tree / HOLD_APT.lstrip("/")
    away = listed.rename(booted.tree / "root/list")
    said = booted.run(command).stdout
    away.rename(listed)
    assert "Packages that will be upgraded: libcuda1 nvidia-driver" in said, said


def test_a_driver_package_outside_the_hold_is_reported_and_held(
    booted: BootedHost, folder: Path
) -> None:
    offer(booted, "580.95.05", "nvidia-driver-bin")
    apt(booted, "install", "nvidia-driver-bin")
    run = deploy(folder, booted, hold_driver=True)
    assert (
        "hold: libcuda1:amd64 nvidia-driver nvidia-driver-bin (NEW, outside the hold so far)"
        in run.output
    ), run.output
    assert held(booted) == {*DRIVER, THEIRS, "nvidia-driver-bin"}


def test_without_the_setting_the_hold_is_released_but_not_that_of_others(
    booted: BootedHost, folder: Path
) -> None:
    run = deploy(folder, booted, hold_driver=False)
    assert "hold: release libcuda1:amd64 nvidia-driver" in run.output, run.output
    assert held(booted) == {THEIRS}
    for path in (HOLD_APT, Layout.system().hold_record):
        assert not (booted.tree / path.lstrip("/")).exists()


def test_uninstall_releases_it_and_leaves_no_trace(booted: BootedHost, folder: Path) -> None:
    deploy(folder, booted, hold_driver=True)
    assert held(booted) == {*DRIVER, THEIRS, "nvidia-driver-bin"}
    fleet = write_inventory(folder, {HOST: booted.data()})
    run = pyinfra(folder, "-y", fleet, "uninstall.py")
    assert run.returncode == 0, run.output
    assert held(booted) == {THEIRS}
    assert booted.run("find / -xdev -name '*llamafleet*'").stdout == ""
    run = pyinfra(folder, "-y", fleet, "uninstall.py", "--json")
    assert run.unchanged, run.output
