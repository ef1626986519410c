"""A host's connection: every call through it has an end, and a fault of it is that host's alone.

pyinfra's connectors wait for ever and raise what they like; one exception ends the run for every
host. A guard stands around the connector of each host: its calls end within stated limits, their
output is bounded and printable, and what goes wrong is one line and a command that failed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Queue
from types import TracebackType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import click
import gevent
import pyinfra.connectors.util as theirs
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.api.output import echo, is_output_active, set_echo
from pyinfra.connectors.util import CommandOutput, OutputLine

from llamafleet.received import LIMIT
from llamafleet.terminal import masked, printable

SILENT_S = 20
"""A host from which nothing has come for so long, though it was asked, does not answer."""
PROBE_S = 5
"""How often it is asked for a sign of life while a call waits."""
CONNECT_S = 20
"""For one attempt to connect: name, TCP, keys, login."""
COMMAND_S = 600
"""For a command that names no limit of its own; what takes longer is a job."""
TRANSFER_S = 3600
"""For one file. A wheelhouse's largest has half a GB; a silent host ends it far sooner."""
IDLE_S = 60
"""A connection that was still for so long is asked for a sign of life before it is used."""
PATIENCE_S = 90
"""For how long a host that does not answer is tried again; the others wait no longer for it."""
KEEP_ALIVE_S = 30
"""Routers forget a connection on which nothing happens."""
MOST_LINES = 200_000
"""Of one command's output, beside LIMIT characters; what is asked for is far below."""
LONGEST = 200
"""Characters of a host's own words in an error."""
WORDS = 3
"""Lines of a failed command that are kept."""

T = TypeVar("T")


class Fault(Exception):
    """Why a call was ended; the text is one printable line."""


class Silent(Fault):
    """Nothing has come from the host for SILENT_S."""


class NoTerminal(Fault):
    """sudo wants a password, and nobody can be asked for one."""


