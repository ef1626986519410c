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
        for note in stamp.notes:
            run.changed(note)
            run.say(f"  {note}", fg="yellow")
        # Done: the plan of the rest of this run is for this build.
        run.settings = run.settings.model_copy(update={"rebuild": False})
        return True

    yield from jobs.carry_out(run, wanted.job, wanted.config, done)


@operation()
def activate() -> Generator[PyinfraCommand, None, None]:
    """
    Point `current` to the planned build once that is verified, by rename: there is no moment
    without one. Builds that it stands for are then removed, unless somebody uses them.

    **Example:**

    .. code:: python

        from operations.build import activate
        activate(name="Switch to the build")
    """
    run = here()
    plan = run.plan()
    if plan.build is None or not (plan.switch or plan.discard):
        run.noop("current is the planned build" if plan.build else "no build is planned")
        return
    if plan.switch and not plan.switch.proven:
        run.noop(f"{plan.switch.name} is not verified, {plan.switch.reason}")
        return
    layout = run.layout()
    if plan.switch:
        partial = f"{layout.current}.partial"
        target = layout.version(plan.switch.name)
        yield StringCommand("ln -sfn", QuoteString(target), QuoteString(partial))
        yield StringCommand("mv -T", QuoteString(partial), QuoteString(layout.current))
        run.changed(f"current -> {plan.switch.name}")
    if plan.discard:
        yield StringCommand(
            *jobs.as_account(run),
            QuoteString(plan.build.python),
            "-I",
            QuoteString(layout.zipapp),
            "discard --versions",
            QuoteString(layout.versions),
            "--current",
            QuoteString(layout.current),
            "--",
            *map(QuoteString, plan.discard),
        )
        run.reread()


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
