"""Files and units that llamafleet manages on a host: see llamafleet/managed.py."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import PurePosixPath

from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.managed import by_path, container_row, profile_rows
from llamafleet.plans.plan import FilesPlan, Problem
from llamafleet.render import content
from operations import upload
from operations.run import TOOLS, HostRun, here


@operation()
def tools() -> Generator[PyinfraCommand, None, None]:
    """
    Bring llamafleet's zipapp and pip to the host: what every job runs.

    **Example:**

    .. code:: python

        from operations.files import tools
        tools(name="Bring the job runner")
    """
    run = here()
    wanted = run.files("tools")
    if not wanted.needed:
        run.noop("zipapp and pip are the ones of this controller")
        return
    yield from put(run, wanted.write)
    yield from switch_units(run, wanted)  # Of these files none is a unit: removal alone.
    run.changed(TOOLS)


@operation()
def settings() -> Generator[PyinfraCommand, None, None]:
    """
    Render environment, verification settings and units; enable and start what is to run.

    A unit that somebody has disabled or stopped is enabled and started again. The host fails
    where its files and units are not as planned after that.

    **Example:**

    .. code:: python

        from operations.files import settings
        settings(name="Render environment and units")
    """
    run = here()
    wanted = run.plan().files
    if wanted is None or not wanted.needed:
        run.noop("environment, settings and units are as planned")
        return
    yield from put(run, wanted.write)
    yield from switch_units(run, wanted)
    for change in changes(wanted):
        run.changed(change)
    yield FunctionCommand(check, (run,), {})


def switch_units(run: HostRun, wanted: FilesPlan) -> Generator[StringCommand, None, None]:
    """Stop and remove units, have them read again, enable and start them.

    What a command says of itself is not asked: `check` looks at what came of it.
    """
    ctl = systemctl(run)
    if wanted.stop:
        yield StringCommand(ctl, "stop", *wanted.stop, "|| true")
    if wanted.disable:
        yield StringCommand(ctl, "disable --quiet", *wanted.disable, "|| true")
    if wanted.remove:
        yield StringCommand("rm -f", *map(QuoteString, wanted.remove))
    if wanted.reload:
        yield StringCommand(ctl, "daemon-reload")
    if wanted.enable:
        yield StringCommand(ctl, "enable --quiet", *wanted.enable, "|| true")
    if wanted.restart:
        yield StringCommand(ctl, "restart", *wanted.restart, "|| true")


def check(state: State, host: Host, run: HostRun) -> bool:
    """Read the host again: nothing may be left to do for its files and units."""
    plan = run.plan()
    problems = list(plan.problems)
    if plan.files is not None and plan.files.needed:
        problems.append(_left_over(run, plan.files))
    for problem in problems:
        run.fail(problem)
    return not problems


def _left_over(run: HostRun, left: FilesPlan) -> Problem:
    manager = "systemctl" if run.settings.scope == "system" else "systemctl --user"
    units = dict.fromkeys((*left.enable, *left.restart, *left.stop)) or ["'llamafleet-*'"]
    return Problem(
        "units",
        found=f"still to do: {'; '.join(left.reasons)}",
        expected="files and units as planned, now that they were written and started",
        next=f"{manager} status {' '.join(units)}",
    )


def changes(wanted: FilesPlan) -> list[str]:
    """What was done, for the report."""
    written, removed = ([_name(path) for path in paths] for paths in (wanted.write, wanted.remove))
    again = {
        "enabled": wanted.enable,
        "started": wanted.restart,
        "stopped": wanted.stop,
        "disabled": wanted.disable,
    }
    said = [f"settings {' '.join(written)}"] if written else []
    said += [f"{name} removed" for name in removed]
    for verb, units in again.items():
        said += [f"{unit} {verb}" for unit in units if unit not in (*written, *removed)]
    return said or ["units read again"]


def systemctl(run: HostRun) -> str:
    if run.settings.scope == "system":
        return "systemctl"
    # A shell without a login session lacks it; lingering keeps the user's systemd there.
    return 'XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}" systemctl --user'


def put(run: HostRun, paths: Iterable[str]) -> Generator[StringCommand, None, None]:
    """Write each managed file in place of what was there."""
    plan, layout = run.plan(), run.layout()
    served = (
        row for name in run.settings.serve for row in (*profile_rows(name), container_row(name))
    )
    rows = by_path(layout) | {row.path(layout): row for row in served}
    for path in paths:
        row = rows[path]
        made = content(row, plan, run.settings, layout, run.supplies)
        yield from upload.write(made, path, row.access(layout))


def _name(path: str) -> str:
    return PurePosixPath(path).name