class _Pulse:
    """Whether anything comes from a host, by its SSH transport."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.heard = 0
        """Messages so far."""
        self.at = time.monotonic()
        """When the last one came."""
        read = transport.packetizer.read_message

        def counted() -> Any:
            message = read()
            self.heard += 1
            self.at = time.monotonic()
            return message

        transport.packetizer.read_message = counted
        transport.set_keepalive(KEEP_ALIVE_S)

    def ask(self) -> gevent.Greenlet:
        """Ask for a sign of life; sshd answers what it does not know with a refusal."""
        return gevent.spawn(self._ask)

    def _ask(self) -> None:
        with suppress(Exception):  # The call that waits tells what is wrong.
            self.transport.global_request("keepalive@openssh.com", wait=True)

    def answers(self) -> bool:
        """One question, and time for its answer."""
        before = self.heard
        asking = self.ask()
        for _ in range(2 * PROBE_S):
            gevent.sleep(0.5)
            if self.heard > before or not self.transport.active:
                break
        asking.kill(block=False)
        return self.heard > before and bool(self.transport.active)


class _Call:
    """A call under way. It ends with what it returns, or is ended from outside.

    Time is counted in seconds that this process had: one that was stopped, or that asked somebody
    for a password, accuses no host.
    """

    def __init__(self, limit: float, pulse: _Pulse | None = None) -> None:
        self._limit, self._pulse = limit, pulse
        self._over = False

    def __enter__(self) -> None:
        self._caller = gevent.getcurrent()
        self._outer = _calls.get(self._caller)
        _calls[self._caller] = self
        self._watcher = gevent.spawn(self._watch)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        self._watcher.kill(block=False)
        if self._outer is None:
            _calls.pop(self._caller, None)
        else:
            _calls[self._caller] = self._outer

    def end(self, fault: Fault) -> None:
        """Raise `fault` in the one that waits for it."""
        # In the hub it can't happen between the call's end and its notice of that.
        gevent.get_hub().loop.run_callback(self._throw, fault)

    def _throw(self, fault: Fault) -> None:
        if not self._over:
            self._over = True
            self._caller.throw(fault)

    def _watch(self) -> None:
        heard, quiet, waited = 0, 0, 0
        asking: gevent.Greenlet | None = None
        try:
            while True:
                gevent.sleep(1)
                waited += 1
                if self._pulse:
                    quiet = quiet + 1 if self._pulse.heard == heard else 0
                    heard = self._pulse.heard
                    if quiet >= SILENT_S:
                        return self.end(Silent(f"no answer for {SILENT_S} s"))
                    if waited % PROBE_S == 0 and (asking is None or asking.ready()):
                        asking = self._pulse.ask()
                if waited >= self._limit:
                    return self.end(Fault(f"no end after {self._limit:.0f} s"))
        finally:
            if asking is not None:
                asking.kill(block=False)


_calls: WeakKeyDictionary[Any, _Call] = WeakKeyDictionary()
"""By the greenlet that waits."""


class Guard:
    """What stands around the connector of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pulse: _Pulse | None = None
        self._since: float | None = None
        self.lost = ""
        """Why the host does not answer; "": it does, as far as is known."""
        self.cause = ""
        """How that began, in a few words."""
        self.words = ""
        """What the last command that failed said, and which one it was."""
        connector = cast("Any", host.connector)
        connector.connect = self._first
        connector.run_shell_command = self._run
        connector.put_file = self._put
        connector.get_file = self._get

    # -- what pyinfra calls ------------------------------------------------------------------------

    def _first(self) -> None:
        """Raises ConnectError, whatever goes wrong."""
        try:
            self._connect()
        except Exception as error:
            self.words = self._fault(error, "")
            raise ConnectError(self.words) from error

    def _run(self, command: object, *more: object, **arguments: Any) -> tuple[bool, CommandOutput]:
        limit = arguments.get("_timeout") or COMMAND_S
        try:
            done, output = self._call("run_shell_command", limit, command, *more, **arguments)
        except Exception as error:
            line = self._fault(error, _named(command))
            return False, CommandOutput([OutputLine("stderr", line)])
        if not done:
            self.words = f"{_last_words(output)}, of: {_named(command)}"
        return bool(done), output

    def _put(self, source: object, target: str, *more: object, **arguments: Any) -> bool:
        return self._transfer("put_file", f"upload of {target}", source, target, *more, **arguments)

    def _get(self, source: str, target: object, *more: object, **arguments: Any) -> bool:
        what = f"download of {source}"
        return self._transfer("get_file", what, source, target, *more, **arguments)

    def _transfer(self, name: str, what: str, *given: object, **arguments: Any) -> bool:
        try:
            done = bool(self._call(name, TRANSFER_S, *given, **arguments))
        except Exception as error:
            self._say(self._fault(error, what))
            return False
        if not done and not self.words:
            self.words = f"a failure without a word, of: {what}"
        return done

    # -- what this project calls -------------------------------------------------------------------

    def renew(self) -> bool:
        """Connect anew, whatever is there and however long it was silent."""
        self._since = None
        try:
            self._connect()
        except Exception as error:
            self._fault(error, "")
            return False
        return True

    # -- inside ------------------------------------------------------------------------------------

    def _call(self, name: str, limit: float, *given: object, **arguments: Any) -> Any:
        """A method of the connector's class, in time and over a connection that answers."""
        self._ready()
        with _Call(limit, self._pulse):
            made = getattr(type(self._host.connector), name)(
                self._host.connector, *given, **arguments
            )
        self._since, self.lost, self.cause = None, "", ""
        return made

    def _ready(self) -> None:
        """Raises ConnectError where there is no connection, nor can be one."""
        if self._since is not None and time.monotonic() - self._since > PATIENCE_S:
            raise ConnectError(f"no answer for more than {PATIENCE_S} s")
        pulse = self._pulse
        if pulse is None:
            if self._client is not None:
                self._connect()
        elif not pulse.transport.active or (
            time.monotonic() - pulse.at > IDLE_S and not pulse.answers()
        ):
            self._connect()

    def _connect(self) -> None:
        """Raises ConnectError, whatever goes wrong."""
        self._close()
        connector = self._host.connector
        attempts = 1 + (getattr(connector, "data", {}).get("ssh_connect_retries") or 0)
        try:
            with _Call(CONNECT_S * attempts):
                type(connector).connect(connector)
        except ConnectError:
            raise
        except Exception as error:
            raise ConnectError(_brief(error)) from error
        if self._client is not None:
            self._pulse = _Pulse(self._client.get_transport())
        self._since, self.lost, self.cause = None, "", ""

    def _close(self) -> None:
        """Whatever state it is in; the connector stays, and so does the file of a password."""
        self._pulse = None
        connector, client = self._host.connector, self._client
        with gevent.Timeout(PROBE_S, False), suppress(Exception):
            type(connector).disconnect(connector)
            if client is not None:
                client.close()

    @property
    def _client(self) -> Any:
        """paramiko's; None: the connector is none of SSH, or was never connected."""
        return getattr(self._host.connector, "client", None)

    def _fault(self, error: Exception, what: str) -> str:
        """One line of what went wrong; the connection is given up where nothing is known of it."""
        pulse = self._pulse
        broken = pulse is not None and not pulse.transport.active
        lost = isinstance(error, Silent | ConnectError) or broken
        if not isinstance(error, NoTerminal):
            self._close()
        self.words = self._line(error, what, lost)
        if lost:
            self.lost = self.words
            if self._since is None:  # What follows is only that it is still so.
                self._since, self.cause = time.monotonic(), _brief(error)
        return self.words

    def _line(self, error: Exception, what: str, lost: bool) -> str:
        place, login = _address(self._host)
        found, at = _brief(error), f", at: {what}" if what else ""
        if isinstance(error, NoTerminal):
            return (
                f"sudo: found that it asks for a password on {place}{at}; expected a terminal to "
                "ask for it, or leave without one; next: run it in a terminal, or allow the "
                "login NOPASSWD in sudoers"
            )
        if lost:
            step = f"{login} true" if login else "look at the host"
            return f"connection: found {found} of {place}{at}; expected an answer; next: {step}"
        if "Garbage packet" in found:
            return (
                f"connection: found text before the first answer to SFTP from {place}{at}; "
                f"expected a login shell that prints nothing; next: {login} true"
            )
        return (
            f"command: found {found} on {place}{at}; expected it to end; "
            f"next: run the same by hand, {login or 'there'}"
        )

    def _say(self, line: str) -> None:
        echo(f"{self._host.print_prefix}{line}", err=True)


