"""Remove builds that another one stands for, or models that no profile names.

Run by the account that they belong to.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from llamafleet.onhost.job import EXIT_FAILED
from llamafleet.protocol.job import BUILD
from llamafleet.protocol.place import PROOF

REMOVED = ".removed-"
"""Before the name of a build that is being removed: no build has such a name."""


def main(argv: Sequence[str]) -> int:
    """`discard --versions DIR [--current LINK] -- NAME...`: 0, also where one in use is left."""
    parser = argparse.ArgumentParser(prog="discard", description=__doc__)
    parser.add_argument("--versions", type=Path, required=True, help="the folder of all of them")
    parser.add_argument("--current", type=Path, help="the link to one of them")
    parser.add_argument("names", nargs="+", metavar="NAME")
    options = parser.parse_args(argv)
    # What was cut off while it was removed.
    for left in options.versions.glob(f"{REMOVED}*"):
        shutil.rmtree(left, ignore_errors=True)
    builds = [options.versions / name for name in options.names]
    problems = [said for one in builds if (said := _discard(one, options.current))]
    print(*problems, sep="\n", end="", file=sys.stderr)
    return EXIT_FAILED if problems else 0


def _discard(build: Path, current: Path | None) -> str:
    """Remove one; why it can't be. One that is in use stays, for the next run to remove."""
    if build.is_symlink() or not build.is_dir():
        return ""
    if user := in_use(build, current):
        print(f"{build}: left, used by process {user}")
        return ""
    try:
        # Without its proof it is none, should the removal be cut off.
        for proof in (BUILD, PROOF):
            (build / proof).unlink(missing_ok=True)
        gone = build.rename(build.with_name(f"{REMOVED}{build.name}"))
        shutil.rmtree(gone)
    except OSError as error:
        return f"{build}: found that it can't be removed ({error}); next: rm -r {build}"
    return ""


def in_use(folder: Path, current: Path | None = None) -> int | None:
    """A process that uses a file below `folder`, or may do so by way of `current`.

    Of other accounts' the command line alone can be read, so the link there counts as any build.
    """
    inside, link = f"{folder.resolve()}/".encode(), f"{current}/".encode() if current else b""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        maps, line = _read(entry / "maps"), _read(entry / "cmdline")
        linked = bool(link) and link in line and not maps
        if inside in maps or inside in line or linked or _opened(entry, inside):
            return int(entry.name)
    return None


def _opened(process: Path, inside: bytes) -> bool:
    """It has a file below that folder open: a model that is read, and not mapped."""
    try:
        found = [one.readlink() for one in (process / "fd").iterdir()]
    except OSError:
        return False
    return any(os.fsencode(one).startswith(inside) for one in found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
