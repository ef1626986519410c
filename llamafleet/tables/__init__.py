"""Figures as data, one module a table: every row is validated and says where it is from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

UNVERIFIED = "UNVERIFIED"
"""How the source of a figure begins that was recalled, not measured or looked up."""

NVIDIA_URL = "https://developer.download.nvidia.com/compute/cuda"
"""repos/NAME/MACHINE/ holds a repository, the path of a Runfile the runfile."""

FOLDER = Path(__file__).parent

Version = tuple[int, ...]

_folders = [FOLDER]


def parse_version(text: str) -> Version:
    """The leading numbers of a dotted version: (580, 65, 6) of "580.65.06", () of "N/A"."""
    leading = re.match(r"([0-9]{1,18}\.)*[0-9]{1,18}(?![0-9])|", text)
    return tuple(int(part) for part in leading[0].split(".") if part) if leading else ()


def text(name: str) -> str:
    """A file of this folder. Raises FileNotFoundError."""
    paths = [folder / name for folder in _folders]
    return _read(next((path for path in paths if path.exists()), FOLDER / name))


@contextmanager
def overlaid(folder: Path) -> Iterator[None]:
    """Within it the files of `folder` stand in for those of the same name."""
    _folders.insert(0, folder)
    try:
        yield
    finally:
        _folders.pop(0)


@lru_cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
