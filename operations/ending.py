"""How a run ends: its exit code, its table, and what an interrupt does."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import termios
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import click
import gevent
from gevent import monkey
from pyinfra.api.state import State

LIMIT_S = 4.0
"""In which an interrupted run has told what there is to tell; then it ends in any case."""
LEAVE_S = 1.0
"""Of it for hosts to be told goodbye."""
TERMINAL = "/dev/tty"
READABLE = 1
"""EV_READ of libev."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def until_begun() -> None:
    """Let an interrupt end the process with its own code while nothing is connected yet.

    pyinfra would end with 0.
    """
    _remember_terminal()
    _wake_at_signals()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup asks for.
            signal.signal(number, _stop)


_waking: list[Any] = []
"""What reads the pipe of `_wake_at_signals`; kept, as it ends with its last reference."""


def _wake_at_signals() -> None:
    """Let a signal wake gevent's loop.

    Python only notes a signal, and gevent asks for it before the loop goes to sleep: one that comes
    in between, or by way of another thread, was heard when the loop woke for something else.
    """
    if _waking:
        return
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    watcher = gevent.get_hub().loop.io(reads, READABLE, ref=False)
    watcher.start(_drain, reads)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    _waking.append(watcher)


def _drain(pipe: int) -> None:
    with suppress(OSError):
        os.read(pipe, 4096)


def _stop(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"\ninterrupted: nothing was begun on any host\n")
    _end(128 + number)


_terminal: list[Any] = []
"""How it was when the run began, as termios has it."""


def _remember_terminal() -> None:
    with suppress(OSError, termios.error), Path(TERMINAL).open("rb") as tty:
        _terminal[:] = termios.tcgetattr(tty)


def _end(code: int) -> NoReturn:
    """End at once, with the terminal as it was: a question for a password hides what is typed."""
    with suppress(OSError, termios.error), Path(TERMINAL).open("rb") as tty:
        # One in the background would be stopped for it.
        if _terminal and os.tcgetpgrp(tty.fileno()) == os.getpgrp():
            termios.tcsetattr(tty, termios.TCSANOW, _terminal)
    os._exit(code)


def _say(text: str) -> None:
    """On a terminal, pipe or disk that may be gone or full: the end goes on without it."""
    with suppress(OSError, ValueError):
        click.echo(text, err=True)


class Reporter(Protocol):
    """What a run has to tell at its end."""

    reports: bool

    def finish(self, state: State, interrupted: bool) -> int:
        """Keep and print the run; its exit code."""

    def going_on(self) -> list[str]:
        """What to know of jobs that are left running on hosts."""


class Ending:
    """The end of one run of pyinfra's command line.

    pyinfra ends with 0 unless a host failed; here 0 means that every host is as wanted. So the
    last word on the exit code is spoken when all else is done.
    """

    def __init__(self, state: State, run: Reporter) -> None:
        self._state, self._run = state, run
        self._code = 0
        """As click ends it, where that is known."""
        self._begun = False

    def arm(self) -> None:
        """From here on this decides how the process ends."""
        _remember_terminal()
        context = click.get_current_context(silent=True)
        if context is not None:
            context.call_on_close(self._closed)
        if self._run.reports:
            atexit.register(self._exit)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._signalled)

    def _closed(self) -> None:
        """pyinfra is done: with an exit code, or by an exception that click will show."""
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit):
            self._code = error.code if isinstance(error.code, int) else int(bool(error.code))
        elif error is not None:
            self._code = getattr(error, "exit_code", 1)

    def _exit(self) -> None:
        if self._begun:
            return
        code = self._finish(interrupted=False)
        if (self._code or code) != self._code:
            _leave(code)

    def _finish(self, interrupted: bool) -> int:
        """Of an error in here nothing else would tell: python ends with 0 all the same."""
        try:
            return self._run.finish(self._state, interrupted)
        except Exception as error:
            _say(
                f"run: found {type(error).__name__}: {error}, while it was to be reported; "
                "expected a table; next: llamafleet report"
            )
            return 1

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        code = 128 + number
        if self._begun:
            _end(code)
        if not self._state.is_executing:
            _stop(number, frame)
        self._begun = True
        # A real thread, and a real clock: whatever hangs, this does not.
        monkey.get_original("_thread", "start_new_thread")(_end_late, (code,))
        gevent.get_hub().loop.run_callback_threadsafe(gevent.spawn, self._interrupted, code)

    def _interrupted(self, code: int) -> None:
        name = signal.Signals(code - 128).name
        _say(f"\ninterrupted ({name}): this run ends, and no job on a host does")
        for line in self._run.going_on():
            _say(f"  {line}")
        _say("next: run the same command again, it attaches to them")
        if self._run.reports:
            self._finish(interrupted=True)
        with suppress(Exception):
            leaving = [gevent.spawn(h.disconnect) for h in self._state.activated_hosts]
            gevent.joinall(leaving, timeout=LEAVE_S)
        _leave(code)


def _end_late(code: int) -> None:
    monkey.get_original("time", "sleep")(LIMIT_S)
    _end(code)


def _leave(code: int) -> None:
    """End here, with this code, whatever else is registered to run."""
    with suppress(Exception):
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _end(code)
