"""Wheels that hosts of one fingerprint share: who builds, and how a wheel comes and goes."""

from __future__ import annotations

import time
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from pyinfra.api import FactBase, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.managed import access
from llamafleet.plans.plan import BuildPlan, Problem
from llamafleet.plans.share import offer_of, wheel_of
from llamafleet.protocol.job import WHEELS, SharedWheel
from llamafleet.wheelstore import Incoming, Wrong
from operations import lock, upload
from operations.rights import as_account
from operations.run import HostRun, here
from operations.sharing import NO_END
from operations.watch import POLL_SECONDS

PART = 2 << 20
"""Bytes of a wheel in one answer of a host; in base64 they stay below what an answer may have."""
BEGIN = "@wheel"
PART_S = 120
"""For one such answer; a silent host ends it sooner."""

BEGIN_S = 10
"""For a host that another one waits for, to begin its build."""
STALLED_S = 1200.0
"""A build that others wait for is waited for no longer than this without a step forward. The
longest unit of one takes 84 s on 32 busy cores (measured)."""
FETCH_S = 900.0
"""For a whole wheel to come: others wait for it."""
PUT_AWAY_S = 20
DONE = "@gone"


@operation()
def agree() -> Generator[PyinfraCommand, None, None]:
    """
    Note what each host has to build, so that one builds for all of its fingerprint.

    **Example:**

    .. code:: python

        from operations.share import agree
        agree(name="Agree on who builds")
    """
    run = here()
    build = run.plan().build
    run.sharing.offers.pop(run.name, None)
    if run.settings.build_sharing != "wheel" or build is None:
        run.noop("it builds for itself")
        return
    _judge(run, build)
    build = run.plan().build or build
    offer = offer_of(run.name, run.settings, run.snapshot(), build)
    run.sharing.offers[run.name] = offer
    run.noop(f"{offer.does} {offer.key}")
    yield from ()


def _judge(run: HostRun, build: BuildPlan) -> None:
    """Let no host take a stored wheel that is not as it was kept: it is set aside, and named."""
    sharing, key, wheel = run.sharing, build.fingerprint, build.config.wheel
    if wheel and key not in sharing.judged:
        sharing.judged.add(key)
        if wrong := sharing.store.wrong(key, wheel):
            sharing.refuses(key)
            problem = _replaced(run, key, wheel, wrong)
            run.say(f"{problem}; it is not used: one of the hosts builds anew", fg="red")
    if key in sharing.refused and run.host.state.is_executing:
        sharing.refused.discard(key)
        try:
            run.say(f"build_sharing: it lies in {sharing.store.set_aside(key)} now", fg="red")
        except OSError as error:
            run.say(f"build_sharing: it can't be moved away ({error})", fg="red")


def _replaced(run: HostRun, key: str, wheel: SharedWheel, wrong: Wrong) -> Problem:
    """Of a stored wheel that somebody has changed."""
    file = run.sharing.store.file(key, wheel)
    return Problem(
        "build_sharing",
        found=f"{file} with {wrong.found}",
        expected=f"{wrong.expected}, the wheel of {wheel.host}",
        next=f"see who wrote it, ls -la {file.parent}",
    )


def failed(run: HostRun) -> set[str]:
    """Names of the hosts that are out of this run."""
    return {str(host.name) for host in run.host.state.failed_hosts}


def waits_for(run: HostRun) -> str:
    """The host whose wheel this one waits for; "": it waits for none."""
    maker = run.sharing.maker(run.name, failed(run))
    if maker in (None, run.name):
        return ""
    run.sharing.makers[run.name] = str(maker)
    return str(maker)


def wait(run: HostRun, maker: str) -> FunctionCommand:
    """While another host builds, so that this one's lock stays fresh; the stage waits anyway.

    It may begin a moment later than this one; with pyinfra's --serial it is not even begun.
    """

    def poll(state: State, host: Host) -> bool:
        patience, sharing = time.monotonic() + BEGIN_S, run.sharing
        while maker not in failed(run) and (
            maker in sharing.building
            or (maker not in sharing.begun and time.monotonic() < patience)
        ):
            lock.keep(run)
            time.sleep(POLL_SECONDS)
        return True

    return FunctionCommand(poll, (), {})


def settle(run: HostRun) -> Generator[FunctionCommand, None, None]:
    """Where the host that this one waited for gave no wheel: the next one builds, or this one."""
    asked: set[str] = set()
    while why := why_none(run):
        maker = waits_for(run)
        if not maker or maker in asked:
            run.sharing.makers.pop(run.name, None)
            run.say(f"{why}; it is built here", fg="yellow")
            return
        asked.add(maker)
        run.say(f"{why}; waits for the wheel of {maker}", fg="yellow")
        yield wait(run, maker)


def is_asked(run: HostRun) -> bool:
    """Others of this run wait for the wheel that this host's build left."""
    return run.sharing.gives(run.name, failed(run))


def why_none(run: HostRun) -> str:
    """Why no wheel came of the host that this one waited for; "": it waited for none."""
    maker = run.sharing.makers.pop(run.name, "")
    build = run.plan().build
    if not maker or build is None or build.config.wheel:
        return ""
    why = run.sharing.why.get(maker) or NO_END
    return f"build: found no wheel of {maker} ({why}); expected one to install"


