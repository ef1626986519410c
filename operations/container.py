"""What is served from a container: its image, and the proof that it made when it started."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.plans.plan import Problem
from llamafleet.plans.runtime import why_unproven
from llamafleet.protocol.result import Result
from operations.run import HostRun, here
from operations.verify import keep

PULL_S = 3600
"""For an image of 1 GB over a slow line."""


def bring_image(run: HostRun) -> Generator[StringCommand, None, None]:
    """Pull the image unless it is there: a start of the service would wait for it in silence."""
    container = run.plan().container
    if container is None:
        return
    image = QuoteString(container.image)
    yield StringCommand(
        "podman image exists", image, "|| podman pull --quiet", image, _timeout=PULL_S
    )


@operation()
def proof() -> Generator[PyinfraCommand, None, None]:
    """
    Fetch and judge what the container proved when it started.

    **Example:**

    .. code:: python

        from operations.container import proof
        proof(name="Judge the proof of the container")
    """
    run = here()
    if run.plan().container is None:
        run.noop("nothing is served from a container")
        return
    yield FunctionCommand(_judge, (run,), {})


def _judge(state: State, host: Host, run: HostRun) -> bool:
    run.reread()
    snapshot, plan = run.snapshot(), run.plan()
    found = snapshot.result
    if isinstance(found, Result):
        found = replace(found, allow_busy=run.settings.allow_busy)
    run.result = found
    if isinstance(found, Result) and not keep(run, found):
        return False
    why = why_unproven(run.settings, snapshot, plan.backend)
    if why:
        for where, check in found.red if isinstance(found, Result) else ():
            run.fail(f"{where + ': ' if where else ''}{check}")
        run.fail(
            Problem(
                "verification",
                found=why,
                expected="a proof of each GPU that the container serves with",
                next="journalctl -u 'llamafleet-serve@*' -n 200",
            )
        )
    return not why
