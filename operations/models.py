"""Models that a host serves: brought by a job of the host, or sent from here and checked by it.

A few hosts at a time get theirs, whatever it comes from. What is sent goes through the standard
input of commands with the account's rights, each with a limit of time, and goes on where an earlier
run was cut off: the host is asked how much it has.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyinfra.api import FactBase, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.connection import COMMAND_S, PATIENCE_S
from llamafleet.onhost.download import Network
from llamafleet.onhost.job import JobFailed
from llamafleet.plans.plan import ModelPlan, SentPart
from llamafleet.protocol.job import Stamp
from llamafleet.protocol.place import INCOMING, shown
from operations import jobs, lock, upload
from operations.build import report_failure
from operations.rights import as_account
from operations.run import HostRun, here
from operations.share import failed
from operations.watch import POLL_SECONDS, SAY_SECONDS

PART = 32 << 20
"""Bytes of one command. At COMMAND_S a line of 56 kB/s is fast enough for it."""
ASK_S = 30
BEGIN = "@model"
WHOLE = 1 << 50
"""More bytes than any part has: it lies there under its name."""

# One line without a "!": see operations/upload.py. Nothing is followed or overwritten: what has
# come is made longer, from the byte on that was asked for.
_APPEND = (
    "umask 077; read -r at; d=${to%/*}; "
    'bad() { cat >/dev/null; test -z "$1" || echo "$1" >&2; exit 1; }; '
    'mkdir -p -- "$d" || bad; if test -L "$to"; then bad "$to: found a link; expected a file, or '
    'none; next: ls -l $to"; fi; has=$(stat -c %s -- "$to" 2>/dev/null || echo 0); '
    'test "$has" = "$at" || bad "$to: found $has bytes; expected $at; next: run it again"; '
    f"{{ sed -n '/^[{upload.END}]$/q;p' | base64 -d; }} >>\"$to\" || bad; "
    f'echo {BEGIN}; stat -c %s -- "$to"'
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
    plan = run.plan()
    assert plan.models is not None, "it names what goes"
    yield jobs.discard(run, plan.models.python, run.layout().gguf, keys)

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
            yield FunctionCommand(_send, (run, model, part), {})
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


def _send(state: State, host: Host, run: HostRun, model: ModelPlan, part: SentPart) -> bool:
    """Send what the host lacks of a part, over as many connections as it takes."""
    file = _local(run, part)
    if file is None:
        return False
    path, size = f"{model.config.folder}/{part.name}", file.stat().st_size
    said, refused = _Sent(run, model, size), 0
    at, heard = _there(run, path, size), time.monotonic()
    while at is None or at < size:
        before, words = at, ""
        if at is not None:
            at = _append(run, file, path, at)
            words = run.guard.words
        if at is None:
            # A command that was cut off tells nobody how much of it has come.
            at = _there(run, path, size)
        if at is not None and before is not None:
            refused = 0 if at > before else refused + 1
        if at is not None:
            heard = time.monotonic()
            said.tell(at)
        late = time.monotonic() - heard > PATIENCE_S
        if late or refused > 1:
            run.fail(_unsent(model, at, words or run.guard.words))
            return False
        if at is None or refused:
            time.sleep(POLL_SECONDS)
    return True


def _unsent(model: ModelPlan, at: int | None, words: str) -> str:
    """Why a part did not come. A script of ours tells all three parts itself."""
    if "; expected " in words:
        return f"model {model.key}: {words}"
    there = f"{shown(at)} of it are there" if at is not None else "what is there is kept"
    found = words or "an answer that can't be understood"
    return (
        f"model {model.key}: found {found}; expected it to take the file that is sent; next: df -h "
        f"{model.config.folder}; run the same command again, {there}"
    )


def _append(run: HostRun, file: Path, path: str, start: int) -> int | None:
    """Bytes that the host has after one more part; None: it did not come, or is not known."""
    return run.host.get_fact(
        Appended,
        rights=" ".join(as_account(run)),
        path=f"{path}{INCOMING}",
        _stdin=upload.Input(file, str(start), start, PART),
        _timeout=COMMAND_S,
        _ignore_errors=True,
    )


def _there(run: HostRun, path: str, size: int) -> int | None:
    """Bytes that the host has, WHOLE where it has all under its name; None: it does not tell."""
    return run.host.get_fact(
        PartThere,
        rights=" ".join(as_account(run)),
        path=path,
        most=size,
        _timeout=ASK_S,
        _ignore_errors=True,
    )


def _figure(output: list[str]) -> int | None:
    """Of a script of ours. Raises FactProcessError."""
    # A login shell may print something of its own first.
    said = output[output.index(BEGIN) + 1 :] if BEGIN in output else []
    found = said[0].strip() if said else ""
    if not re.fullmatch(r"[0-9]{1,16}", found):
        raise FactProcessError(f"a part of a model: {found[:80]!a}")
    return int(found)


class Appended(FactBase[int | None]):
    """A file made longer by what comes on the standard input; how long it is then."""

    def command(self, rights: str, path: str) -> StringCommand:
        told = QuoteString(f"to={path}")
        return StringCommand(rights, "env", told, "sh -c", QuoteString(_APPEND))

    @staticmethod
    def default() -> int | None:
        return None

    def process(self, output: list[str]) -> int | None:
        return _figure(output)


class PartThere(FactBase[int | None]):
    """How many bytes of a part have come. More than it has are of another file, and removed."""

    def command(self, rights: str, path: str, most: int) -> StringCommand:
        script = (
            f'echo {BEGIN}; if test -f "$path"; then echo {WHOLE}; exit; fi; '
            f'path=$path{INCOMING}; has=$(stat -c %s -- "$path" 2>/dev/null || echo 0); '
            'if test "$has" -gt "$most"; then rm -f -- "$path"; has=0; fi; echo "$has"'
        )
        told = (QuoteString(f"path={path}"), QuoteString(f"most={most}"))
        return StringCommand(rights, "env", *told, "sh -c", QuoteString(script))

    @staticmethod
    def default() -> int | None:
        return None

    def process(self, output: list[str]) -> int | None:
        return _figure(output)


class _Sent:
    """Says how much of a part has gone, every SAY_SECONDS and at its end."""

    def __init__(self, run: HostRun, model: ModelPlan, size: int) -> None:
        self._run, self._model, self._size = run, model, size
        self._begun = self._at = time.monotonic()
        self._first: int | None = None

    def tell(self, sent: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._begun = sent, now
        lock.keep(self._run)
        if now - self._at < SAY_SECONDS and sent < self._size:
            return
        self._at = now
        speed = int((sent - self._first) / max(now - self._begun, 0.001))
        at = f", {shown(speed)}/s" if speed else ""
        whole = f"{shown(sent)} of {shown(self._size)}"
        self._run.say(f"model {self._model.key}: {whole} sent{at}")


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
