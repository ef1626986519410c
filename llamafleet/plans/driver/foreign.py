"""Files of the driver that the packages did not bring: all packages agree, and a file differs.

A driver of NVIDIA's own installer over packages, libraries that an older one left behind, a module
that dkms did not build, an initramfs with the module of before. No update mends these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamafleet.facts.host import DriverFile, HostSnapshot
from llamafleet.plans.driver.cure import as_root, cure, initramfs, manager_of, then_reboot
from llamafleet.plans.driver.facts import package_versions, unfinished
from llamafleet.tables import driver_packages

UNINSTALLER = "/usr/bin/nvidia-uninstall"

IF_INSTALLED = "!where NVIDIA's own installer was run, nvidia-uninstall first"
"""Where the snapshot does not tell: without a package manager that is asked, or of another day."""

DIFFERS = "Diff between built and installed"
"""dkms's own words. Of a module that is compressed or signed it may say so too: they count only
beside a version that differs."""

DKMS = re.compile(
    r"(?P<name>[\w.+-]+)[/,] ?(?P<version>[\d.]+)(?:, (?P<kernel>[^,:]+), [^,:]+)?: (?P<state>.+)"
)
"""As "nvidia/580.95.05, 6.8.0-88-generic, x86_64: installed"; before dkms 3 with ", " for "/"."""

MISMATCH_TIME = re.compile(
    r"^\[\s*(?P<seconds>\d+)\.\d+\] NVRM: API mismatch: the client\b[^\[]{0,120}?"
    r"has the version (?P<client>\d+(?:\.\d+)+)",
    re.MULTILINE,
)
"""In two forms: "the client has the version 570.153.02, but", and from 595 or so over two lines:
"the client 'kwin_wayland' (pid 1005)", "has the version 595.84": Frogging-Family/nvidia-all#394."""
SOON_AFTER_BOOT_S = 60
"""A client that is newer than the module by then was so before the boot: no update ends so soon."""


@dataclass(frozen=True)
class Culprit:
    """A file that stands in the way, and what to do about it."""

    found: str
    fix: str


@dataclass(frozen=True)
class _Dkms:
    name: str
    version: str
    kernel: str
    state: str

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"


def culprit(snapshot: HostSnapshot) -> Culprit | None:
    """The first such file; None: none is seen, or the packages themselves are not done."""
    if snapshot.container or unfinished(snapshot):
        return None
    versions = list(package_versions(snapshot))
    if len(versions) > 1:
        return None
    packaged = versions[0] if versions else None
    return (
        (_library(snapshot, packaged) if packaged else None)
        or _module(snapshot, packaged)
        or _initramfs(snapshot, packaged)
    )


def _library(snapshot: HostSnapshot, packaged: str) -> Culprit | None:
    """The library is not the packages', though the module is or will be."""
    driver = snapshot.driver
    modules = (driver.module, driver.module_on_disk, driver.module_next)
    if driver.library in (None, packaged) or packaged not in modules:
        return None
    file = driver.library_file
    # Where it goes with the loaded module, an update that waits for the reboot looks alike.
    if driver.library == driver.module and not (file and file.owner == ""):
        return None
    return Culprit(
        f"the library {_called(file, driver.library)} is not the packages' {packaged}",
        _remove_library(snapshot, file, driver.library or ""),
    )


def _called(file: DriverFile | None, version: str | None) -> str:
    """As "/usr/lib/libcuda.so.570.86.15, which no package owns," for a sentence."""
    if file is None:
        return version or ""
    return {
        None: file.path,
        "": f"{file.path}, which no package owns,",
    }.get(file.owner, f"{file.path} of the package {file.owner}")


def _remove_library(snapshot: HostSnapshot, file: DriverFile | None, version: str) -> str:
    """Away with the files of that version, and the packages' own written again."""
    commands: list[str] = []
    manager = manager_of(snapshot)
    if UNINSTALLER in snapshot.driver.runfile:
        commands.append("nvidia-uninstall")
    elif file and file.owner and manager:
        commands.append(manager.remove.format(file.owner))
    elif file:
        folder = file.path.rpartition("/")[0]
        if file.owner is None:
            commands.append(IF_INSTALLED)
        commands.append(f"rm {folder}/libcuda.so.{version} {folder}/libnvidia-*.so.{version}")
    else:
        commands.append(f"!ldconfig -p | grep libnvidia-ml, and remove what is of {version}")
    if manager and snapshot.driver.packages:
        commands.append(manager.reinstall.format(" ".join(_versioned(snapshot))))
    return then_reboot(snapshot, as_root(snapshot, *commands, "ldconfig"))


def _versioned(snapshot: HostSnapshot) -> list[str]:
    """The packages whose files are in question."""
    return [
        package.name
        for package in snapshot.driver.packages
        if package.driver and driver_packages.has(package.name, "version")
    ]


