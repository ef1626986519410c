"""What root must not run: code of an environment that another account can write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from llamafleet.facts.environment import NoAnswer
from llamafleet.onhost.job import JobFailed, refuse_foreign

SITES = tuple(
    f"{lib}/python*/{kind}-packages"
    for lib in ("lib", "lib64", "local/lib")
    for kind in ("site", "dist")
)
"""Folders of a prefix whose .pth files an interpreter runs at its start."""


def refuse_foreign_site(python: str) -> None:
    """Read what `python` would run at its start, and run none of it. Raises NoAnswer.

    Its own answer counts for nothing here: what runs at its start can alter it.
    """
    trusted(python)
    for prefix in _prefixes(Path(python)):
        for pattern in SITES:
            for site in sorted(prefix.glob(pattern)):
                trusted_folder(site)


def trusted_folder(site: Path) -> None:
    """With each module in it, and each folder that its .pth files name. Raises NoAnswer."""
    _trusted_entries(site)
    for file in sorted(site.glob("*.pth")):
        for named in _named(file):
            _trusted_entries(site / named)


def trusted(path: str | Path) -> None:
    """Raises NoAnswer where another account can put something there."""
    try:
        refuse_foreign(Path(path))
    except JobFailed as problem:
        found = str(problem).partition("; ")[0]
        raise NoAnswer(
            f"rights: {found}, and root; expected the environment's own user, as another "
            "account can write there; next: run the same command as that user"
        ) from None


def _trusted_entries(folder: Path) -> None:
    trusted(folder)
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                trusted(entry.path)


def _prefixes(python: Path) -> Iterator[Path]:
    """Its own, and that of the Python which it was made of (pyvenv.cfg)."""
    for place in (python, python.resolve()):
        prefix = place.parent.parent
        yield prefix
        try:
            config = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if home := re.search(r"^home\s*=\s*(.+?)\s*$", config, re.MULTILINE):
            yield Path(home[1]).parent


def _named(pth: Path) -> list[str]:
    """Folders that it adds to the path: site.py's rules."""
    try:
        lines = pth.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = [line.rstrip() for line in lines if not line.startswith("#")]
    return [line for line in lines if line and not line.startswith(("import ", "import\t"))]
