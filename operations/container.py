"""What is served from a container: its image, and the proof that it made when it started."""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterable
from dataclasses import replace

from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.facts.files import FileContents

from llamafleet.managed import unfinished
from llamafleet.plans.plan import Former, Problem, Served, ServePlan
from llamafleet.plans.runtime import why_unproven
from llamafleet.protocol.container import IMAGE
from llamafleet.protocol.result import Result
from llamafleet.protocol.serve import ServeConfig
from llamafleet.received import Unreadable, received_text
from operations.files import systemctl
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


def keep_former(run: HostRun, wanted: ServePlan) -> Generator[StringCommand, None, None]:
    """Copies of the files that podman and the service are told by, before others are written.

    First: a run that is cut off leaves to the next one what to go back to. That of the unit is the
    last one and comes by rename: where it is, all of them are.
    """
    if wanted.former is None or not wanted.keep:
        return
    for path, kept in wanted.former.files:
        partial = QuoteString(unfinished(kept))
        yield StringCommand("cp -p --", QuoteString(path), partial)
        yield StringCommand("mv -T", partial, QuoteString(kept))


def put_back(run: HostRun, former: Former) -> StringCommand:
    """The files of the container that served before, in place of those that came after them.

    In one command that hears of no interruption: they are of use together.
    """
    moves = " && ".join(
        f"mv -T {shlex.quote(kept)} {shlex.quote(path)}" for path, kept in former.files
    )
    script = f"trap '' HUP INT PIPE TERM; {moves} && {systemctl(run)} daemon-reload"
    return StringCommand("sh -c", QuoteString(script))


def as_told(run: HostRun, service: Served) -> Served:
    """The service as its file on the host tells it: that came back with the container.

    A file that can't be read is said, since address and model are then those that were planned.
    """
    text = run.host.get_fact(FileContents, path=service.path, _ignore_errors=True)
    config = received_text(ServeConfig, "\n".join(text or []))
    if not isinstance(config, Unreadable):
        return replace(service, config=config)
    run.fail(
        Problem(
            f"serve.{service.config.profile}.file",
            found=f"{service.path} that can't be read: {config.reason}",
            expected="what the container of before was told",
            next=f"sudo cat {service.path}",
        )
    )
    return service


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
