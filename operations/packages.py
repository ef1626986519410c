"""Distribution packages that a source build needs."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from operations.preflight import judge_again
from operations.run import here


@operation()
def packages() -> Generator[PyinfraCommand, None, None]:
    """
    Install what the plan misses, a C++ compiler above all, and complete the plan by it.

    **Example:**

    .. code:: python

        from operations.packages import packages
        packages(name="Install what the build needs")
    """
    run = here()
    wanted = run.plan().packages
    if not wanted.commands:
        run.noop(wanted.reason)
        return
    for command in wanted.commands:
        yield StringCommand(command)
    layout = run.layout()
    yield StringCommand("mkdir", "-p", QuoteString(layout.prefix))
    record = QuoteString(layout.installed_packages)
    yield StringCommand("printf '%s\\n'", *map(QuoteString, wanted.names), ">>", record)
    run.changed(f"packages {' '.join(wanted.names)}")
    yield FunctionCommand(judge_again, (run,), {})
