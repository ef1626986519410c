"""Fuzz targets: one for each reader of what hosts, files and other programs say.

A reader is given recorded inputs that were changed here and there, and others that nobody ever
wrote. It must end in time, raise nothing but its documented error, and return values of their
types, in bounds, without a character that a terminal would obey.

A run of the test suite gives each target the same few hundred inputs; LLAMAFLEET_FUZZ=long gives
each EXAMPLES["long"] new ones, and takes hours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

PROFILE = os.environ.get("LLAMAFLEET_FUZZ") or "short"
EXAMPLES = {"short": 200, "long": 50_000}
"""Inputs of a target, by profile."""

LIMIT_S = 1.0
"""Of processor time for one input. Inputs have some 100 kB at most: a reader that goes through
them once takes milliseconds, one whose time grows with the square takes many seconds."""


@dataclass(frozen=True)
class Target:
    """One reader, or several that are read with one after the other."""

    name: str
    readers: tuple[str, ...]
    """As module:function, without "llamafleet."."""
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]
    """Given an input and an empty folder of its own."""
    errors: tuple[type[Exception], ...] = ()
    """What it may raise, by its documentation."""
    known: tuple[Any, ...] = ()
    """Inputs that a reader once failed on."""
    printable: bool = True
    """Its texts reach a terminal as they are."""
    share: float = 1.0
    """Of the examples, where one takes long."""
    limit_s: float = LIMIT_S

    @property
    def examples(self) -> int:
        return max(10, int(EXAMPLES[PROFILE] * self.share))
