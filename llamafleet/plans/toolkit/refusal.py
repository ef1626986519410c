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
    snapshot, settings, against = case.snapshot, case.settings, case.against
    seen = "; ".join(f"{version} at {why}" for version, why in case.unfit)
    host = f"driver of CUDA {case.cuda}, compute capability {', '.join(case.capabilities)}"
    if settings.toolkit_root:
        return Problem(
            "toolkit",
            found=seen or "no toolkit anywhere",
            expected=f"a complete toolkit at toolkit_root = {settings.toolkit_root!r} for {host}",
            next=f"ls {settings.toolkit_root}/bin/nvcc; complete it or remove toolkit_root",
        )
    if snapshot.glibc is None:
        return Problem(
            "glibc",
            found=f"{snapshot.os_name or 'a system'} without glibc",
            expected="glibc, which every CUDA Toolkit and its wheels need",
            next="use a distribution with glibc, or set accelerator = 'cpu'",
        )
    host += f", glibc {snapshot.glibc}"

    def versions(*ignored: str) -> list[str]:
        """Versions against which nothing speaks but the ignored causes, newest first."""
        return [v for v, why in against.items() if not set(why) - set(ignored)]

    if versions():
        return _not_installable(case, versions(), host, seen)
    if versions("compiler"):
        row = next(r for r in toolkits() if r.version == versions("compiler")[0])
        return Problem(
            "compiler",
            found=against[row.version]["compiler"],
            expected=f"gcc {MIN_MAJOR} to {row.gcc}, for the newest toolkit of this host ({host})",
            next=install_version(snapshot, row.gcc),
        )
    if versions("driver", "compiler"):
        oldest = versions("driver", "compiler")[-1]
        return Problem(
            "driver",
            found=host,
            expected=f"CUDA {oldest} or newer: no older toolkit goes with the rest of this host",
            next=_update_driver(oldest),
        )
    if versions("settings", "driver", "compiler"):
        known = ", ".join(versions("settings", "driver", "compiler"))
        return Problem(
            "toolkit",
            found=f"toolkit_version = {settings.toolkit_version!r}; {host}",
            expected=f"one of {known}",
            next="remove toolkit_version, or set it to one of those",
        )
    several = len(case.capabilities) > 1
    return Problem(
        "toolkit",
        found=host,
        expected="one CUDA Toolkit for all of it; "
        + "; ".join(f"{v}: {', '.join(why.values())}" for v, why in against.items()),
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


def _not_installable(case: Case, fitting: list[str], host: str, seen: str) -> Problem:
    """Toolkits would fit, but none is there, and no method may or can install one."""
    snapshot, settings, house, version = case.snapshot, case.settings, case.house, fitting[0]
    wheels = [w.cuda for w in wheel_toolkits() if w.machine == snapshot.arch]
    waiting = [w for w in wheels if set(case.against[w]) == {"driver"}]
    newer = f"; or {_update_driver(waiting[-1])} and let wheels do it" if waiting else ""
    return Problem(
        "toolkit",
        found=seen or "no CUDA Toolkit on the host",
        expected=f"CUDA {version} ({host}); no method installs it: "
        + unoffered(version, snapshot, settings, house.manifest if house else None),
        next=_addition(fitting, snapshot, settings, house)
        or "change the setting named there, or install it by hand and set toolkit_root, as "
        f"'/usr/local/cuda-{version}'{newer}",
    )
