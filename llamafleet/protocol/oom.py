"""An out of memory in llama.cpp's log, and what would fit in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamafleet.protocol.serve import Placement


@dataclass(frozen=True)
class OutOfMemory:
    """What could not be allocated."""

    line: str

    def __str__(self) -> str:
        return self.line


def read(lines: Sequence[str]) -> OutOfMemory | None:
    """The last one; None: it did not run out of memory."""
    return next((OutOfMemory(one) for one in reversed(lines) if "out of memory" in one), None)


def reduced(placement: Placement, found: OutOfMemory, n_layers: int | None) -> Placement | None:
    """None: nothing smaller is left."""
    return None
