"""A PostgreSQL of one's own: a folder and a socket below it, for as long as it is wanted."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SYSTEM = Path("/usr/lib/postgresql")
"""Where Debian's packages have it, a folder for each version."""

QUICK = ("fsync=off", "listen_addresses=", "max_connections=40")
"""No test outlives its server's power, and none is asked over a network."""


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs; None: there is none."""
    found = sorted(SYSTEM.glob("*/bin"), key=lambda path: int(path.parent.name))
    if found:
        return found[-1]
    path = shutil.which("initdb")
    return Path(path).parent if path else None


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of an empty database; `folder` is empty, and short enough for a socket's name."""
    bin_ = programs()
    assert bin_ is not None
    # Ends at once when this process is gone, however that was.
    owner = ["setpriv", "--pdeathsig=QUIT"]
    if os.geteuid() == 0:  # It refuses root.
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        owner += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data = folder / "data"
    made: list[str | Path] = [
        bin_ / "initdb",
        "-D",
        data,
        "-U",
        "fleet",
        "-A",
        "trust",
        "-E",
        "UTF8",
    ]
    done = subprocess.run(
        [*owner, *made, "--locale=C.UTF-8", "--no-sync"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    options = [word for one in QUICK for word in ("-c", one)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*owner, bin_ / "postgres", "-D", data, "-k", folder, *options],
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait(server, [bin_ / "pg_isready", "-q", "-h", folder], folder / "log")
        yield f"postgresql://fleet@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(timeout=60)


def _wait(server: subprocess.Popen[bytes], asked: Sequence[str | Path], log: Path) -> None:
    """Until it answers."""
    for _ in range(600):
        if subprocess.run(asked, check=False).returncode == 0:
            return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace"))
