"""Why a host has no CUDA Toolkit to build with, and the one thing to change."""

from __future__ import annotations

from llamafleet.facts.host import Driver, HostSnapshot
from llamafleet.plans.plan import Problem
from llamafleet.plans.toolkit.compatibility import Case
from llamafleet.plans.toolkit.compiler import MIN_MAJOR, install_version
from llamafleet.plans.toolkit.methods import closed, has_wheels, unoffered
from llamafleet.settings import Settings
from llamafleet.tables import parse_version
from llamafleet.tables.toolkits import driver_floors, toolkits, wheel_toolkits
from llamafleet.wheelhouse.manifest import Wheelhouse, build_command


def no_cuda(driver: Driver) -> Problem:
    lowest = driver_floors()[-1]
    return Problem(
        "driver",
        found=f"driver {driver.smi or driver.module or driver.library or 'of unknown version'}",
        expected=f"{lowest.driver} or newer (CUDA {lowest.cuda}; {lowest.source})",
        next=_update_driver("12.0"),
    )


def _update_driver(cuda: str) -> str:
    shown = [floor for floor in driver_floors() if parse_version(floor.cuda) >= parse_version(cuda)]
    known = f", as {shown[-1].driver} or newer does ({shown[-1].cuda})" if shown else ""
    return f"install a driver whose nvidia-smi shows CUDA {cuda} or newer{known}"


def _miscompiled(case: Case) -> Problem:
    """The only toolkits that fit make wrong code."""
    named = ("toolkit_root", "toolkit_version", "toolkit_method")
    values = {name: getattr(case.settings, name) for name in named}
    asked = [name for name, value in values.items() if value not in (None, "auto")]
    return Problem(
        "toolkit",
        found="; ".join(f"CUDA {version}, {why}" for version, why in case.miscompiled),
        expected=f"an nvcc that makes right code for {', '.join(case.capabilities)}",
        next="install one of those that are right"
        + (f", or remove {' and '.join(asked)} to let another be taken" if asked else ""),
    )


def no_toolkit(case: Case) -> Problem:
    """Name the one thing to change: settings, driver, compiler, or the toolkit to install."""
    if case.miscompiled:
        return _miscompiled(case)
    host = f"driver of CUDA {case.cuda}, compute capability {', '.join(case.capabilities)}"
    if case.settings.toolkit_root:
        return _root_unfit(case, host)
    if case.snapshot.glibc is None:
        return _no_glibc(case.snapshot)
    host += f", glibc {case.snapshot.glibc}"
    if fitting := _fitting_but_for(case):
        return _not_installable(case, fitting, host)
    if fitting := _fitting_but_for(case, "compiler"):
        return _compiler_unfit(case, fitting[0], host)
    if fitting := _fitting_but_for(case, "driver", "compiler"):
        return _driver_too_old(fitting[-1], host)
    if fitting := _fitting_but_for(case, "settings", "driver", "compiler"):
        return _version_unfit(case, fitting, host)
    return _none_for_all(case, host)


def _fitting_but_for(case: Case, *ignored: str) -> list[str]:
    """Versions against which nothing speaks but the ignored causes, newest first."""
    return [version for version, why in case.against.items() if not set(why) - set(ignored)]


def _unfit(case: Case) -> str:
    """The toolkits of the host, and why none will do; "": it has none."""
    return "; ".join(f"{version} at {why}" for version, why in case.unfit)


def _root_unfit(case: Case, host: str) -> Problem:
    """The settings name a folder, and no other is looked at."""
    root = case.settings.toolkit_root
    return Problem(
        "toolkit",
        found=_unfit(case) or "no toolkit anywhere",
        expected=f"a complete toolkit at toolkit_root = {root!r} for {host}",
        next=f"ls {root}/bin/nvcc; complete it or remove toolkit_root",
    )


