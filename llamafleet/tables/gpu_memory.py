"""How much memory a GPU has, by its name: for where no driver can be asked."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from llamafleet.tables.rows import Origin, Row, load

USABLE = 98, 100
"""Of what nvidia-smi tells CUDA has the most of it: 24080 to 24210 of 24564 MiB on an RTX 4090,
45467 of 46068 on an L40S (llama.cpp's "Total VRAM", in public repositories)."""


class MemoryRow(Row):
    name: str
    """As in gpus.yaml."""
    mib: Annotated[int, Field(gt=0)]
    source: Origin

    @property
    def usable_mib(self) -> int:
        """Of an idle card without a screen, for CUDA."""
        return self.mib * USABLE[0] // USABLE[1]


class _Memory(Row):
    sources: tuple[Origin, ...]
    memory: tuple[MemoryRow, ...]


def memory() -> tuple[MemoryRow, ...]:
    return load("gpu-memory.yaml", _Memory).memory


def memory_named(text: str) -> list[MemoryRow]:
    """The GPUs that `text` may mean, as rtx4090 or H100: one whose name it is, else all that have
    its words."""
    rows, wanted = memory(), _bare(text)
    same = [row for row in rows if wanted in _forms(row.name)]
    if same or not wanted:
        return same
    return [row for row in rows if wanted in _bare(row.name)]


def _forms(name: str) -> tuple[str, ...]:
    return _bare(name), _bare(name, "geforce"), _bare(name, "geforce", "rtx")


def _bare(text: str, *without: str) -> str:
    """Letters and digits, without what NVIDIA puts before a name."""
    bare = re.sub(r"[^a-z0-9]", "", text.lower())
    for word in ("nvidia", "tesla", *without):
        bare = bare.replace(word, "")
    return bare
