"""The guard around a host's connection: each call ends, and no exception gets through."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from queue import Queue
from typing import Any

import gevent
import pytest
from paramiko import SSHException
from paramiko.sftp import SFTPError
from pyinfra.api import Config, Inventory, State, StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.connectors import util
from pyinfra.connectors.fake import FakeConnector
from pyinfra.connectors.util import CommandOutput, OutputLine

from llamafleet import connection
from llamafleet.connection import Guard, NoTerminal, guard_of
from llamafleet.received import LIMIT

Does = Callable[..., Any]


def host_that(monkeypatch: pytest.MonkeyPatch, does: Does, name: str = "@fake/a") -> Host:
    """A connected host whose connector does this for each command, file and connection."""
    inventory = Inventory(([name], {}))
    State(inventory, Config())
    (host,) = inventory
    host.connect(raise_exceptions=True)
    for method in ("run_shell_command", "put_file", "get_file", "connect"):
        monkeypatch.setattr(type(host.connector), method, does)
    guard_of(host)
    return host


def raises(error: Exception) -> Does:
    def does(*_: object, **__: object) -> None:
        raise error

    return does


ODD = [
    SSHException("SSH session not active"),
    EOFError(),
    OSError(104, "Connection reset by peer"),
    SFTPError("Garbage packet received"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ValueError("\x1b[2J\nfake PASS"),
    NoTerminal("sudo asks for a password"),
]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_an_exception_is_a_command_that_failed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    host = host_that(monkeypatch, raises(error))
    done, output = host.run_shell_command(StringCommand("true"))
    (line,) = output.stderr_lines
    assert not done and line.isprintable() and guard_of(host).words == line
    assert "; expected " in line and "; next: " in line and "@fake/a" in line
    assert host.put_file(io.BytesIO(b""), "/target") is False
    assert host.get_file("/source", io.BytesIO()) is False


def test_a_connection_fails_in_the_one_way_that_pyinfra_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error in ODD:
        host = host_that(monkeypatch, lambda *_, **__: None)
        monkeypatch.setattr(FakeConnector, "connect", raises(error))
        host.connected = False
        with pytest.raises(ConnectError, match="connection: found "):
            host.connect(raise_exceptions=True, show_errors=False)
        monkeypatch.undo()


def test_what_takes_too_long_is_ended_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_that(monkeypatch, lambda *_, **__: gevent.sleep(60))
    begun = time.monotonic()
    done, output = host.run_shell_command("sleep 60\nmore", _timeout=2)
    assert not done and 1 < time.monotonic() - begun < 40
    assert "no end after 2 s on @fake/a, at: sleep 60...; expected it to end" in output.stderr
    assert not connection._calls, "nothing is left of it"
    monkeypatch.setattr(connection, "CONNECT_S", 1)
    assert guard_of(host).renew() is False
    assert "no end after 1 s" in guard_of(host).lost


def test_time_that_this_process_did_not_have_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def does(*_: object, **__: object) -> tuple[bool, CommandOutput]:
        gevent.sleep(0.1)
        time.sleep(3)  # As a question for a password stops everything.
        gevent.sleep(0.1)
        return True, CommandOutput([])

    host = host_that(monkeypatch, does)
    assert host.run_shell_command("true", _timeout=2)[0]


class Silence:
    """A transport from which nothing comes, or something now and then."""

    def __init__(self, talks: bool = False) -> None:
        self.active, self.asked, self.talks = True, 0, talks
        self.packetizer = self

    def read_message(self) -> str:
        return "message"

    def set_keepalive(self, seconds: int) -> None:
        """As paramiko's."""

    def global_request(self, kind: str, wait: bool) -> None:
        self.asked += 1
        if self.talks:
            self.packetizer.read_message()


@pytest.mark.parametrize("talks", [True, False])
def test_a_host_is_asked_for_a_sign_of_life(monkeypatch: pytest.MonkeyPatch, talks: bool) -> None:
    monkeypatch.setattr(connection, "SILENT_S", 3)
    monkeypatch.setattr(connection, "PROBE_S", 1)

    def does(*_: object, **__: object) -> tuple[bool, CommandOutput]:
        gevent.sleep(6)
        return True, CommandOutput([])

    host = host_that(monkeypatch, does)
    guard, transport = guard_of(host), Silence(talks)
    guard._pulse = connection._Pulse(transport)
    done, output = host.run_shell_command("true")
    assert transport.asked > 1 and done is talks
    assert bool(guard.lost) is not talks
    if not talks:
        assert "connection: found no answer for 3 s of @fake/a, at: true" in output.stderr


def test_one_that_stays_silent_is_not_waited_for_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = host_that(monkeypatch, raises(ConnectError("no route")))
    guard = guard_of(host)
    assert guard.renew() is False and guard.lost
    now = time.monotonic()
    monkeypatch.setattr(connection.time, "monotonic", lambda: now + connection.PATIENCE_S + 5)
    _, output = host.run_shell_command("true")
    assert f"no answer for more than {connection.PATIENCE_S} s" in output.stderr


def test_the_words_of_a_failed_command_are_kept_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [OutputLine("stdout", "no word"), OutputLine("stderr", "")]
    told += [OutputLine("stderr", f"{number} \x1b[2J" + "x" * 999) for number in range(9)]
    host = host_that(monkeypatch, lambda *_, **__: (False, CommandOutput(told)))
    assert not host.run_shell_command("useradd x")[0]
    words = guard_of(host).words
    assert words.startswith("6 \\x1b[2Jxxx") and words.endswith(", of: useradd x")
    assert len(words) < 700 and " / 8 " in words


def read(stream: bytes, **given: Any) -> list[str]:
    queue: Queue[OutputLine] = Queue()
    connection._read_buffer("stdout", io.BytesIO(stream), queue, **given)
    return [line.line for line in queue.queue]


def test_output_is_lines_without_control_characters() -> None:
    assert read(b"a\tb\r\n\x1b[2Jc\xff\n\nlast") == ["a\tb", "\\x1b[2Jc\ufffd", "", "last"]


@pytest.mark.parametrize("stream", [b"\n" * 10**6, b"x" * (2 * LIMIT), b"ab\n" * LIMIT])
def test_more_than_a_host_may_say_is_not_kept(stream: bytes) -> None:
    begun = time.process_time()
    kept = read(stream)
    assert len(kept) <= connection.MOST_LINES and sum(map(len, kept)) <= LIMIT
    assert time.process_time() - begun < 10


def test_a_flood_ends_the_command_that_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyinfra.connectors.local import LocalConnector

    inventory = Inventory((["@local"], {}))
    State(inventory, Config())
    (host,) = inventory
    guard_of(host)
    assert util.read_buffer is connection._read_buffer and LocalConnector
    begun = time.monotonic()
    done, output = host.run_shell_command("yes")
    assert not done and "lines of output" in output.stderr
    assert time.monotonic() - begun < 30


def test_there_is_one_guard_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_that(monkeypatch, lambda *_, **__: (True, CommandOutput([])))
    assert guard_of(host) is guard_of(host) and isinstance(guard_of(host), Guard)
    assert host.run_shell_command("true")[0]


def test_sudo_that_asks_without_a_terminal_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_terminal(*_: object) -> int:
        raise OSError(6, "No such device or address")

    monkeypatch.setattr(connection.os, "open", no_terminal)
    with pytest.raises(NoTerminal):
        connection._ask("password: ")
