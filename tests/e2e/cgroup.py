"""A control group for each booted host.

systemd-nspawn makes one beside its caller's. Two hosts of one caller would share it, and with it
those of all units of one name: one host ends a unit, and the other's can start no process in it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
ENTER = 'for group in $1; do echo $$ > "$group/cgroup.procs"; done; shift; exec "$@"'
"""Shell: have itself, and what it becomes, in these groups."""


def made(name: str) -> list[Path]:
    """Groups of that name below our own, in each hierarchy that systemd keeps."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if controllers == "name=systemd":
            mounted = MOUNTED / "systemd"
        elif number == "0":
            mounted = MOUNTED if (MOUNTED / "cgroup.procs").exists() else MOUNTED / "unified"
        else:
            continue
        group = mounted / path.lstrip("/") / name
        if mounted.is_dir():
            group.mkdir(exist_ok=True)
            found.append(group)
    return found


def inside(groups: list[Path], argv: list[str]) -> list[str]:
    """The command that runs `argv` in these groups."""
    return ["sh", "-c", ENTER, "sh", " ".join(map(str, groups)), *argv]


def removed(groups: list[Path]) -> None:
    """Remove them and those in them, where no process is left."""
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
