"""This machine: with whose rights commands run, where fix's own folders are, and its snapshot."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llamafleet.facts.environment import NoAnswer, Said
from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import SnapshotError, parse
from llamafleet.facts.snapshot import TIMEOUT_S, render
from llamafleet.layout import AS_ACCOUNT, USER, Layout
from llamafleet.onhost.job import end_session
from llamafleet.protocol.job import PATH
from llamafleet.settings import Settings
from llamafleet.zipapps import host_zipapp, pip_zipapp

ROOT_FOLDER = "/var/lib/llamafleet-fix"
DYNAMIC = range(61184, 65520)
"""Numbers of users that nobody has for long: systemd's UIDS-GIDS, "Special systemd UID ranges"."""
MOST = 16 << 20
"""Bytes of what a command says last that are kept."""
NO_TRACES = {"PYTHONDONTWRITEBYTECODE": "1"}
"""To look at an environment leaves nothing in it: uv compiles no files, as pip does."""
CLOSED_S = 2.0
"""For what was said before a command ended to be read."""


@dataclass(frozen=True)
class Machine:
    """Where and as whom fix works."""

    layout: Layout
    as_account: tuple[str, ...]
    """Words before a command that give up root's rights; empty: it is not root who asks."""
    account: int | None
    """uid of the account that builds where root asks."""
    environ: Mapping[str, str]
    """The caller's variables."""

    @property
    def clean(self) -> dict[str, str]:
        """Variables of a job: none of the caller's."""
        return {"PATH": PATH, "HOME": self.layout.state, "LC_ALL": "C.UTF-8"}

    @property
    def changes(self) -> Path:
        """Backups and journals, which the account can't write."""
        return Path(self.layout.prefix, "changes")

    def ask(
        self, argv: Sequence[str], seconds: float, variables: Mapping[str, str] | None = None
    ) -> Said:
        """Run a command as its user would, with its own variables and these on top."""
        env = {**self.environ, **NO_TRACES, **(variables or {})}
        return run([*self.as_account, *argv], seconds, env)


def run(argv: Sequence[str], seconds: float, env: Mapping[str, str]) -> Said:
    """How it ended; it and what it started in its session are gone by then."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return Said(127, "", f"{argv[0]}: {error.strerror or error}")
    assert process.stdout is not None and process.stderr is not None
    ends = [_End(process.stdout), _End(process.stderr)]
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        end_session(process)
        return Said(None, "", "it did not end")
    finally:
        end_session(process)
    out, err = (end.text() for end in ends)
    return Said(process.returncode, out, err)


class _End(threading.Thread):
    """The end of what comes out of a pipe: a command that never stops saying something fills no
    memory, and one that goes on elsewhere with the pipe in its hands keeps nobody waiting."""

    def __init__(self, pipe: IO[str]) -> None:
        super().__init__(daemon=True)
        self._pipe, self._kept = pipe, bytearray()
        self.start()

    def run(self) -> None:
        while piece := os.read(self._pipe.fileno(), 1 << 16):
            self._kept += piece
            if len(self._kept) > 2 * MOST:
                del self._kept[:-MOST]

    def text(self) -> str:
        self.join(CLOSED_S)
        if not self.is_alive():
            self._pipe.close()
        return bytes(self._kept[-MOST:]).decode("utf-8", "replace")


def machine(euid: int, home: Path, environ: Mapping[str, str]) -> Machine:
    """Of this user. Raises NoAnswer where root finds no other account to work as."""
    if euid:
        layout = Layout(
            scope="user",
            prefix=str(home / ".local/share/llamafleet/fix"),
            etc=str(home / ".config/llamafleet/fix"),
            state=str(home / ".local/state/llamafleet/fix"),
            units="",
        )
        return Machine(layout, (), None, environ)
    number = _free_number()
    names = {f"--reuid={USER}": f"--reuid={number}", f"--regid={USER}": f"--regid={number}"}
    names["--init-groups"] = "--clear-groups"
    words = tuple(names.get(word, word) for word in AS_ACCOUNT)
    layout = Layout("user", ROOT_FOLDER, f"{ROOT_FOLDER}/etc", f"{ROOT_FOLDER}/state", "")
    said = run([*words, "true"], 10, {"PATH": PATH})
    if said.status != 0:
        raise NoAnswer(
            f"rights: found that root can't become another user ({said.error.strip()[-200:]}); "
            "expected setpriv of util-linux, and a free number of a user; next: run it as a user"
        )
    return Machine(layout, words, number, environ)


def _free_number() -> int:
    """Of a user that does not exist, and that no process has."""
    used = {one.pw_uid for one in pwd.getpwall()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                used.add(entry.stat().st_uid)
            except OSError:
                continue
    return next(number for number in DYNAMIC if number not in used)


def make_folders(here: Machine) -> None:
    """Make what fix works in, with its code for jobs. Raises OSError.

    For root anew each time: what another account wrote there is not used again.
    """
    layout = here.layout
    prefix, state, versions = Path(layout.prefix), Path(layout.state), Path(layout.versions)
    if here.account is not None:
        for left in (state, versions):
            shutil.rmtree(left, ignore_errors=True)
    for folder in (prefix, Path(layout.configs), state, versions, here.changes):
        folder.mkdir(parents=True, exist_ok=True)
    here.changes.chmod(0o700)
    if here.account is not None:
        # Also where they were made before, with whatever umask.
        for folder in (prefix, Path(layout.configs)):
            folder.chmod(0o755)
        for folder in (state, versions):
            os.chown(folder, here.account, here.account)
    for path, data in ((layout.zipapp, host_zipapp()), (layout.pip, pip_zipapp())):
        if not Path(path).is_file() or Path(path).read_bytes() != data:
            Path(path).write_bytes(data)
        if here.account is not None:
            Path(path).chmod(0o644)


def read_machine(here: Machine, settings: Settings) -> HostSnapshot:
    """Its snapshot, by the script that hosts are read with. Raises NoAnswer."""
    chosen = (settings.toolkit_root, settings.host_compiler, settings.python, settings.model)
    extra = tuple(path for path in chosen if path and path.startswith("/"))
    script = render(here.layout, (), extra)
    try:
        done = subprocess.run(
            ["sh"],
            input=script.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
        return parse(done.stdout.decode("utf-8", errors="replace").split("\n"))
    except (OSError, subprocess.TimeoutExpired, SnapshotError) as error:
        raise NoAnswer(f"this machine can't be read: {error}") from error
