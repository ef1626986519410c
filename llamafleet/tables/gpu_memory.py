"""How much memory a GPU has, by its name: for where no driver can be asked."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from llamafleet.tables.rows import Origin, Row, load


class MemoryRow(Row):
    name: str
    """As in gpus.yaml."""
    mib: Annotated[int, Field(gt=0)]
    source: Origin


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
