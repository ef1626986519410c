"""The verification job: started under its unit or detached, its result fetched and judged."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, replace
from typing import TypeGuard

from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.history.store import VERIFIED, Store
from llamafleet.layout import VERIFY_UNIT
from llamafleet.plans.plan import VerifyPlan
from llamafleet.plans.verify import proving, why_of_another
from llamafleet.protocol.fingerprint import explain_difference
from llamafleet.protocol.job import Stamp
from llamafleet.protocol.result import Result
from llamafleet.received import Unreadable
from operations import jobs
from operations.files import systemctl
from operations.run import RESULTS, HostRun, here
from operations.watch import watch


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
    if plan.verify is None or not plan.verify.needed:
        run.noop(plan.verify.reason if plan.verify else "nothing to verify")
        return
    job = plan.verify.job
    if plan.verify.stop:
        yield stop_verification(run, plan.verify.stop)
    if job.start:
        yield jobs.forget_last(run, job)
        yield start_verification(run, plan.verify)

    def done(stamp: Stamp) -> bool:
        run.changed(VERIFIED)
        return True

    yield watch(run, job, done)


def stop_verification(run: HostRun, pid: int) -> StringCommand:
    """End one that no unit restarts, with its worker.

    As the account: what tells the process can be written by it.
    """
    # The worker is of the same process group, the third field behind the name: proc(5). dash's
    # kill takes no --.
    script = f"set -- $(sed 's/.*) //' /proc/{pid}/stat) && kill -TERM -$3 || true"
    return StringCommand(*jobs.as_account(run), "sh -c", QuoteString(script))


def start_verification(run: HostRun, plan: VerifyPlan) -> StringCommand:
    layout = run.layout()
    if run.snapshot().init == "systemd":
        # restart: one that the timer began with the settings of before would end as no answer.
        return StringCommand(systemctl(run), "restart --no-block", VERIFY_UNIT)
    python = QuoteString(f"{plan.config.prefix}/bin/python")
    log = QuoteString(f"{plan.job.folder}/start.log")
    detached = StringCommand("exec", python, "-I", QuoteString(layout.zipapp), "start --log", log)
    command = StringCommand("-- verify --config", QuoteString(layout.verify_config))
    made = StringCommand("umask 022; mkdir -p --", QuoteString(plan.job.folder), "&&")
    script = StringCommand(made, detached, command)
    return StringCommand(*jobs.as_account(run), "sh -c", QuoteString(script))


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
    found = run.snapshot().result
    if isinstance(found, Result):
        # Of the settings of today: they may have changed since it was verified.
        found = replace(found, allow_busy=run.settings.allow_busy)
    if run.host.state.is_executing:  # Without -y pyinfra prepares this too, and then asks.
        run.result = found
        if _told_by(found, plan.verify, run) and not keep(run, found):
            yield FunctionCommand(_refuse, (), {})
            return
    if plan.container:
        run.noop("the container verifies itself when it starts")
        return
    if (
        _told_by(found, plan.verify, run)
        and found.verdict in proving(plan.backend)
        and not found.red
    ):
        # A BUSY host goes on: its build is proven. That its row is not good, the report says.
        run.noop(found.verdict)
        return
    yield FunctionCommand(_judge, (run, plan.verify), {})


def _told_by(found: object, wanted: VerifyPlan | None, run: HostRun) -> TypeGuard[Result]:
    """The result of the verification that was planned, on this machine, and of no other one."""
    if wanted is None or not isinstance(found, Result) or found.key != wanted.key:
        return False
    return not why_of_another(run.settings, run.snapshot(), found, wanted.config)


def keep(run: HostRun, found: Result) -> bool:
    """Store a result; False, and said: it can't be."""
    store = Store(RESULTS)
    try:
        run.update = store.update(run.name, found)
        store.write_result(run.name, found)
    except OSError as error:
        run.fail(
            f"result: found that it can't be kept ({error}); expected to write below {RESULTS}/; "
            f"next: ls -ld {store.folder(run.name)}"
        )
        return False
    return True


def _why_none(run: HostRun) -> str:
    """What is known of a verification that left no result."""
    job = run.snapshot().verifying
    if job is None:
        return "no verification was begun there"
    if job.stamp is None:
        return job.unreadable or "the last one came to no end"
    error = job.stamp.error
    said = " / ".join(error.lines[-2:]) if error else ""
    return said or "the last one ended without one, and says no more"


def _refuse(state: State, host: Host) -> bool:
    return False


def _judge(state: State, host: Host, run: HostRun, wanted: VerifyPlan | None) -> bool:
    found, key = run.result, wanted.key if wanted else None
    if _told_by(found, wanted, run):
        for where, check in found.red:
            run.fail(f"{where + ': ' if where else ''}{check}")
        if not found.red:
            run.fail(
                f"verification: found the verdict {found.verdict} without a red check; expected "
                "one that says why; next: run the same command again"
            )
        return False
    what = f"no result ({_why_none(run)})"
    if isinstance(found, Unreadable):
        what = f"a result that can't be understood ({found.reason})"
    elif found is not None and wanted is not None:
        differs = explain_difference(asdict(wanted.config.inputs), asdict(found.inputs))
        if found.key == key:
            differs = why_of_another(run.settings, run.snapshot(), found, wanted.config)
        what = f"a result of something else ({differs})"
        run.result = None
    run.fail(
        f"verification: found {what} on {run.name}; expected one with key {key}; "
        f"next: read {run.layout().job('verify', 'run')}/verify.log there"
    )
    return False
