"""The Pythons that a host may have."""

from __future__ import annotations

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""Oldest first. For each of them every pinned wheel exists (checked against the index)."""
RANGE = f"{PYTHONS[0]} to {PYTHONS[-1]}"
"""For people."""


MODULES = (
    *("_ctypes", "_ssl", "ctypes", "fcntl", "hashlib", "json", "mmap", "resource", "shutil"),
    *("ssl", "statistics", "subprocess", "urllib.request", "venv", "zipfile", "zlib"),
)
"""What a host's jobs import of the standard library and a distribution may leave out, as Debian's
python3-minimal does: what the code there names, venv, and what pip cannot do without."""


def minor(version: str) -> str:
    """As "3.12" of "3.12.3" or "3.12.0rc1"."""
    return ".".join(version.split(".")[:2])
