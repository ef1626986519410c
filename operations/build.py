"""The source build of llama-cpp-python, and the switch to it."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.protocol.job import JobError, Kind, Stamp
from operations import jobs
from operations.run import HostRun, here


@operation()
def build() -> Generator[PyinfraCommand, None, None]:
    """
    Build the fingerprint of the plan unless it is built; attach to a build that runs.

    The build is a job of its own on the host: it outlives this connection.

    **Example:**

    .. code:: python

        from operations.build import build
        build(name="Build llama-cpp-python from source")
    """
    run = here()
    plan = run.plan()
    if plan.build is None:
        run.noop("no build is planned")
        return
    wanted = plan.build
    if wanted.job is None:
        run.noop(wanted.reason)
        return

    def done(stamp: Stamp) -> bool:
        if not stamp.ok:
            return report_failure(run, "build", stamp)
        run.changed(f"build {wanted.fingerprint[:8]} ({wanted.reason})")
        return True

    yield from jobs.carry_out(run, wanted.job, wanted.config, done)


@operation()
def activate() -> Generator[PyinfraCommand, None, None]:
    """
    Point `current` to the planned build, by rename: there is no moment without one.

    **Example:**

    .. code:: python

        from operations.build import activate
        activate(name="Switch to the build")
    """
    run = here()
    plan = run.plan()
    if plan.build is None or plan.build.action != "activate":
        run.noop("current is the planned build")
        return
    layout = run.layout()
    partial = f"{layout.current}.partial"
    yield StringCommand(
        "ln -sfn", QuoteString(layout.version(plan.build.fingerprint)), QuoteString(partial)
    )
    yield StringCommand("mv -T", QuoteString(partial), QuoteString(layout.current))
    run.changed(f"current -> {plan.build.fingerprint[:8]}")


def report_failure(run: HostRun, kind: Kind, stamp: Stamp) -> bool:
    """Say why a job failed: last error lines, log, and cause and fix where they are known."""
    error = stamp.error or JobError(phase="?")
    for line in error.lines:
        run.say(f"  {line}", fg="yellow")
    said = error.lines[0] if error.lines and "next: " in error.lines[0] else ""
    if error.cause or not said:
        cause = f"cause: {error.cause}; " if error.cause else ""
        said = f"{cause}next: {error.fix or 'read the log'}"
    run.fail(
        f"{kind} failed in phase {error.phase}: {said}; log on {run.name}: {error.log or stamp.log}"
    )
    return False
