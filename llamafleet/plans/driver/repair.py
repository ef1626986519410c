"""What brings a driver's parts to one version, or the missing module back."""

from __future__ import annotations

import re

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.cure import (
    AGAIN,
    as_root,
    by_hand,
    cure,
    initramfs,
    manager_of,
    own_means,
    then_reboot,
)
from llamafleet.plans.driver.facts import coming_module, holds, newest, package_versions, unfinished
from llamafleet.plans.driver.foreign import culprit
from llamafleet.protocol.managers import APT
from llamafleet.tables import driver_packages

BRANCH = re.compile(r"-(?P<branch>\d{3})(?P<flavour>-server)?(?=-|$)")
"""Of Ubuntu's packages, as in nvidia-utils-570-server."""


def repair(snapshot: HostSnapshot) -> str:
    """The command that brings the driver's parts to one version, or builds the missing module."""
    if snapshot.container:
        return cure("rebuild-module", snapshot)
    half_installed = unfinished(snapshot)
    if half_installed and snapshot.package_manager == "apt":
        ended = as_root(snapshot, "dpkg --configure -a")
        return then_reboot(snapshot, f"{ended} (not configured: {half_installed})")
    if snapshot.ostree:
        return cure("rebuild-module", snapshot)
    if len(package_versions(snapshot)) > 1:
        return _akmods(snapshot) or _one_branch(snapshot) or _lift(snapshot)
    foreign = culprit(snapshot)
    if foreign:
        return foreign.fix
    return (
        _by_hand(snapshot)
        or ("" if snapshot.driver.dkms else own_means(snapshot))
        or _boot_image(snapshot)
        or cure("rebuild-module", snapshot)
    )


def _akmods(snapshot: HostSnapshot) -> str:
    """Only what akmods built here is behind, which no repository has; "": it is not."""
    late = [name for names in list(package_versions(snapshot).values())[1:] for name in names]
    built = all(driver_packages.has(name, "kernel") for name in late)
    if not built or not any(driver_packages.has(p.name, "akmod") for p in snapshot.driver.packages):
        return ""
    return then_reboot(snapshot, cure("rebuild-module", snapshot))


def _lift(snapshot: HostSnapshot) -> str:
    """The packages that are behind brought to the newest version."""
    packages = package_versions(snapshot)
    manager = manager_of(snapshot)
    late = [name for names in list(packages.values())[1:] for name in names]
    behind = " ".join(late)
    if manager is None:
        return then_reboot(snapshot, f"bring {behind} to {next(iter(packages))}")
    lift = manager.lift(holds(snapshot.driver, late))
    update = as_root(snapshot, manager.upgrade.format(behind))
    return then_reboot(snapshot, f"{lift}{update}")


def _one_branch(snapshot: HostSnapshot) -> str:
    """Packages of two branches or flavours: no update brings them together, one has to go.

    That one stays which the module is of; "": they are of one branch.
    """
    by_branch: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for version, names in package_versions(snapshot).items():
        for name in names:
            if found := BRANCH.search(name):
                label = found["branch"] + (found["flavour"] or "")
                by_branch.setdefault(label, []).append(name)
                versions.setdefault(label, version)
    if len(by_branch) < 2 or snapshot.package_manager != "apt":
        return ""
    coming = coming_module(snapshot) or snapshot.driver.module
    kept = next((label for label in by_branch if versions[label] == coming), next(iter(by_branch)))
    gone = [name for label, names in by_branch.items() if label != kept for name in names]
    stays = " ".join(_of_branch(name, kept) for name in gone)
    commands = as_root(snapshot, APT.remove.format(" ".join(gone)), APT.install.format(stays))
    others = ", ".join(label for label in by_branch if label != kept)
    return then_reboot(snapshot, f"{commands} (one branch has to go: {others} beside {kept})")


def _of_branch(name: str, label: str) -> str:
    """The package of the same part in another branch."""
    return BRANCH.sub(f"-{label}", name)


def _boot_image(snapshot: HostSnapshot) -> str:
    """Disk and library agree, and a reboot did not help: it loads what is not on the disk.

    The next run reboots once more, where it may.
    """
    driver = snapshot.driver
    coming = coming_module(snapshot)
    if not coming or coming != driver.library or driver.module in (None, coming):
        return ""
    kernel = driver.next_kernel or snapshot.kernel
    made = as_root(snapshot, f"depmod {kernel}", initramfs(snapshot, kernel))
    return f"{made}, then run the same command again"


def _by_hand(snapshot: HostSnapshot) -> str:
    """A driver of NVIDIA's own installer: its parts come from one file; "": it is none."""
    driver = snapshot.driver
    coming = coming_module(snapshot)
    if not by_hand(snapshot) or not (coming and driver.library) or coming == driver.library:
        return ""
    machine = snapshot.arch or "$(uname -m)"
    if newest(coming, driver.library) == coming:
        command = f"sh NVIDIA-Linux-{machine}-{coming}.run --no-kernel-modules"
    else:
        command = f"sh NVIDIA-Linux-{machine}-{driver.library}.run"
    return f"{AGAIN}: {then_reboot(snapshot, as_root(snapshot, command))}"