def _no_glibc(snapshot: HostSnapshot) -> Problem:
    return Problem(
        "glibc",
        found=f"{snapshot.os_name or 'a system'} without glibc",
        expected="glibc, which every CUDA Toolkit and its wheels need",
        next="use a distribution with glibc, or set accelerator = 'cpu'",
    )


def _compiler_unfit(case: Case, newest: str, host: str) -> Problem:
    """A compiler alone is missing, for the newest toolkit that the rest of the host goes with."""
    row = next(row for row in toolkits() if row.version == newest)
    return Problem(
        "compiler",
        found=case.against[newest]["compiler"],
        expected=f"gcc {MIN_MAJOR} to {row.gcc}, for the newest toolkit of this host ({host})",
        next=install_version(case.snapshot, row.gcc),
    )


def _driver_too_old(oldest: str, host: str) -> Problem:
    """The oldest toolkit that goes with the rest of the host is newer than the driver."""
    return Problem(
        "driver",
        found=host,
        expected=f"CUDA {oldest} or newer: no older toolkit goes with the rest of this host",
        next=_update_driver(oldest),
    )


def _version_unfit(case: Case, fitting: list[str], host: str) -> Problem:
    """The settings name a version that is not among those that fit."""
    return Problem(
        "toolkit",
        found=f"toolkit_version = {case.settings.toolkit_version!r}; {host}",
        expected=f"one of {', '.join(fitting)}",
        next="remove toolkit_version, or set it to one of those",
    )


def _none_for_all(case: Case, host: str) -> Problem:
    """No version knows all of the GPUs and the glibc of this host."""
    several = len(case.capabilities) > 1
    return Problem(
        "toolkit",
        found=host,
        expected="one CUDA Toolkit for all of it; "
        + "; ".join(f"{v}: {', '.join(why.values())}" for v, why in case.against.items()),
        next=("set compute_capabilities to those that one toolkit knows, or " if several else "")
        + "use a distribution with an older glibc",
    )


def nothing_offered(
    snapshot: HostSnapshot, settings: Settings, house: Wheelhouse | None
) -> Problem:
    """No toolkit is on the host, and no method has one, whatever driver and compiler will be."""
    wheels = [w.cuda for w in wheel_toolkits() if w.machine == snapshot.arch]
    # The oldest asks least of the driver.
    version = settings.toolkit_version or min(wheels, key=parse_version, default="13.0")
    manifest = house.manifest if house else None
    return Problem(
        "toolkit",
        found="no CUDA Toolkit on the host",
        expected=f"one there, as CUDA {version}, or a method that installs it: "
        + unoffered(version, snapshot, settings, manifest),
        next=_addition([version], snapshot, settings, house)
        or "change the setting named there, or install one by hand and set toolkit_root",
    )


def _addition(
    versions: list[str], snapshot: HostSnapshot, settings: Settings, house: Wheelhouse | None
) -> str:
    """The command that adds the first that wheels may bring to the wheelhouse; "": none does."""
    addable = [version for version in versions if has_wheels(version, snapshot)]
    if house is None or not addable or closed("wheels", snapshot, settings):
        return ""
    return build_command(house, toolkit=addable[0])


def _not_installable(case: Case, fitting: list[str], host: str) -> Problem:
    """Toolkits would fit, but none is there, and no method may or can install one."""
    snapshot, settings, house, version = case.snapshot, case.settings, case.house, fitting[0]
    wheels = [w.cuda for w in wheel_toolkits() if w.machine == snapshot.arch]
    waiting = [w for w in wheels if set(case.against[w]) == {"driver"}]
    newer = f"; or {_update_driver(waiting[-1])} and let wheels do it" if waiting else ""
    return Problem(
        "toolkit",
        found=_unfit(case) or "no CUDA Toolkit on the host",
        expected=f"CUDA {version} ({host}); no method installs it: "
        + unoffered(version, snapshot, settings, house.manifest if house else None),
        next=_addition(fitting, snapshot, settings, house)
        or "change the setting named there, or install it by hand and set toolkit_root, as "
        f"'/usr/local/cuda-{version}'{newer}",
    )
