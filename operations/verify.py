"""The verification job: started under its unit or detached, its result fetched and judged."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.history.store import Store
from llamafleet.layout import VERIFY_UNIT
from llamafleet.plans.plan import VerifyPlan
from llamafleet.protocol.fingerprint import explain_difference
from llamafleet.protocol.job import Stamp
from operations import jobs
from operations.files import systemctl
from operations.run import RESULTS, HostRun, here

OK = ("PASS", "CPU ONLY")
"""A host may be CPU ONLY only where its settings allow it: the job itself says FAIL elsewhere."""


@operation()
def verify() -> Generator[PyinfraCommand, None, None]:
    """
    Prove offload and record a benchmark, unless that was done for this very plan.

    **Example:**

    .. code:: python

        from operations.verify import verify
        verify(name="Verify and benchmark")
    """
    run = here()
    plan = run.plan()
    if plan.verify is None or plan.build is None or not plan.verify.needed:
        host.noop(plan.verify.reason if plan.verify else "nothing to verify")
        return
    layout, python = run.layout(), plan.build.python
    folder = layout.job("verify", "run")
    running = run.snapshot().verifying
    if running is None or not running.alive or running.key != plan.verify.key:
        if running and running.alive and running.progress and run.snapshot().init != "systemd":
            yield stop_verification(running.progress.pid)
        yield StringCommand(
            "rm -f", QuoteString(f"{folder}/stamp.json"), QuoteString(f"{folder}/progress.json")
        )
        yield start_verification(run)

    def done(stamp: Stamp) -> bool:
        run.changed("verified")
        return True

    limit = run.settings.verify_timeout_minutes
    yield jobs.watch(run, "verify", folder, python, minutes=limit, done=done)


def stop_verification(pid: int) -> StringCommand:
    """End one that no unit restarts, with its worker: two would measure each other."""
    # The worker is of the same process group, the third field behind the name: proc(5). dash's
    # kill takes no --.
    script = f"set -- $(sed 's/.*) //' /proc/{pid}/stat) && kill -TERM -$3 || true"
    return StringCommand("sh -c", QuoteString(script))


def start_verification(run: HostRun) -> StringCommand:
    layout = run.layout()
    if run.snapshot().init == "systemd":
        # restart: one that the timer began with the settings of before would end as no answer.
        return StringCommand(systemctl(run), "restart --no-block", VERIFY_UNIT)
    return StringCommand(
        QuoteString(f"{layout.current}/bin/python"),
        QuoteString(layout.zipapp),
        "start --log",
        QuoteString(f"{layout.job('verify', 'run')}.log"),
        "--env-file",
        QuoteString(layout.env),
        *jobs.as_account(run),
        "-- verify --config",
        QuoteString(layout.verify_config),
    )


@operation()
def result() -> Generator[PyinfraCommand, None, None]:
    """
    Fetch the result and judge the host by it.

    **Example:**

    .. code:: python

        from operations.verify import result
        result(name="Fetch and judge the result")
    """
    run = here()
    plan = run.plan()
    run.result = run.snapshot().result
    if plan.verify and run.result is not None and run.result.get("key") == plan.verify.key:
        if run.host.state.is_executing:  # A dry run leaves nothing, here neither.
            store = Store(RESULTS)
            run.update = store.update(run.name, run.result)
            store.write_result(run.name, run.result)
        if run.result.get("verdict") in OK:
            host.noop(f"{run.result['verdict']}")
            return
    yield FunctionCommand(_judge, (run, plan.verify), {})


def _judge(state: State, host: Host, run: HostRun, wanted: VerifyPlan | None) -> bool:
    key = wanted.key if wanted else None
    if run.result is None or run.result.get("key") != key:
        found = "no result"
        if run.result is not None and wanted is not None:
            differs = explain_difference(wanted.inputs, run.result.get("inputs") or {})
            found = f"a result of something else ({differs})"
        run.result = None
        run.fail(
            f"verification: found {found} on {run.name}; expected one with key {key}; "
            f"next: read {run.layout().job('verify', 'run')}/verify.log there"
        )
        return False
    for check in run.result.get("checks", []):
        if check.get("status") == "fail":
            run.fail(
                f"{check['name']}: found {check['found']}; expected {check['expected']}; "
                f"next: {check['next']}"
            )
    return False
