"""The hold on the driver's packages."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from operations.account import make_prefix
from operations.files import put
from operations.run import here


@operation()
def hold() -> Generator[PyinfraCommand, None, None]:
    """
    Hold the driver's packages or release what llamafleet has held, as the settings ask.

    It comes before all that may fail or install: no stage is to change the driver, and with a
    hold apt and dnf refuse to do so for one.

    **Example:**

    .. code:: python

        from operations.hold import hold
        hold(name="Hold the driver's packages")
    """
    run = here()
    wanted = run.plan().hold
    if wanted is None:
        run.noop("no hold is asked for")
        return
    files = run.files("hold")
    if not wanted.commands and not files.needed:
        run.noop(wanted.reason)
        return
    layout = run.layout()
    if layout.hold_record in files.write and layout.prefix not in run.snapshot().owners:
        yield make_prefix(layout)
    # The record first: what is held without it would pass for the administrator's own hold.
    yield from put(run, files.write)
    for command in wanted.commands:
        yield StringCommand(command)
    if files.remove:
        yield StringCommand("rm -f", *map(QuoteString, files.remove))
    released = "hold released" if wanted.release else "files of the hold"
    run.changed(f"{len(wanted.hold)} packages held" if wanted.hold else released)
