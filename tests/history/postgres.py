"""A PostgreSQL of one's own: a folder and a socket below it, for as long as it is wanted."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
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
    owner: Sequence[str] = ()
    if os.geteuid() == 0:  # It refuses root.
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        owner = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
    data = folder / "data"

    def run(*argv: str | Path) -> None:
        done = subprocess.run([*owner, *argv], cwd=folder, capture_output=True, text=True,
                              timeout=60, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    run(bin_ / "initdb", "-D", data, "-U", "fleet", "-A", "trust", "-E", "UTF8",
        "--locale=C.UTF-8", "--no-sync")  # fmt: skip
    options = " ".join(f"-c {one}" for one in QUICK) + f" -k {folder}"
    run(bin_ / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    try:
        yield f"postgresql://fleet@/postgres?host={folder}"
    finally:
        run(bin_ / "pg_ctl", "-D", data, "-m", "immediate", "stop")