def _module(snapshot: HostSnapshot, packaged: str | None) -> Culprit | None:
    """The module for the kernel that boots next is not the packages'."""
    driver = snapshot.driver
    kernel = driver.next_kernel or snapshot.kernel
    coming = driver.module_next if driver.next_kernel else driver.module_on_disk
    if not coming or packaged is None or coming == packaged:
        return None
    # One driver in all places, and packages beside it that nobody uses.
    if driver.library not in (None, packaged):
        return None
    rows = _dkms(snapshot, kernel)
    file = driver.module_file if kernel == snapshot.kernel else None
    names = [package.name for package in driver.packages]
    prebuilt = any(map(driver_packages.prebuilt_branch, names))
    if (prebuilt or driver_packages_akmod(names)) and not (file and file.owner == ""):
        return None
    found = f"the module {coming} for kernel {kernel} is not the packages' {packaged}"
    if file:
        found = f"the module {_called(file, coming)} is {coming}, and the packages are {packaged}"
    if driver.library and coming != driver.library:
        found += f": a reboot would load module {coming} beside library {driver.library}"
    return Culprit(
        found + _said_by_dkms(rows), _own_module(snapshot, rows, coming, packaged, kernel)
    )


def driver_packages_akmod(names: list[str]) -> bool:
    return any(driver_packages.has(name, "akmod") for name in names)


def _said_by_dkms(rows: list[_Dkms]) -> str:
    said = next((row for row in rows if DIFFERS in row.state), None)
    return f" (dkms: {said.label} {said.state})" if said else ""


def _dkms(snapshot: HostSnapshot, kernel: str) -> list[_Dkms]:
    """What dkms says of the driver for one kernel."""
    found = (DKMS.match(line.strip()) for line in snapshot.driver.dkms)
    rows = [_Dkms(m["name"], m["version"], m["kernel"] or "", m["state"]) for m in found if m]
    return [row for row in rows if row.kernel in ("", kernel)]


def _own_module(
    snapshot: HostSnapshot, rows: list[_Dkms], coming: str, packaged: str, kernel: str
) -> str:
    """What puts the packages' module in that one's place; by dkms where it is built."""
    driver = snapshot.driver
    file = driver.module_file if kernel == snapshot.kernel else None
    commands: list[str] = []
    if UNINSTALLER in driver.runfile:
        commands.append("nvidia-uninstall")
    elif not rows and driver.module_file is None:
        commands.append(IF_INSTALLED)
    other = [row for row in rows if row.version == coming]
    commands += [f"dkms remove {row.label} --all" for row in other]
    if file and file.owner == "" and "/dkms/" not in file.path and not other:
        commands.append(f"rm {file.path}")
    own = next((row for row in rows if row.version == packaged), None)
    built_so = own and own.state.startswith("installed") and DIFFERS not in own.state
    if built_so and not commands:
        manager = manager_of(snapshot)
        update = manager.upgrade.format(" ".join(_versioned(snapshot))) if manager else "!update it"
        return then_reboot(snapshot, as_root(snapshot, update)) + (
            f"; dkms built {own.label if own else ''}, and it is {coming}: the package's source is "
            "the wrong one, and to build it again does not help; a later package, or the one before"
        )
    if rows or any(driver_packages.has(package.name, "dkms") for package in driver.packages):
        label = own.label if own else f"{_dkms_name(snapshot)}/{packaged}"
        commands.append(f"dkms install --force {label} -k {kernel}")
    elif manager := manager_of(snapshot):
        commands.append(manager.reinstall.format(" ".join(_versioned(snapshot))))
    commands += [f"depmod {kernel}", initramfs(snapshot, kernel)]
    return then_reboot(snapshot, as_root(snapshot, *commands))


def _dkms_name(snapshot: HostSnapshot) -> str:
    """Debian's packages call it nvidia-current."""
    names = {package.name for package in snapshot.driver.packages}
    return "nvidia-current" if "nvidia-kernel-dkms" in names else "nvidia"


def _initramfs(snapshot: HostSnapshot, packaged: str | None) -> Culprit | None:
    """Disk and library agree, and yet a boot after that loaded another module."""
    driver = snapshot.driver
    on_disk = driver.module_on_disk
    if not driver.module or not on_disk or driver.module == on_disk:
        return None
    if on_disk != driver.library or packaged not in (None, on_disk):
        return None
    why = _loaded_after(snapshot)
    if not why:
        return None
    kernel = driver.next_kernel or snapshot.kernel
    return Culprit(
        f"the initramfs of kernel {snapshot.kernel} still holds module {driver.module}: {why}",
        cure("rebuild-initramfs", snapshot, kernel),
    )


def _loaded_after(snapshot: HostSnapshot) -> str:
    """Why the module on disk was there before this boot; "": nothing says so."""
    driver = snapshot.driver
    file = driver.module_file
    if file and file.changed and snapshot.uptime_s is not None and snapshot.time:
        booted = snapshot.time - snapshot.uptime_s
        return f"{file.path} is older than this boot" if file.changed < booted else ""
    for match in MISMATCH_TIME.finditer("\n".join(driver.kernel_log or ())):
        if match["client"] == driver.library and int(match["seconds"]) < SOON_AFTER_BOOT_S:
            seconds = match["seconds"]
            return f"a program with library {match['client']} met it {seconds} s after the boot"
    return ""
