"""The snapshot's command as sshd hands it to a login shell, whichever that is."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest
from pyinfra.api.command import StringCommand
from pyinfra.connectors.util import make_unix_command

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import Snapshot, parse
from llamafleet.layout import Layout
from llamafleet.managed import by_path, folders

LAYOUT = Layout.system()
ONE_ARGUMENT_MAX = 131072
"""Bytes that Linux takes as one argument of a program: MAX_ARG_STRLEN, execve(2)."""
ODD = ("/no such/$(touch gone)", '/it\'s "odd" `id` % \\n !x', "/ü/\\012")
"""Paths with all that some shell changes."""


@pytest.fixture(params=["sh", "bash", "tcsh", "fish", "zsh", "ksh"])
def login_shell(request: pytest.FixtureRequest) -> str:
    path = shutil.which(request.param)
    if not path:
        pytest.skip(f"this machine has no {request.param}")
    return path


def command(extra: tuple[str, ...] = ()) -> str:
    """As pyinfra sends it."""
    lists = {"files": tuple(by_path(LAYOUT)), "folders": folders(LAYOUT), "extra": extra}
    places = {"etc": LAYOUT.etc, "units": LAYOUT.units}
    inner = Snapshot().command("system", LAYOUT.prefix, LAYOUT.state, **places, **lists)
    return str(make_unix_command(StringCommand(inner)).get_raw_value())


def read(shell: str, text: str) -> HostSnapshot:
    done = subprocess.run(
        [shell, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return parse(done.stdout.split("\n"))


def test_every_login_shell_hands_it_on(login_shell: str) -> None:
    assert read(login_shell, command()).uid == os.getuid()


def test_and_once_more_quoted_as_for_sudo(login_shell: str) -> None:
    """`env` stands for sudo: it starts the shell that pyinfra names."""
    inner = make_unix_command(StringCommand("env", command())).get_raw_value()
    assert read(login_shell, inner).uid == os.getuid()


def test_paths_with_all_that_a_shell_changes(
    login_shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = tmp_path / 'it\'s ! \\n % "x"'
    there.touch()
    assert read(login_shell, command((*ODD, str(there)))).extra_there == (str(there),)
    assert list(tmp_path.iterdir()) == [there]


def test_it_is_one_line_and_fits_one_argument_quoted_twice() -> None:
    text = make_unix_command(StringCommand(command())).get_raw_value()
    assert text.isprintable() and text.isascii() and "!" not in text
    assert len(text) < 80_000 < ONE_ARGUMENT_MAX


def test_on_a_terminal_as_sudo_may_want_one() -> None:
    """requiretty of sudoers(5), with _get_pty = True: line ends come as two characters."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", command()])
    printed = b""
    try:
        while part := os.read(terminal, 65536):
            printed += part
    except OSError:  # The other end is closed.
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    assert b"\r\n" in printed
    snapshot = parse(printed.decode().split("\n"))
    assert snapshot.uid == os.getuid() and snapshot.os_id and snapshot.unseen == ""
