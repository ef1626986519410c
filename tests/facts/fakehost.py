"""A host made of recorded files and small programs, which the real script reads."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import Layout

BASE_TOOLS = (
    *("cat", "date", "dd", "df", "env", "grep", "head", "id", "ls", "nproc", "readlink", "sed"),
    *("setsid", "sha256sum", "sh", "sleep", "sort", "stat", "tail", "uname"),
)
"""What every host has, busybox ones included."""

SHELLS = {"sh": ["sh"], "dash": ["dash"], "busybox": ["busybox", "sh"], "bash": ["bash", "--posix"]}


def shell_command(name: str) -> list[str]:
    """The command with its absolute path, so that PATH can be replaced."""
    program, *rest = SHELLS[name]
    return [shutil.which(program) or program, *rest]


@dataclass
class FakeHost:
    folder: Path
    shell: str = "sh"

    def __post_init__(self) -> None:
        self.root = self.folder / "root"
        self.bin = self.folder / "bin"
        self.home = self.folder / "home"
        for folder in (self.root, self.bin, self.home):
            folder.mkdir()
        for name in BASE_TOOLS:
            self.borrow(name)
        self._hide_account()
        # Nobody may enter a test's own folders. Real rights: test_rights.py.
        self.program(
            "setpriv", 'while case $1 in --*) ;; *) false ;; esac; do shift; done\nexec "$@"'
        )
        self.layout = Layout(
            scope="system",
            prefix=str(self.folder / "prefix"),
            etc=str(self.folder / "etc"),
            state=str(self.folder / "state"),
            units=str(self.folder / "units"),
        )
        self.files: tuple[str, ...] = ()
        self.extra: tuple[str, ...] = ()
        self.folders: tuple[str, ...] = ()
        self.ports: tuple[int, ...] = ()
        self.parameters = ""
        """Further ones of the script, a line each."""
        self.environment: dict[str, str] = {}

    @property
    def prefix(self) -> Path:
        return Path(self.layout.prefix)

    @property
    def state(self) -> Path:
        return Path(self.layout.state)

    def borrow(self, name: str) -> None:
        """Take over a program of this machine."""
        path = shutil.which(name)
        assert path, f"this machine has no {name}"
        (self.bin / name).symlink_to(path)

    def _hide_account(self) -> None:
        """This machine may have the account `llamafleet`; the host has none."""
        real = (self.bin / "id").readlink()
        (self.bin / "id").unlink()
        self.program("id", f'[ "$*" != "-u llamafleet" ] && exec {real} "$@"')

    def program(self, path: Path | str, body: str, interpreter: str = "/bin/sh") -> Path:
        """Write a program; a plain name goes on PATH."""
        path = self.bin / path if isinstance(path, str) else path
        return self.write(path, f"#!{interpreter}\n{body}\n", mode=0o755)

    def write(self, path: Path, content: str | bytes, mode: int = 0o644) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One that is borrowed is a link to this machine's own.
        if path.is_symlink():
            path.unlink()
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def real_rights(self) -> None:
        """Let setpriv take rights away, and others enter: only where this runs as root."""
        (self.bin / "setpriv").unlink()
        self.borrow("setpriv")
        for folder in (self.folder, *self.folder.parents):
            if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
                folder.chmod(0o755)

    def lines(self, smi_limit_s: int = 10) -> list[str]:
        """What the script prints; asserts the promises it makes on every host."""
        parameters = f"LF_ROOT='{self.root}'\nLF_SMI_LIMIT={smi_limit_s}\n{self.parameters}"
        script = parameters + render(self.layout, self.files, self.extra, self.folders, self.ports)
        environment = {"PATH": str(self.bin), "HOME": str(self.home), **self.environment}
        done = subprocess.run(
            [*shell_command(self.shell), "-c", script],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        assert done.stderr == b""
        lines = done.stdout.decode().split("\n")[:-1]
        assert lines[0] == "#llamafleet-snapshot 1"
        assert lines[-1] == "#end"
        return lines

    def snapshot(self, smi_limit_s: int = 10) -> HostSnapshot:
        return parse(self.lines(smi_limit_s))
