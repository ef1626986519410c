"""The hold on the driver's packages: what to hold, what to release, and what is not llamafleet's.

An update of the driver takes effect at the next boot and may come in halves, so a fleet wants it
at a time of its own choosing.
"""

from __future__ import annotations

from collections.abc import Iterable

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.facts import is_held
from llamafleet.plans.driver.verdict import driver_verdict
from llamafleet.plans.plan import HoldPlan, Problem
from llamafleet.protocol.managers import DNF, MANAGERS
from llamafleet.settings import Settings

HOLDING = tuple(name for name, manager in MANAGERS.items() if manager.hold)
"""Package managers that can hold."""


def plan_hold(settings: Settings, snapshot: HostSnapshot) -> HoldPlan | Problem | None:
    """What the setting asks for; None: there is and was no hold."""
    if not settings.hold_driver:
        return release(snapshot)
    name = snapshot.package_manager or ""
    manager = MANAGERS.get(name)
    if manager is None or not manager.hold:
        by_hand = (manager and manager.hold_by_hand) or "hold the driver by hand"
        return Problem(
            "hold_driver",
            f"hold_driver is not available with {name or 'no known package manager'}",
            f"a host with {' or '.join(HOLDING)}",
            f"{by_hand}, and remove hold_driver",
        )
    if manager is DNF and not snapshot.dnf_locks:
        return Problem(
            "hold_driver",
            "dnf without its plugin versionlock",
            "one that can lock a version",
            DNF.install_by_hand("python3-dnf-plugin-versionlock"),
        )
    driver, ours = snapshot.driver, snapshot.hold_record
    parts = driver.parts
    kept = tuple(name for name in ours if name in parts or is_held(driver, name))
    loose = tuple(name for name in parts if not is_held(driver, name))
    verdict = driver_verdict(snapshot, settings.gpus)
    if loose and verdict.problem and verdict.state == "packages split":
        reason = f"not held until the packages agree: {', '.join(loose)}"
        return HoldPlan(record=kept, reason=reason)
    if not loose:
        reason = f"{len(parts)} held" if parts else "no package of the driver is installed"
        return HoldPlan(record=kept, reason=f"hold_driver: {reason}")
    return HoldPlan(
        hold=loose,
        record=tuple(sorted({*kept, *loose})),
        commands=(manager.hold_command(loose),),
        reason="NEW, outside the hold so far" if ours else "hold_driver",
    )


def release(snapshot: HostSnapshot) -> HoldPlan | None:
    """Release what llamafleet has held, and no hold of others; None: it has held nothing."""
    manager = MANAGERS.get(snapshot.package_manager or "")
    if not snapshot.hold_record or manager is None or not manager.hold:
        return None
    held = tuple(name for name in snapshot.hold_record if is_held(snapshot.driver, name))
    commands = (manager.release_command(held),) if held else ()
    return HoldPlan(release=held, commands=commands, reason="held by llamafleet before")


def expressions(names: Iterable[str]) -> list[str]:
    """Regular expressions of unattended-upgrades, for Python's re.match: see its own settings file,
    50unattended-upgrades, and is_pkgname_in_blacklist.

    It names a package of another architecture with that, as libcuda1:i386. Backslashes mean
    something else to apt's own reader.
    """
    plain = sorted({name.partition(":")[0] for name in names})
    quoted = (name.replace(".", "[.]").replace("+", "[+]") for name in plain)
    return [f"^{name}(:|$)" for name in quoted]
