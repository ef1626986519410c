"""Who may deploy to a host just now: one run at a time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Literal

from llamafleet.facts.host import DeployLock
from llamafleet.plans.plan import Plan, Problem

STALE_S = 15 * 60
"""A run touches its lock at each stage, and every TOUCH_S while it waits for a job."""
TOUCH_S = 60


@dataclass(frozen=True)
class Holder:
    """A run of a controller, as its lock names it."""

    owner: str
    controller: str
    pid: int
    start_ticks: int | None
    started: float

    @property
    def process(self) -> tuple[object, ...]:
        """Which process of which machine it is."""
        return self.controller, self.pid, self.start_ticks

    def text(self) -> str:
        """The lock's content: the same text for the same holder, so that it can be compared."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, lock: DeployLock) -> Holder:
        return cls(lock.owner, lock.controller, lock.pid, lock.start_ticks, lock.started)


@dataclass(frozen=True)
class LockPlan:
    """free and over: take it; mine: it is this run's; held: another run has it."""

    state: Literal["free", "mine", "over", "held"]
    reason: str
    replaces: str = ""
    """Text of the lock that is taken over."""
    twice: bool = False
    """This very run has it, by another name of the host."""


def plan_lock(lock: DeployLock | None, me: Holder, *, ended: bool) -> LockPlan:
    """`ended`: the lock is of this very controller, and its process is gone."""
    if lock is None:
        return LockPlan("free", "nobody deploys to this host")
    if Holder.of(lock) == me:
        return LockPlan("mine", "this run has it")
    if Holder.of(lock).process == me.process:
        return LockPlan("held", f"{lock.owner} deploys to it in this very run", twice=True)
    text, who = Holder.of(lock).text(), f"{lock.owner} (process {lock.pid})"
    if ended:
        return LockPlan("over", f"the run of {who} has ended without giving it back", text)
    if lock.age_s > STALE_S:
        minutes = lock.age_s // 60
        return LockPlan("over", f"nothing was heard of the run of {who} for {minutes} min", text)
    return LockPlan("held", f"{who} deploys to it since {_time(lock.started)}")


def lock_problem(plan: LockPlan, lock: DeployLock, path: str) -> Problem:
    """Of one that another run has, or this one by another name."""
    if plan.twice:
        return Problem("lock", plan.reason, "one name for each host", "leave the other name out")
    return Problem(
        "lock",
        f"{plan.reason}, last heard of {lock.age_s} s ago",
        "one run at a time for each host",
        f"wait for its end, or stop it there (kill -INT {lock.pid}), then run this again; a run "
        f"that is gone gives {path} up after {STALE_S // 60} min",
    )


def _time(seconds: float) -> str:
    """A controller's clock may say anything."""
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def changes_anything(plan: Plan) -> bool:
    """Of a plan without problems: a stage of it will change the host."""
    return any(
        (
            bool(plan.packages.names),
            plan.reboot is not None,
            plan.wheelhouse is not None and plan.wheelhouse.bring,
            plan.toolkit is not None and plan.toolkit.install,
            plan.build is None or plan.build.action != "none" or plan.build.clears,
            plan.switch is not None,
            plan.files is None or plan.files.needed,
            plan.verify is None or plan.verify.needed,
        )
    )
