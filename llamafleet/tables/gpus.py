"""GPUs by name and device id, and the errors after which one is not to be trusted."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from llamafleet.tables.rows import Origin, Row, load

DeviceId = Annotated[str, Field(pattern=r"^[0-9a-f]{4}$")]


class GpuRow(Row):
    """A GPU by name; the driver's own word wins over every figure here."""

    name: str
    capability: Annotated[str, Field(pattern=r"^\d+\.\d$")]
    pci: tuple[DeviceId, ...]
    source: Origin


class _Gpus(Row):
    sources: tuple[Origin, ...]
    gpus: tuple[GpuRow, ...]


Action = Literal["reset", "reboot", "watch"]
"""As xid-actions.yaml tells them."""


class Xid(Row):
    """Xid errors of the kernel log that ask for the same."""

    codes: frozenset[int]
    action: Action
    only: str = ""
    """A word without which such a line is harmless."""
    source: Origin


class _Xids(Row):
    xids: tuple[Xid, ...]


Range = Annotated[str, Field(pattern=r"^[0-9a-f]{4}-[0-9a-f]{4}$")]


class Generation(Row):
    """GPUs of one generation, and the driver branches that know them."""

    name: str
    pci: tuple[Range, ...]
    first: int
    """The oldest branch that starts one of them."""
    last: int | None = None
    """The newest one; None: there is no end yet."""
    open: Literal["never", "may", "must"]
    """Whether the open kernel modules start them."""
    source: Origin
    branches: Origin


class _Generations(Row):
    sources: tuple[Origin, ...]
    generations: tuple[Generation, ...]


def gpus() -> tuple[GpuRow, ...]:
    return load("gpus.yaml", _Gpus).gpus


def gpu_by_pci(device_id: str) -> GpuRow | None:
    """The GPU with that PCI device id, if it is in the table."""
    return next((row for row in gpus() if device_id.lower() in row.pci), None)


def gpu_by_name(name: str) -> GpuRow | None:
    """The GPU that the driver calls `name`, as "NVIDIA GeForce RTX 4090"."""
    bare = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((row for row in gpus() if row.name == bare), None)


def xids() -> tuple[Xid, ...]:
    return load("xid-actions.yaml", _Xids).xids


def xid(code: int) -> Xid | None:
    """What is known of an Xid; None: it says nothing of the card."""
    return next((row for row in xids() if code in row.codes), None)


RECOVERY = 154
"""The Xid in which the driver itself says what a GPU needs (the catalogue: XID_154)."""


def telling_xids() -> frozenset[int]:
    """Codes that say something of the card."""
    return frozenset({RECOVERY}.union(*(row.codes for row in xids())))


def generations() -> tuple[Generation, ...]:
    return load("generations.yaml", _Generations).generations


def generation_of(device_id: str) -> Generation | None:
    """The generation of a card by its PCI device id, as 2684; None: none that is known here."""
    device = device_id.lower()
    if not re.fullmatch(r"[0-9a-f]{4}", device):
        return None
    return next((row for row in generations() if any(_within(device, r) for r in row.pci)), None)


def _within(device: str, ends: str) -> bool:
    first, _, last = ends.partition("-")
    return first <= device <= last
