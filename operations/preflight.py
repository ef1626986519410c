"""Say what will be done and why; stop a host that can't be provisioned as asked."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.plans.make import explain
from operations.run import HostRun, here


@operation()
def preflight() -> Generator[FunctionCommand, None, None]:
    """
    Read the host once and print its plan.

    **Example:**

    .. code:: python

        from operations.preflight import preflight
        preflight(name="Read the host and plan")
    """
    run = here()
    plan = run.plan()
    if not run.explained:
        run.explained = True
        for line in explain(plan):
            run.say(line)
    run.noop("planned")
    yield from ()


@operation()
def refuse() -> Generator[FunctionCommand, None, None]:
    """
    Fail this host, and no other, on any problem of its plan.

    **Example:**

    .. code:: python

        from operations.preflight import refuse
        refuse(name="Stop where something stands in the way")
    """
    run = here()
    plan = run.plan()
    if not plan.problems:
        run.noop("nothing stands in the way")
        return

    def fail(state: State, host: Host) -> bool:
        for problem in plan.problems:
            run.fail(problem)
        return False

    yield FunctionCommand(fail, (), {})


def judge_again(state: State, host: Host, run: HostRun) -> bool:
    """Say the plan after a stage that completes it; fail the host on what stands in the way."""
    plan = run.plan()
    for line in explain(plan):
        run.say(line)
    for problem in plan.problems:
        run.fail(problem)
    return not plan.problems
