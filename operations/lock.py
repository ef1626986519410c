"""One run at a time for each host: who deploys is written there while it is done."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Generator
from dataclasses import replace
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet

from pyinfra import host as current
from pyinfra.api import FactBase, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.context import ctx_host

from llamafleet.facts.host import DeployLock
from llamafleet.managed import Folder, mutex, unfinished
from llamafleet.plans.account import plan_account
from llamafleet.plans.lock import (
    TOUCH_S,
    Holder,
    LockPlan,
    changes_anything,
    lock_problem,
    plan_lock,
)
from llamafleet.plans.plan import Problem
from llamafleet.plans.textfile import plan_page
from llamafleet.protocol.job import start_ticks
from llamafleet.terminal import printable
from operations.account import make_folder, make_prefix
from operations.run import HostRun, here

# flock: of two runs the second finds what the first has written. On a file that nobody else can
# open: any account could hold a folder's.
_TAKE = (
    'umask 077; exec flock -w 20 "$mutex" sh -c \'umask 022; '
    'if test -e "$to" || test -L "$to"; then '
    'test "$(head -c 4096 -- "$to")" = "$was" || exit 0; fi; '
    'rm -f -- "$p" && echo "$text" >"$p" && mv -fT -- "$p" "$to"\''
)
# After a reboot it is gone.
_TOUCH = (
    'if test -e "$to"; then test "$(head -c 4096 -- "$to")" = "$text" && touch -c -- "$to"; '
    'else set -C; umask 022; echo "$text" >"$to"; fi 2>/dev/null || true'
)
_RELEASE = (
    'umask 077; if test -e "$to"; then flock -w 20 "$mutex" sh -c '
    '\'test "$(head -c 4096 -- "$to")" = "$text" && rm -f -- "$to"\'; fi || true'
)

LIMIT_S = 20

_held: WeakKeyDictionary[Host, float] = WeakKeyDictionary()
"""Hosts that this run has, and when it last told them so (monotonic)."""
_told: WeakSet[State] = WeakSet()


def me(host: str = "") -> Holder:
    """This process, as the lock of a host names it; `host`: the host's name in the inventory.

    By another name of the same host it is another holder: each would do the other's work.
    """
    mine = _process()
    return replace(mine, owner=f"{mine.owner} as {printable(host)}") if host else mine


@cache
def _process() -> Holder:
    pid, name = os.getpid(), socket.gethostname()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Holder(
        owner=printable(f"{user}@{name}"),
        controller=controller(),
        pid=pid,
        start_ticks=start_ticks(pid),
        started=round(time.time(), 3),
    )


def controller() -> str:
    """Tells this machine from other controllers."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or socket.gethostname()
    except (OSError, ValueError):
        return socket.gethostname()


def ended(lock: DeployLock | None) -> bool:
    """It is of a process of this very machine that is gone."""
    if lock is None or lock.controller != controller() or lock.start_ticks is None:
        return False
    return start_ticks(lock.pid) != lock.start_ticks


def lock(name: str) -> None:
    """Take the host for this run, if there is anything to do; it is given back at the end."""
    if current.state not in _told:
        _told.add(current.state)
        current.state.add_callback_handler(_Keeper())  # type: ignore[no-untyped-call]
    take(name=name)


@operation()
def take() -> Generator[PyinfraCommand, None, None]:
    """
    Write who deploys; fail this host where another run does.

    **Example:**

    .. code:: python

        from operations.lock import take
        take(name="Take the host for this run")
    """
    run = here()
    plan = decision(run)
    if plan.state == "mine" or not anything_to_do(run):
        run.noop("nothing is to be done" if plan.state != "mine" else plan.reason)
        return
    if plan.state == "over":
        run.say(f"lock: taken over, {plan.reason}", fg="yellow")
    if plan.state != "held":
        yield from _folder(run)
        yield _command(run.layout().deploy_lock, _TAKE, run.name, was=plan.replaces)
    yield FunctionCommand(_taken, (run,), {})


@operation()
def release() -> Generator[PyinfraCommand, None, None]:
    """
    Give the host back to other runs.

    **Example:**

    .. code:: python

        from operations.lock import release
        release(name="Let the host go")
    """
    run = here()
    if run.host not in _held:
        run.noop("it was not taken")
        return
    yield _command(run.layout().deploy_lock, _RELEASE, run.name)
    _held.pop(run.host, None)


def _folder(run: HostRun) -> Generator[StringCommand, None, None]:
    """In a home the lock lies in the state folder, which is recorded as any other one."""
    layout = run.layout()
    if layout.scope == "user":
        yield make_prefix(layout)
        yield make_folder(Folder(layout.state), layout)


def decision(run: HostRun) -> LockPlan:
    lock = run.snapshot().deploy_lock
    return plan_lock(lock, me(run.name), ended=ended(lock))


def anything_to_do(run: HostRun) -> bool:
    """A run that changes nothing disturbs no other one."""
    plan, snapshot = run.plan(), run.snapshot()
    if plan_account(run.settings, snapshot, run.layout()).needed or run.files("tools").needed:
        return True
    if plan_page(run.settings, snapshot).needed:
        return True
    return changes_anything(plan)


def keep(run: HostRun) -> None:
    """Tell the host that this run is still at it, at most every TOUCH_S; to be called by a wait."""
    last = _held.get(run.host)
    if last is None or time.monotonic() - last < TOUCH_S:
        return
    _held[run.host] = time.monotonic()
    _quietly(run, _TOUCH)


class _Keeper(BaseStateCallback):
    """Touches the lock at each stage, and gives a failed host back."""

    @staticmethod
    def operation_host_start(state: State, host: Host, op_hash: str) -> None:
        if host in _held:
            keep(_run_of(host))

    @staticmethod
    def operation_host_error(state: State, host: Host, op_hash: str, *_: int) -> None:
        if _held.pop(host, None) is not None:
            _quietly(_run_of(host), _RELEASE)


class Told(FactBase[bool]):
    """A command beside the operations, whose end is of no matter: the lock ages by itself."""

    def command(self, path: str, script: str, host: str) -> StringCommand:
        return _command(path, script, host)

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return True


def _quietly(run: HostRun, script: str) -> None:
    """A callback that raises would end the run for all hosts."""
    try:
        path = run.layout().deploy_lock
        told = {"path": path, "script": script, "host": run.name}
        run.host.get_fact(Told, **told, _ignore_errors=True, _timeout=LIMIT_S)
    except Exception as error:
        run.say(f"lock: could not be told to the host ({type(error).__name__})")


def _command(path: str, script: str, host: str = "", was: str = "") -> StringCommand:
    values = {"to": path, "p": unfinished(path), "text": me(host).text(), "was": was}
    values["mutex"] = mutex(path)
    told = (QuoteString(f"{name}={value}") for name, value in values.items())
    return StringCommand("env", *told, "sh -c", QuoteString(script))


def _run_of(host: Host) -> HostRun:
    with ctx_host.use(host):
        return here()


def _taken(state: State, host: Host, run: HostRun) -> bool:
    """Read the host again: two runs may have tried at once."""
    run.reread()
    plan, lock = decision(run), run.snapshot().deploy_lock
    if plan.state == "mine":
        _held[host] = time.monotonic()
        return True
    path = run.layout().deploy_lock
    if lock is None:
        run.fail(
            Problem(
                "lock",
                f"{path} could not be written, or can't be read",
                "a file that says who deploys",
                f"ls -l {path}; rm it if no run is at it",
            )
        )
    else:
        run.fail(lock_problem(plan, lock, path))
    return False
