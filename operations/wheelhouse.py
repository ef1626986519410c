"""A wheelhouse of the controller, copied to hosts that use no registry."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FileUploadCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from operations.run import here


@operation()
def wheelhouse() -> Generator[PyinfraCommand, None, None]:
    """
    Copy the wheelhouse of the settings to the host, its manifest last.

    **Example:**

    .. code:: python

        from operations.wheelhouse import wheelhouse
        wheelhouse(name="Bring the wheelhouse")
    """
    run = here()
    wanted = run.plan().wheelhouse
    if wanted is None or not wanted.bring:
        run.noop(wanted.reason if wanted else "nothing is taken from a wheelhouse")
        return
    yield StringCommand("rm -rf", QuoteString(wanted.target))
    yield StringCommand("install -d -m 755", QuoteString(wanted.target))
    for name in wanted.files:
        yield FileUploadCommand(f"{wanted.source}/{name}", f"{wanted.target}/{name}")
    yield StringCommand("chmod -R a+rX", QuoteString(wanted.target))
    run.changed("wheelhouse")
