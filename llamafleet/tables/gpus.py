"""GPUs by name and device id, and the errors after which one is not to be trusted."""

from __future__ import annotations

from typing import Annotated

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


class Xids(Row):
    """Which Xid errors of the kernel log speak against a GPU, and for how long."""

    fatal: frozenset[int]
    fatal_source: Origin
    recent_hours: int
    recent_source: Origin


def gpus() -> tuple[GpuRow, ...]:
    return load("gpus.yaml", _Gpus).gpus


def gpu_by_pci(device_id: str) -> GpuRow | None:
    """The GPU with that PCI device id, if it is in the table."""
    return next((row for row in gpus() if device_id.lower() in row.pci), None)


def gpu_by_name(name: str) -> GpuRow | None:
    """The GPU that the driver calls `name`, as "NVIDIA GeForce RTX 4090"."""
    bare = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((row for row in gpus() if row.name == bare), None)


def xids() -> Xids:
    return load("xids.yaml", Xids)
