"""What root tries of an installation, with the rights of the account that builds."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafleet.onhost.job import STOPPER, Job, JobFailed, end_session, judge
from llamafleet.protocol.job import PATH

LIMIT_S = 1800.0
"""The longest that one command may take: a probe for all architectures took 100 s on one core."""
LIMIT_OCTETS = 1 << 20
"""Of a command's output; it is ended beyond that."""
LINGER_S = 1.0
"""How long output is waited for once a command has ended: what it started may hold the pipe."""


@dataclass(frozen=True)
class Account:
    """Whose rights a command gets."""

    uid: int
    gid: int

    @classmethod
    def named(cls, name: str | None) -> Account:
        """None: whoever this process is. Raises JobFailed."""
        if name is None:
            return cls(os.geteuid(), os.getegid())
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            raise JobFailed(
                f"found no account {name!r}; expected the one that builds; next: deploy again"
            ) from None
        if found.pw_uid == 0:
            raise JobFailed(f"account {name!r}: found uid 0; expected one without root's rights")
        return cls(found.pw_uid, found.pw_gid)

    @property
    def another(self) -> bool:
        return self.uid != os.geteuid()


@dataclass(frozen=True)
class Bench:
    """A fresh folder that belongs to an account, in one of our own, and what runs there."""

    job: Job
    account: Account
    folder: Path

    def environment(self, *first: Path) -> dict[str, str]:
        """Nothing of the job's own: no proxy, no credentials. `first`: folders of programs."""
        return {
            "PATH": ":".join([*map(str, first), PATH]),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
        }

    def run(self, argv: Sequence[str], env: dict[str, str], limit_s: float = LIMIT_S) -> str:
        """What a command says, which is logged too; it and all that it started have ended then.

        Raises JobFailed where it can't be started, ends with another status than 0, or not in time.
        """
        self.job.log("$ " + " ".join(argv))
        process = None
        try:
            with STOPPER.hold():
                process = self._start(argv, env)
            said = _read(process, limit_s)
        finally:
            if process:
                end_session(process)
        self.job.log(said)
        judge(argv, process.returncode)
        return said

    def _start(self, argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str]:
        another = self.account.another
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=self.folder,
                start_new_session=True,
                encoding="utf-8",
                umask=0o022,
                user=self.account.uid if another else None,
                group=self.account.gid if another else None,
                extra_groups=[] if another else None,
            )
        except OSError as error:
            raise JobFailed(f"can't run {argv[0]}: {error}") from error


@contextlib.contextmanager
def bench(job: Job, account: Account, below: Path) -> Iterator[Bench]:
    """A folder for one trial, made in `below`, where nobody else can write, and removed again."""
    folder = Path(tempfile.mkdtemp(prefix="trial.", dir=below))
    try:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)
        yield Bench(job, account, folder)
    finally:
        # By handles of folders, following no link; it may hold anything by now, however deep.
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)


def _read(process: subprocess.Popen[str], limit_s: float) -> str:
    """Output of a process, printable, until it has ended. Raises JobFailed at either limit."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    name = Path(str(process.args[0])).name  # type: ignore[index]
    said, end = b"", time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if process.poll() is not None:
                end = min(end, time.monotonic() + LINGER_S)
            if selector.select(0.2):
                part = os.read(pipe, 1 << 16)
                said += part
                if not part:
                    break
            if len(said) > LIMIT_OCTETS:
                raise JobFailed(f"{name} said more than {LIMIT_OCTETS} bytes")
            if time.monotonic() > end:
                if process.poll() is None:
                    raise JobFailed(f"{name} did not end within {limit_s:.0f} s")
                break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, end - time.monotonic()))
    if process.poll() is None:
        raise JobFailed(f"{name} did not end within {limit_s:.0f} s")
    return re.sub(r"[^\n\t -~\u00a0-\uffff]", "?", said.decode("utf-8", "replace"))
