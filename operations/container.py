"""What is served from a container: its image, and the proof that it made when it started."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from dataclasses import replace

from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.facts.files import FileContents

from llamafleet.plans.plan import Problem
from llamafleet.plans.runtime import why_unproven
from llamafleet.protocol.result import Result
from llamafleet.settings import IMAGE
from operations.run import HostRun, here
from operations.verify import keep

PULL_S = 3600
"""For an image of 1 GB over a slow line."""
REMOVE_S = 300
"""For one container or image; a podman that hangs keeps no other host waiting for ever."""
# What podman says of one that is not there is no matter; that none is there is looked at.
REMOVE = (
    'podman rm --force --ignore "$1" >/dev/null 2>&1; podman secret rm "$1" >/dev/null 2>&1; '
    'left=; podman container exists "$1" && left="container"; '
    'podman secret inspect "$1" >/dev/null 2>&1 && left="$left secret"; test -z "$left" || '
    '{ echo "uninstall: found $left $1 of podman left; expected none; '
    'next: podman rm -f $1; podman secret rm $1" >&2; exit 1; }'
)


def bring_image(run: HostRun) -> Generator[StringCommand, None, None]:
    """Pull the image unless it is there: a start of the service would wait for it in silence."""
    container = run.plan().container
    if container is None:
        return
    image, record = QuoteString(container.image), QuoteString(run.layout().images)
    # One that was there before is not ours to remove, and is not recorded.
    pulled = StringCommand("podman pull --quiet", image, "&& echo", image, ">>", record)
    yield StringCommand("podman image exists", image, "|| {", pulled, "; }", _timeout=PULL_S)


def remove_containers(
    run: HostRun, names: Iterable[str], images: bool
) -> Generator[StringCommand, None, None]:
    """Containers and secrets that a start cut off may have left; images that were pulled.

    Their service has been stopped. An image that another container uses stays.
    """
    for name in names:
        command = ("sh -c", QuoteString(REMOVE), "sh", QuoteString(name))
        yield StringCommand(*command, _timeout=REMOVE_S)
    if not images:
        return
    path = run.layout().images
    told = run.host.get_fact(FileContents, path=path, _ignore_errors=True) or []
    for image in dict.fromkeys(line for line in told if re.fullmatch(IMAGE, line)):
        run.say(f"image that was pulled, removed unless another container uses it: {image}")
        yield StringCommand("podman image rm", QuoteString(image), "|| true", _timeout=REMOVE_S)


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
