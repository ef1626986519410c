"""Models that a host serves: brought by a job of the host, or sent from here and checked by it.

A few hosts at a time get theirs, whatever it comes from. What is sent goes through the standard
input of commands with the account's rights, each with a limit of time, and goes on where an earlier
run was cut off: the host is asked how much it has.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyinfra.api import FactBase, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.onhost.download import Network
from llamafleet.onhost.job import JobFailed
from llamafleet.plans.plan import ModelPlan, SentPart
from llamafleet.plans.served_models import shown
from llamafleet.protocol.job import Stamp
from llamafleet.protocol.place import INCOMING
from operations import jobs, lock, upload
from operations.build import report_failure
from operations.rights import as_account
from operations.run import HostRun, here
from operations.share import failed
from operations.watch import POLL_SECONDS, SAY_SECONDS

PART = 32 << 20
"""Bytes of one command. At COMMAND_S a line of 56 kB/s is fast enough for it."""
ASK_S = 30
DONE = "whole"
BEGIN = "@model"

# One line without a "!": see operations/upload.py. Nothing is followed or overwritten: what has
# come is made longer, from the byte on that was asked for.
_APPEND = (
    "umask 077; read -r at; d=${to%/*}; "
    'bad() { cat >/dev/null; test -z "$1" || echo "$1" >&2; exit 1; }; '
    'mkdir -p -- "$d" || bad; if test -L "$to"; then bad "$to: found a link; expected a file, or '
    'none; next: ls -l $to"; fi; has=$(stat -c %s -- "$to" 2>/dev/null || echo 0); '
    'test "$has" = "$at" || bad "$to: found $has bytes; expected $at; next: run it again"; '
    f"{{ sed -n '/^[{upload.END}]$/q;p' | base64 -d; }} >>\"$to\" || bad"
)


@operation()
def models() -> Generator[PyinfraCommand, None, None]:
    """
    Bring the models that the profiles of the plan name, each checked before it has its name.

    The job outlives this connection; one that runs already is attached to.

    **Example:**

    .. code:: python

        from operations.models import models
        models(name="Bring the models")
    """
    run = here()
    plan = run.plan().models
    if plan is None or not plan.needed:
        run.noop("every model that is served is there" if plan else "no model is served")
        return
    if plan.room:
        yield from _discard(run, plan.room)
    for model in plan.models:
        if model.job:
            yield from _carry_out(run, model)


@operation()
def discard_models() -> Generator[PyinfraCommand, None, None]:
    """
    Remove the models that no profile names and that models_kept does not keep, unless in use.

    **Example:**

    .. code:: python

        from operations.models import discard_models
        discard_models(name="Remove models that no profile names")
    """
    run = here()
    plan = run.plan().models
    if plan is None or not plan.discard:
        run.noop("no model is there that is not wanted")
        return
    yield from _discard(run, plan.discard)


def _discard(run: HostRun, keys: tuple[str, ...]) -> Generator[PyinfraCommand, None, None]:
    plan, layout = run.plan(), run.layout()
    assert plan.models is not None, "it names what goes"
    yield StringCommand(
        *as_account(run),
        QuoteString(plan.models.python),
        "-I",
        QuoteString(layout.zipapp),
        "discard --versions",
        QuoteString(layout.gguf),
        "--",
        *map(QuoteString, keys),
    )

    def look(state: State, host: Host) -> bool:
        before = set(keys)
        run.reread()
        left = before & set(run.snapshot().models)
        for key in sorted(before - left):
            run.changed(f"model {key} removed")
        for key in sorted(left):
            run.say(f"model {key} is in use, and stays until a later run", fg="yellow")
        return True

    yield FunctionCommand(look, (), {})


def _carry_out(run: HostRun, model: ModelPlan) -> Generator[PyinfraCommand, None, None]:
    job = model.job
    assert job is not None, "there is something to do"

    def done(stamp: Stamp) -> bool:
        if not stamp.ok:
            return report_failure(run, "model", stamp)
        run.changed(f"model {model.key} for {', '.join(model.profiles)} ({model.reason})")
        for note in stamp.notes:
            run.changed(note)
            run.say(f"  {note}", fg="yellow")
        return True

    with _turn(run):
        if job.start:
            yield FunctionCommand(_wait, (run,), {})
        for part in model.send if job.start else ():
            yield from _send(run, model, part)
        yield from jobs.carry_out(run, job, model.config, done)


@contextmanager
def _turn(run: HostRun) -> Iterator[None]:
    """Give the host's turn to another one at the end, however it ends."""
    try:
        yield
    finally:
        run.sharing.getting.discard(run.name)


