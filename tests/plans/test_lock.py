"""Who may deploy to a host: one run at a time, and a run that is gone holds nothing for long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import DeployLock
from llamafleet.plans.lock import STALE_S, Holder, lock_problem, plan_lock

ME = Holder("ada@control", "c" * 32, 77, 1234, 1795654821.125)
THEIRS = DeployLock("joe@laptop", "d" * 32, 4711, 99, 1795654800.5, age_s=20)
MINE = DeployLock(ME.owner, ME.controller, ME.pid, ME.start_ticks, ME.started, age_s=0)


@pytest.mark.parametrize(
    ("lock", "ended", "state", "said"),
    [
        (None, False, "free", "nobody"),
        (MINE, False, "mine", "this run"),
        (replace(MINE, age_s=10 * STALE_S), False, "mine", "this run"),
        (THEIRS, False, "held", "joe@laptop (process 4711) deploys to it since 2026-11-26 "),
        (THEIRS, True, "over", "has ended without giving it back"),
        (replace(THEIRS, age_s=STALE_S), False, "held", "deploys to it"),
        (replace(THEIRS, age_s=STALE_S + 1), False, "over", "nothing was heard"),
        (replace(MINE, start_ticks=1), False, "held", "ada@control (process 77)"),
        (replace(MINE, owner="ada@control as b"), False, "held", "as b deploys to it in this very"),
        (replace(THEIRS, started=1e300), False, "held", "since an unknown time"),
    ],
)
def test_who_has_it(lock: DeployLock | None, ended: bool, state: str, said: str) -> None:
    plan = plan_lock(lock, ME, ended=ended)
    assert plan.state == state and said in plan.reason
    assert bool(plan.replaces) is (state == "over"), "what is taken over is named"


def test_its_text_is_the_same_for_the_same_holder() -> None:
    """It is compared on the host, where a shell can't read JSON."""
    assert Holder.of(MINE).text() == ME.text() and "\n" not in ME.text()


def test_a_held_host_says_by_whom_and_what_to_type() -> None:
    problem = lock_problem(plan_lock(THEIRS, ME, ended=False), THEIRS, "/run/lock.json")
    assert problem.check == "lock" and "joe@laptop" in problem.found and "20 s ago" in problem.found
    assert "kill -INT 4711" in problem.next and "15 min" in problem.next


def test_a_host_of_two_names_is_told_so() -> None:
    lock = replace(MINE, owner="ada@control as gpu-a")
    problem = lock_problem(plan_lock(lock, ME, ended=False), lock, "/run/lock.json")
    assert "as gpu-a" in problem.found and problem.next == "leave the other name out"
