"""A reboot for an updated driver: only where it is allowed, can help, and does not end the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.repair import repair
from llamafleet.plans.plan import Problem, RebootPlan
from llamafleet.settings import Settings

Barred = Literal["not over SSH", "rebooted"]
"""Why this run can't reboot a host, whatever its settings say: on the controller itself, or in one
of its containers, a reboot would end the run; and one reboot that did not help is enough."""


def plan_reboot(
    settings: Settings, snapshot: HostSnapshot, pending: Problem, barred: Barred | None
) -> RebootPlan | Problem:
    """The reboot that solves `pending`, a verdict of "reboot needed"; else why it stays one."""
    if settings.reboot == "never" or snapshot.container:
        return pending
    if barred == "not over SSH":
        return replace(
            pending,
            next=f"{pending.next}, then run the same command again (reboot = 'allow' reboots "
            "hosts that are reached over SSH, and not the controller)",
        )
    if barred == "rebooted":
        found = f"after the reboot of this run: {pending.found}"
        return replace(pending, found=found, next=repair(snapshot))
    return RebootPlan(pending.found)