def _wait(state: State, host: Host, run: HostRun) -> bool:
    """Until it is this host's turn: one source is not asked by all at once."""
    getting, said = run.sharing.getting, False
    while len(getting - failed(run) - {run.name}) >= run.settings.model_downloads:
        if not said:
            run.say(f"model: waits for its turn, {run.settings.model_downloads} hosts are at it")
            said = True
        lock.keep(run)
        time.sleep(POLL_SECONDS)
    getting.add(run.name)
    return True


# -- from the controller ---------------------------------------------------------------------------


def _send(run: HostRun, model: ModelPlan, part: SentPart) -> Generator[PyinfraCommand, None, None]:
    """Send what the host lacks of a part."""
    local: list[Path] = []

    def find(state: State, host: Host) -> bool:
        found = _local(run, part)
        if found:
            local.append(found)
        return found is not None

    yield FunctionCommand(find, (), {})
    if not local:
        return
    target = f"{model.config.folder}/{part.name}{INCOMING}"
    size = local[0].stat().st_size
    at = _there(run, model, part)
    if at is None or at == size:
        return
    if at > size:
        yield StringCommand(*as_account(run), "rm -f --", QuoteString(target))
        at = 0
    said = begun = time.monotonic()
    first = at
    while at < size:
        yield append(run, local[0], target, at)
        at = min(size, at + PART)
        now = time.monotonic()
        if now - said > SAY_SECONDS or at == size:
            said, speed = now, (at - first) / max(now - begun, 0.001)
            run.say(f"model {model.key}: {shown(at)} of {shown(size)} sent, {shown(int(speed))}/s")
            lock.keep(run)


def append(run: HostRun, source: Path, target: str, start: int) -> StringCommand:
    """The command that makes a file on the host longer by a part of one that is here."""
    return StringCommand(
        *as_account(run),
        "env",
        QuoteString(f"to={target}"),
        "sh -c",
        QuoteString(_APPEND),
        _stdin=upload.Input(source, str(start), start, PART),
    )


def _there(run: HostRun, model: ModelPlan, part: SentPart) -> int | None:
    """Bytes that the host has; None: it has all of it, under its name."""
    found = run.host.get_fact(
        PartThere,
        rights=" ".join(as_account(run)),
        path=f"{model.config.folder}/{part.name}",
        _timeout=ASK_S,
    )
    return None if found == DONE else int(found)


class PartThere(FactBase[str]):
    """How many bytes of a part have come, or DONE."""

    def command(self, rights: str, path: str) -> StringCommand:
        script = (
            f'echo {BEGIN}; if test -f "$path"; then echo {DONE}; else '
            f'stat -c %s -- "$path{INCOMING}" 2>/dev/null || echo 0; fi'
        )
        told = QuoteString(f"path={path}")
        return StringCommand(rights, "env", told, "sh -c", QuoteString(script))

    @staticmethod
    def default() -> str:
        return "0"

    def process(self, output: list[str]) -> str:
        # A login shell may print something of its own first.
        said = output[output.index(BEGIN) + 1 :] if BEGIN in output else []
        found = said[0].strip() if said else ""
        if found != DONE and not (found.isascii() and found.isdecimal() and len(found) < 16):
            raise FactProcessError(f"a part of a model: {found[:80]!a}")
        return found


def _local(run: HostRun, part: SentPart) -> Path | None:
    """The file here; one that has a URL is fetched by the first host that needs it."""
    if part.origin.startswith("/"):
        return Path(part.origin)
    sharing, sha256 = run.sharing, part.sha256
    while sha256 in sharing.fetching:
        lock.keep(run)
        time.sleep(POLL_SECONDS)
    if sha256 in sharing.unfetched:
        run.fail(f"model: {sharing.unfetched[sha256]}")
        return None
    sharing.fetching.add(sha256)
    try:
        return sharing.models.bring(part.origin, sha256, part.size, network(run), _Said(run))
    except (JobFailed, OSError) as error:
        sharing.unfetched[sha256] = str(error)
        run.fail(f"model: {error}")
        return None
    finally:
        sharing.fetching.discard(sha256)


def network(run: HostRun) -> Network:
    """How this machine reaches others: by its own environment, and the settings' passwords."""
    import urllib.request

    found = urllib.request.getproxies()
    proxies = {f"{name}_proxy": found[name] for name in ("http", "https", "no") if name in found}
    if run.settings.proxy:
        proxies |= {f"{name}_proxy": run.settings.proxy for name in ("http", "https")}
    return Network(proxies, None, run.settings.netrc)


class _Said:
    """Says how far this machine is, every SAY_SECONDS."""

    def __init__(self, run: HostRun) -> None:
        self._run, self._at = run, time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self._at > SAY_SECONDS:
            self._at = now
            lock.keep(self._run)
            self._run.say(f"model, fetched by this machine: {text}")
