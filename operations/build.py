"""The source build of llama-cpp-python, and the switch to it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.layout import Layout
from llamafleet.managed import unfinished
from llamafleet.plans.plan import BuildPlan
from llamafleet.protocol.job import JobError, Kind, Stamp
from operations import jobs, share
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
    wanted = run.plan().build
    if wanted is None:
        run.noop("no build is planned")
        return
    if wanted.job is None:
        if wanted.clears:
            yield share.put_away(run)
        if share.is_asked(run):
            yield from _give(run, wanted)
        elif not wanted.clears:
            run.noop(wanted.reason)
        return
    maker = share.waits_for(run)
    if maker:
        run.say(f"build: waits for the wheel of {maker}")
        yield share.wait(run, maker)
        return
    yield from _carry_out(run, wanted)


@operation()
def take() -> Generator[PyinfraCommand, None, None]:
    """
    Install the wheel of the host that built this fingerprint in this run. Where that gave none,
    the next host gives or builds one, and the others wait for it.

    **Example:**

    .. code:: python

        from operations.build import take
        take(name="Install what another host built")
    """
    run = here()
    wanted = run.plan().build
    if wanted and wanted.job is None and share.is_asked(run):
        yield from _give(run, wanted)
        return
    if wanted is None or wanted.job is None or not run.sharing.makers.get(run.name):
        run.noop(wanted.reason if wanted else "no build is planned")
        return
    if run.host.state.is_executing:
        yield from share.settle(run)
        wanted = run.plan().build or wanted
    yield from _carry_out(run, wanted)


@contextmanager
def _at_it(run: HostRun, wanted: BuildPlan) -> Iterator[None]:
    """Tell the hosts that wait. While pyinfra prepares, it looks at the first command alone."""
    if not run.host.state.is_executing:
        yield
        return
    run.sharing.begins(run.name)
    try:
        yield
    finally:
        run.sharing.ends(run.name, wanted.fingerprint)


def _give(run: HostRun, wanted: BuildPlan) -> Generator[PyinfraCommand, None, None]:
    """The wheel of a build that is there already, for other hosts."""
    with _at_it(run, wanted):
        yield share.fetch(run)


def _carry_out(run: HostRun, wanted: BuildPlan) -> Generator[PyinfraCommand, None, None]:
    """The job of a build, be it of a wheel; a wheel of one's own is kept for other hosts."""
    job = wanted.job
    assert job is not None, "there is something to do"

    def done(stamp: Stamp) -> bool:
        if not stamp.ok:
            run.sharing.why[run.name] = _cause(stamp)
            run.reread()
            if other := _instead(run, wanted):
                run.say(f"{_cause(stamp)}; {other.reason}", fg="yellow")
                return True
            return report_failure(run, "build", stamp)
        run.changed(f"build {wanted.fingerprint[:8]} ({wanted.reason})")
        for note in stamp.notes:
            run.changed(note)
            run.say(f"  {note}", fg="yellow")
        # Done: the plan of the rest of this run is for this build.
        run.settings = run.settings.model_copy(update={"rebuild": False})
        return True

    with _at_it(run, wanted), share.put_away_after(run, wanted):
        if job.start:
            yield from share.bring(run, wanted)
        yield from jobs.carry_out(run, job, wanted.config, done, share.patience(run))
        other = _instead(run, wanted)
        if wanted.config.keep_wheel and other is None:
            yield share.fetch(run)
    if other:
        yield from _carry_out(run, other)


def _instead(run: HostRun, failed: BuildPlan) -> BuildPlan | None:
    """The build that the plan has by now in place of that one; None: it has none."""
    now = run.plan().build if run.host.state.is_executing else None
    return now if now and now.job and now.instead == failed.fingerprint else None


def _cause(stamp: Stamp) -> str:
    """Of a job that failed, in one line."""
    error = stamp.error or JobError(phase="?")
    first = error.lines[0] if error.lines else "it said nothing"
    return (
        f"its build failed in phase {error.phase}: {error.cause or first.partition('; next: ')[0]}"
    )


@operation()
def activate() -> Generator[PyinfraCommand, None, None]:
    """
    Point `current` to the planned build once that is verified, by rename: there is no moment
    without one. What is served keeps the build of before, as `previous`, until it has answered.

    **Example:**

    .. code:: python

        from operations.build import activate
        activate(name="Switch to the build")
    """
    run = here()
    plan = run.plan()
    if plan.build is None or plan.switch is None:
        run.noop("current is the planned build" if plan.build else "no build is planned")
        return
    if not plan.switch.proven:
        run.noop(f"{plan.switch.name} is not verified, {plan.switch.reason}")
        return
    layout = run.layout()
    if plan.switch.keep:
        # First: a run that is cut off leaves to the next one what to go back to.
        yield from _point(layout, layout.previous, plan.switch.keep)
    yield from _point(layout, layout.current, plan.switch.name)
    run.changed(f"current -> {plan.switch.name}")


def _point(layout: Layout, link: str, name: str) -> Iterator[StringCommand]:
    """The link to that build, by rename."""
    partial = unfinished(link)
    yield StringCommand("ln -sfn", QuoteString(layout.version(name)), QuoteString(partial))
    yield StringCommand("mv -T", QuoteString(partial), QuoteString(link))


@operation()
def discard_builds() -> Generator[PyinfraCommand, None, None]:
    """
    Remove builds that the active one stands for, unless somebody uses them.

    What is served has answered by then: none of them is gone back to any more.

    **Example:**

    .. code:: python

        from operations.build import discard_builds
        discard_builds(name="Remove builds that another one stands for")
    """
    run = here()
    plan = run.plan()
    if plan.build is None or not plan.discard:
        run.noop("no other build of that fingerprint is there")
        return
    layout = run.layout()
    yield jobs.discard(
        run, plan.build.python, layout.versions, plan.discard, current=layout.current
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