def bring(run: HostRun, wanted: BuildPlan) -> Generator[PyinfraCommand, None, None]:
    """Put the wheel of the plan, if it has one, where root alone writes."""
    wheel, store, key = wanted.config.wheel, run.sharing.store, wanted.fingerprint
    if wheel is None:
        return
    if wrong := store.wrong(key, wheel):
        # It was right when the hosts agreed.
        yield FunctionCommand(_refuse, (run, _replaced(run, key, wheel, wrong)), {})
        return
    if run.host.state.is_executing:
        store.used(key)
    target = wanted.config.wheel_file
    yield from upload.write(store.file(key, wheel), target, access(run.layout()), wheel.sha256)


def put_away(run: HostRun) -> FunctionCommand:
    """Remove what a run that was cut off left. It fails no host."""

    def remove(state: State, host: Host) -> bool:
        _remove(run)
        return True

    return FunctionCommand(remove, (), {})


@contextmanager
def put_away_after(run: HostRun, wanted: BuildPlan) -> Iterator[None]:
    """Remove what `bring` put, however it ends. A job that goes on needs it: the next run does."""
    try:
        yield
    finally:
        known = run.host.state.is_executing and not run.guard.lost
        if wanted.clears and known and run.waits_for is None:
            _remove(run)


def _remove(run: HostRun) -> None:
    """At once, as an operation that fails sends no further command."""
    folder = run.layout().shared
    try:
        gone = run.host.get_fact(Gone, path=folder, _timeout=PUT_AWAY_S, _ignore_errors=True)
    except Exception as error:  # It would hide why the operation ends.
        run.say(f"build_sharing: {folder} could not be removed ({type(error).__name__})")
        return
    if not gone:
        run.say(
            f"build_sharing: found that {folder} can't be removed; expected it gone; "
            f"next: ls -la {folder} there, and run the same command again",
            fg="yellow",
        )


class Gone(FactBase[bool]):
    """Whether a folder is gone, now that it was asked for."""

    def command(self, path: str) -> StringCommand:
        quoted = QuoteString(path)
        return StringCommand("rm -rf --", quoted, "; test -e", quoted, f"|| echo {DONE}")

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        # A login shell may print something of its own first.
        return output[-1:] == [DONE]


def _refuse(state: State, host: Host, run: HostRun, problem: Problem) -> bool:
    run.fail(problem)
    return False


def fetch(run: HostRun) -> FunctionCommand:
    """Keep the wheel of the host's build on the controller. It fails no host: its build is good."""

    def keep(state: State, host: Host) -> bool:
        why = _fetch(run)
        if why:
            run.sharing.why[run.name] = why
            said = f"build_sharing: {why}; expected the wheel of its build for other hosts; next: "
            run.say(f"{said}they build for themselves", fg="yellow")
        return True

    return FunctionCommand(keep, (), {})


def _fetch(run: HostRun) -> str:
    """Why no wheel was kept; "": one was."""
    build = run.plan().build
    there = run.snapshot().builds.get(build.name) if build else None
    if build is None or build.action != "none" or there is None or there.product is None:
        return "found no whole build"
    if not there.product.wheel:
        return "found that it kept no wheel"
    wheel = wheel_of(run.name, there.product)
    if isinstance(wheel, str):
        return wheel
    path = f"{build.config.prefix}/{WHEELS}/{wheel.name}"
    try:
        with run.sharing.store.incoming(build.fingerprint, wheel) as coming:
            why = _parts(run, path, coming)
    except OSError as error:
        return f"found that {run.sharing.store.folder} can't be written ({error})"
    if not why:
        run.sharing.has(build.fingerprint, wheel)
    return why


def patience(run: HostRun) -> float | None:
    """Seconds without a step forward that this host's build is given; None: nobody waits for it."""
    return STALLED_S if is_asked(run) else None


def _parts(run: HostRun, path: str, coming: Incoming) -> str:
    """Read a wheel from the host, no more of it than its stamp says; "", or what is wrong."""
    end = time.monotonic() + FETCH_S
    while coming.size < coming.wheel.size and time.monotonic() < end:
        part = run.host.get_fact(
            WheelPart,
            rights=" ".join(as_account(run)),
            path=path,
            start=coming.size,
            size=min(PART, coming.wheel.size - coming.size),
            _timeout=PART_S,
            _ignore_errors=True,
        )
        if not part:
            break
        coming.add(part)
    late = f" within {FETCH_S:.0f} s" if time.monotonic() >= end else ""
    return f"{path}: {coming.wrong}{late}" if coming.wrong else ""


class WheelPart(FactBase[bytes]):
    """A part of a file, read with the account's rights: it may be anything by now."""

    def command(self, rights: str, path: str, start: int, size: int) -> StringCommand:
        # A login shell may print something of its own first.
        script = f'echo {BEGIN}; tail -c "+$start" -- "$path" | head -c "$size" | base64'
        told = (f"path={path}", f"start={start + 1}", f"size={size}")
        words = (*map(QuoteString, told), "sh -c", QuoteString(script))
        return StringCommand(rights or "env", *words)

    @staticmethod
    def default() -> bytes:
        return b""

    def process(self, output: list[str]) -> bytes:
        at = output.index(BEGIN) + 1 if BEGIN in output else len(output)
        try:
            return b64decode("".join(output[at:]), validate=True)
        except (NotBase64, ValueError) as error:
            raise FactProcessError(f"a part of a wheel: {error}") from error
