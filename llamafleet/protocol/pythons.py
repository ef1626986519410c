"""The Pythons that a host may have."""

from __future__ import annotations

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""Oldest first. For each of them every pinned wheel exists (checked against the index)."""
RANGE = f"{PYTHONS[0]} to {PYTHONS[-1]}"
"""For people."""


def minor(version: str) -> str:
    """As "3.12" of "3.12.3" or "3.12.0rc1"."""
    return ".".join(version.split(".")[:2])
