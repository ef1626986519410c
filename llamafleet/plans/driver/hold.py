"""The hold on the driver's packages: what to hold, what to release, and what is not llamafleet's.

An update of the driver takes effect at the next boot and may come in halves, so a fleet wants it
at a time of its own choosing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.facts import is_held
from llamafleet.plans.driver.verdict import driver_verdict
from llamafleet.plans.plan import HoldPlan, Problem
from llamafleet.settings import Settings

# A lock is for the version that is installed, so no repository is needed: dnf-versionlock(8),
# dnf5-versionlock(8). dnf5 keeps the option's old name: dnf5-changes-from-dnf4(7).
_DNF = ("dnf", "-y", "--disablerepo=*", "versionlock")
COMMANDS = {
    "apt": (("apt-mark", "hold"), ("apt-mark", "unhold")),
    "dnf": ((*_DNF, "add"), (*_DNF, "delete")),
}
"""The beginnings of the commands that hold and release, by package manager."""

BY_HAND = {
    "pacman": "name the packages in IgnorePkg in /etc/pacman.conf",
    "zypper": "sudo zypper addlock with the names of the packages",
}


def plan_hold(settings: Settings, snapshot: HostSnapshot) -> HoldPlan | Problem | None:
    """What the setting asks for; None: there is and was no hold."""
    if not settings.hold_driver:
        return release(snapshot)
    manager = snapshot.package_manager
    if manager not in COMMANDS:
        by_hand = BY_HAND.get(manager or "", "hold the driver by hand")
        return Problem(
            "hold_driver",
            f"hold_driver is not available with {manager or 'no known package manager'}",
            f"a host with {' or '.join(COMMANDS)}",
            f"{by_hand}, and remove hold_driver",
        )
    if manager == "dnf" and not snapshot.dnf_locks:
        return Problem(
            "hold_driver",
            "dnf without its plugin versionlock",
            "one that can lock a version",
            "sudo dnf install python3-dnf-plugin-versionlock",
        )
    driver, ours = snapshot.driver, snapshot.hold_record
    parts = driver.parts
    kept = tuple(name for name in ours if name in parts or is_held(driver, name))
    loose = tuple(name for name in parts if not is_held(driver, name))
    verdict = driver_verdict(snapshot)
    if loose and verdict.problem and verdict.state == "packages split":
        reason = f"not held until the packages agree: {', '.join(loose)}"
        return HoldPlan(record=kept, reason=reason)
    if not loose:
        reason = f"{len(parts)} held" if parts else "no package of the driver is installed"
        return HoldPlan(record=kept, reason=f"hold_driver: {reason}")
    return HoldPlan(
        hold=loose,
        record=tuple(sorted({*kept, *loose})),
        commands=(shlex.join((*COMMANDS[manager][0], *loose)),),
        reason="NEW, outside the hold so far" if ours else "hold_driver",
    )


def release(snapshot: HostSnapshot) -> HoldPlan | None:
    """Release what llamafleet has held, and no hold of others; None: it has held nothing."""
    begin = COMMANDS.get(snapshot.package_manager or "")
    if not snapshot.hold_record or begin is None:
        return None
    held = tuple(name for name in snapshot.hold_record if is_held(snapshot.driver, name))
    commands = (shlex.join((*begin[1], *held)),) if held else ()
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
