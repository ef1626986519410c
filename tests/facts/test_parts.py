"""Installed packages of the driver and what is held, as the package managers tell it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from llamafleet.facts.host import Driver
from llamafleet.facts.reader import TELLING
from llamafleet.tables import driver_packages
from tests.facts.fakehost import FakeHost

DPKG = """\
hold installed nvidia-driver
hold installed libcuda1:amd64
install installed libcuda1:i386
install half-configured nvidia-kernel-dkms
deinstall config-files nvidia-smi
unknown not-installed nvidia-tesla-470-driver
hold not-installed nvidia-driver-bin
install installed nvidia-container-toolkit
hold installed nvidia-docker2
"""

PLUGIN = """\

# Added lock on Wed Nov 25 04:00:00 2026
nvidia-driver-3:580.95.05-1.el9.*
kmod-nvidia-open-dkms-580.95.05-1.el9.*
!nvidia-settings-3:580.105.08-1.el9.*
bash-0:4.1.2-9.el6_2.*
"""
"""The form of the last line is that of voxpupuli/puppet-yum's acceptance tests, an epoch may lack
and "!" excludes: rpm-software-management/dnf-plugins-core, plugins/versionlock.py."""

DNF5 = """\
version = "1.0"

[[packages]]
name = "akmod-nvidia"
comment = "Added by 'versionlock add' command on 2026-11-25 04:00:00"
[[packages.conditions]]
key = "evr"
comparator = "="
value = "3:580.95.05-1.fc43"
[[packages]]
name = "nvidia-settings"
[[packages.conditions]]
key = "evr"
comparator = "!="
value = "3:580.105.08-1.fc43"
[[packages.conditions]]
key = "arch"
comparator = "="
value = "x86_64"
[[packages]]
name = "*cuda*"
[[packages.conditions]]
key = "evr"
comparator = "<"
value = "3:581"
"""
"""As DNF5-VERSIONLOCK(8) describes the file."""


def driver(fake: FakeHost) -> Driver:
    return fake.snapshot().driver


def test_nothing_is_installed_or_held(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    snapshot = fake.snapshot()
    assert (snapshot.driver.parts, snapshot.driver.held) == ((), ())
    assert (snapshot.hold_record, snapshot.dnf_locks) == ((), False)


def test_dpkg(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.program("dpkg-query", f"case $2 in *Status-Want*) printf %s {shlex.quote(DPKG)} ;; esac")
    found = driver(fake)
    assert found.parts == (
        "nvidia-driver",
        "libcuda1:amd64",
        "libcuda1:i386",
        "nvidia-kernel-dkms",
    )
    assert found.held == ("nvidia-driver", "libcuda1:amd64", "nvidia-driver-bin", "nvidia-docker2")
    assert found.packages == ()


def test_every_name_of_the_driver_is_asked_for(
    fake: FakeHost, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pattern, also where a file has a name that it fits."""
    fake.shell = shell
    fake.write(fake.folder / "nvidia-driver-assistant", "")
    monkeypatch.chdir(fake.folder)
    asked = fake.folder / "asked"
    fake.program("dpkg-query", f'printf "%s\\n" "$@" >>{asked}')
    driver(fake)
    words = [word for word in asked.read_text().splitlines() if not word.startswith("-")]
    assert words == [*driver_packages.patterns(*TELLING), *driver_packages.patterns("held")]


def rpm(fake: FakeHost) -> None:
    """Fedora's, with a library for two architectures."""
    names = ("akmod-nvidia", "xorg-x11-drv-nvidia-libs", "xorg-x11-drv-nvidia-libs")
    rows = "".join(f"install installed {name}\\n" for name in names)
    fake.program("rpm", f'case $3 in install*) printf "{rows}" ;; esac')


def test_dnf_with_its_plugin(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    rpm(fake)
    fake.program("dnf-3", "exit 1")
    (fake.bin / "dnf").symlink_to("dnf-3")
    fake.write(fake.root / "etc/dnf/plugins/versionlock.list", PLUGIN)
    fake.write(fake.root / "etc/dnf/plugins/versionlock.conf", "")
    snapshot = fake.snapshot()
    assert snapshot.driver.parts == ("akmod-nvidia", "xorg-x11-drv-nvidia-libs")
    assert snapshot.driver.held == ("nvidia-driver", "kmod-nvidia-open-dkms", "bash")
    assert snapshot.dnf_locks


def test_dnf_without_its_plugin(fake: FakeHost) -> None:
    fake.program("dnf", "exit 1")
    assert not fake.snapshot().dnf_locks


def test_dnf5(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    rpm(fake)
    fake.program("dnf5", "exit 1")
    (fake.bin / "dnf").symlink_to("dnf5")
    assert (fake.snapshot().dnf_locks, driver(fake).held) == (True, ())
    fake.write(fake.root / "etc/dnf/versionlock.toml", DNF5)
    assert driver(fake).held == ("akmod-nvidia", "*cuda*")


@pytest.mark.parametrize(
    "text", ["", "\n", "[[packages]]\nname\n", "!a-1-1\n# b-1-1\nnot a lock\n"]
)
def test_odd_lock_files(fake: FakeHost, text: str) -> None:
    fake.program("dnf", "exit 1")
    fake.write(fake.root / "etc/dnf/plugins/versionlock.list", text)
    assert driver(fake).held == ()


def test_they_are_bounded(fake: FakeHost) -> None:
    loop = "n=0; while [ $n -lt 400 ]; do n=$((n + 1)); echo install installed nvidia-$n; done"
    fake.program("dpkg-query", loop)
    assert len(driver(fake).parts) == 300


def test_the_record_of_what_llamafleet_holds(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.write(Path(fake.layout.hold_record), "libcuda1:amd64\nnvidia-driver\n")
    assert fake.snapshot().hold_record == ("libcuda1:amd64", "nvidia-driver")
