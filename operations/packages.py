"""Distribution packages that a source build needs."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from pyinfra import host
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from operations.preflight import judge_again
from operations.run import here

INSTALLED = "installed-packages"
"""Names that llamafleet installed, a line each, below the prefix: `uninstall` prints them."""


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
        host.noop(wanted.reason)
        return
    for command in wanted.commands:
        yield StringCommand(command)
    prefix = run.layout().prefix
    yield StringCommand("mkdir", "-p", QuoteString(prefix))
    yield remember(prefix, wanted.names)
    run.changed(f"packages {' '.join(wanted.names)}")
    yield FunctionCommand(judge_again, (run,), {})


def remember(prefix: str, names: Iterable[str]) -> StringCommand:
    """Note packages that llamafleet installs, for whoever uninstalls it."""
    return StringCommand(
        "printf '%s\\n'", *map(QuoteString, names), ">>", QuoteString(f"{prefix}/{INSTALLED}")
    )
