"""What the sources of the driver's version say, each by itself: for verdicts and for people."""

from __future__ import annotations

import shlex
from fnmatch import fnmatchcase

from llamafleet.facts.host import Driver, HostSnapshot, Package
from llamafleet.tables import driver_packages, parse_version

MOST_OF_LOG = 12
"""Lines of the kernel's log that people are shown from its beginning and from its end."""


def newest(a: str, b: str) -> str:
    return max(a, b, key=parse_version)


def missing_next(snapshot: HostSnapshot) -> bool:
    """The kernel that boots next has no module."""
    driver = snapshot.driver
    return driver.next_kernel is not None and driver.module_next is None


def coming_module(snapshot: HostSnapshot) -> str | None:
    """Version of the module that the next boot loads; None: missing, or it can't be told."""
    driver = snapshot.driver
    return (driver.module_next or None) if driver.next_kernel else driver.module_on_disk


def _counts(package: Package, kernel: str | None) -> bool:
    """A part that must be of the driver's version; not one for a kernel that does not boot next."""
    of_kernel = driver_packages.kernel_of(package.name)
    elsewhere = of_kernel and not (kernel or "").startswith(of_kernel)
    return driver_packages.has(package.name, "version") and not elsewhere


def package_versions(snapshot: HostSnapshot) -> dict[str, list[str]]:
    """Names by the driver's version, newest first; packages without one are left out."""
    driver = snapshot.driver
    names: dict[str, list[str]] = {}
    for package in driver.packages:
        if package.driver and _counts(package, driver.next_kernel):
            names.setdefault(package.driver, []).append(package.name)
    if not names and driver.package:
        names[driver.package] = ["driver package"]
    return {v: names[v] for v in sorted(names, key=parse_version, reverse=True)}


def is_held(driver: Driver, name: str) -> bool:
    """The package is held; a name without an architecture is that of any."""
    return any(_holds(held, name) for held in driver.held)


def _holds(held: str, name: str) -> bool:
    return fnmatchcase(name, held) or fnmatchcase(name, held.partition(":")[0])


def holds(driver: Driver, names: list[str]) -> str:
    """What holds one of these packages, as words of a command; "": nothing.

    In the words it was set with, since unholding libcuda1 leaves libcuda1:i386 held.
    """
    return shlex.join(held for held in driver.held if any(_holds(held, name) for name in names))


def versions_sentence(snapshot: HostSnapshot) -> str:
    driver = snapshot.driver
    return (
        f"loaded kernel module {driver.module or 'of unknown version'}, "
        f"library {driver.library or 'of unknown version'}"
    )


def disk_sentence(snapshot: HostSnapshot) -> str:
    """As "module on disk 580.95.05; nvidia-utils-580 580.95.05; nvidia-dkms-580 580.82.07"."""
    parts = [f"module on disk {coming_module(snapshot) or 'of unknown version'}"]
    for version, names in package_versions(snapshot).items():
        parts.append(f"{', '.join(names)} {version}")
    return "; ".join(parts)


def unfinished(snapshot: HostSnapshot) -> str:
    """Names of packages whose installation has not ended; "": none."""
    return ", ".join(package.name for package in snapshot.driver.packages if package.state)


def evidence(snapshot: HostSnapshot) -> tuple[str, ...]:
    """What each source says, a line each; sources that say nothing are left out."""
    driver = snapshot.driver
    lines = [
        ("loaded module", driver.module),
        ("library", driver.library),
        (f"module on disk for {snapshot.kernel or 'the running kernel'}", driver.module_on_disk),
        (f"module for {driver.next_kernel}, which boots next", _next_module(snapshot)),
        ("libcuda", driver.libcuda if driver.libcuda != driver.library else ""),
        ("files that no package owns", ", ".join(_unowned(driver))),
        ("left by NVIDIA's installer", ", ".join(driver.runfile)),
        ("packages", _package_list(snapshot)),
        ("nvidia-smi", _smi(snapshot)),
        ("cards", ", ".join(f"{c.address} {c.kernel_driver or '-'}" for c in snapshot.pci_gpus)),
        ("nouveau", "loaded" if driver.nouveau else ""),
        ("secure boot", {True: "on", False: "off", None: ""}[driver.secure_boot]),
        ("signer of the module", "none" if driver.module_signer == "" else driver.module_signer),
        *(("dkms", line) for line in driver.dkms),
        *(("kernel log", line) for line in _shortened(driver.kernel_log or ())),
        ("kernel log", "may not be read by this user" if driver.kernel_log is None else ""),
    ]
    return tuple(f"{source}: {said}" for source, said in lines if said)


def _shortened(lines: tuple[str, ...]) -> list[str]:
    """The first and the last of many: the causes come first, and what holds now last."""
    left_out = len(lines) - 2 * MOST_OF_LOG
    if left_out <= 0:
        return list(lines)
    middle = f"... {left_out} lines more"
    return [*lines[:MOST_OF_LOG], middle, *lines[-MOST_OF_LOG:]]


def _unowned(driver: Driver) -> list[str]:
    """Paths; a module that dkms or akmods built is nobody's rightly."""
    files = (driver.library_file, driver.libcuda_file, driver.module_file)
    return [file.path for file in files if file and file.owner == ""]


def _next_module(snapshot: HostSnapshot) -> str:
    driver = snapshot.driver
    if driver.next_kernel is None:
        return ""
    return "missing" if driver.module_next is None else driver.module_next or "there"


def _package_list(snapshot: HostSnapshot) -> str:
    return ", ".join(
        f"{package.name} {package.version}" + (f" ({package.state})" if package.state else "")
        for package in snapshot.driver.packages
    )


def _smi(snapshot: HostSnapshot) -> str:
    driver = snapshot.driver
    said = [driver.smi_state, driver.smi, driver.cuda and f"CUDA {driver.cuda}", driver.smi_error]
    return ", ".join(part for part in said if part)