def guard_of(host: Host) -> Guard:
    """The guard of a host that pyinfra has a state for; the first call puts it there."""
    guard = _guards.get(host)
    if guard is None:
        theirs.read_buffer = _read_buffer
        setattr(theirs, "getpass", _ask)  # noqa: B010 - its own has one more argument
        if is_output_active():
            set_echo(_echo)
        logging.getLogger("pyinfra").addFilter(_masked)
        # Without a handler of its own its tracebacks go to the terminal.
        logging.getLogger("paramiko").addHandler(logging.NullHandler())
        guard = _guards[host] = Guard(host)
    return guard


_guards: WeakKeyDictionary[Host, Guard] = WeakKeyDictionary()


def _address(host: Host) -> tuple[str, str]:
    """The host with its address, and the ssh(1) that logs in there; "": it is not reached so."""
    data = cast("dict[str, Any]", getattr(host.connector, "data", None) or {})
    if "ssh_port" not in data:
        return str(host.name), ""
    config = getattr(getattr(host.connector, "client", None), "_ssh_config", None) or {}
    name = data.get("ssh_hostname") or host.name
    port = data.get("ssh_port") or config.get("port") or 22
    user = data.get("ssh_user")
    login = f"ssh -p {port} {user + '@' if user else ''}{name}"
    return f"{host.name} ({name} port {port})", login


def _named(command: object) -> str:
    """A command as a line says it: its beginning, without secrets."""
    lines = str(command).strip().splitlines() or [""]
    text = printable(lines[0].expandtabs())
    return text if len(text) <= 100 and len(lines) == 1 else f"{text[:100]}..."


def _last_words(output: CommandOutput) -> str:
    """What a command that failed said last; of its errors, if it told any."""
    told = [line.strip() for line in output.stderr_lines or output.stdout_lines if line.strip()]
    words = " / ".join(line[:LONGEST] for line in told[-WORDS:])
    return printable(words.expandtabs()) or "a failure without a word"


def _brief(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no end in time"
    seen = error.__context__
    reasons = getattr(seen, "errors", None)  # paramiko's own text lacks them.
    said = next(map(str, reasons.values()), "") if isinstance(reasons, dict) else str(error)
    text = printable(" ".join((said or str(error)).split()))[:LONGEST]
    return (
        text
        if text and isinstance(error, Fault | ConnectError)
        else (f"{type(error).__name__}: {text}" if text else type(error).__name__)
    )


def _ask(prompt: str) -> str:
    """A password of whoever sits at the terminal. Raises NoTerminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        raise NoTerminal("sudo asks for a password") from error
    from getpass import getpass

    return getpass(prompt)


def _read_buffer(
    name: str,
    io: Any,
    output_queue: Queue[OutputLine],
    print_output: bool = False,
    print_func: Callable[[str], str] | None = None,
) -> None:
    """What pyinfra reads a command's output with, bounded: lines without control characters."""
    characters = lines = 0
    for line in _lines(_chunks(name, io)):
        characters, lines = characters + len(line), lines + 1
        if characters > LIMIT or lines > MOST_LINES:
            caller = _caller()
            call = _calls.get(caller) if caller is not None else None
            if call:
                call.end(Fault(f"more than {LIMIT} characters or {MOST_LINES} lines of output"))
            return
        text = _visible(line.decode("utf-8", errors="replace"))
        output_queue.put(OutputLine(name, text))
        if print_output:
            echo(print_func(text) if print_func else text, err=True)


def _echo(message: object = None, **how: Any) -> None:
    """What pyinfra says with: with -vv all commands, and the variables of _env in them."""
    click.echo(masked(message) if isinstance(message, str) else message, **how)


def _masked(record: logging.LogRecord) -> bool:
    """The same of what it logs."""
    record.msg, record.args = masked(record.getMessage()), ()
    return True


def _caller() -> Any:
    """The greenlet that has this one read for it."""
    spawning = getattr(gevent.getcurrent(), "spawning_greenlet", None)
    return spawning() if spawning else None


def _visible(line: str) -> str:
    """Tabs stay: they separate what snapshots tell."""
    return "\t".join(p if p.isprintable() else printable(p) for p in line.split("\t"))


def _chunks(name: str, io: Any) -> Iterator[bytes]:
    channel = getattr(io, "channel", None)
    if channel is None:
        return iter(lambda: io.readline(1 << 16), b"")
    receive = channel.recv_stderr if name == "stderr" else channel.recv
    return iter(lambda: receive(1 << 16), b"")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in whole)
        if len(rest) > LIMIT:
            break
    if rest:
        yield rest
