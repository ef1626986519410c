"""Figures as data: toolkits, GPUs and pinned requirements, each figure with its source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

UNVERIFIED = "UNVERIFIED"
"""How the source of a figure begins that was recalled, not measured or looked up."""

Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """The leading numbers of a dotted version: (580, 65, 6) of "580.65.06", () of "N/A"."""
    leading = re.match(r"(\d+\.)*\d+|", text)
    return tuple(int(part) for part in leading[0].split(".") if part) if leading else ()


@dataclass(frozen=True)
class ToolkitRow:
    """What one minor version of the CUDA Toolkit accepts."""

    version: str
    """major.minor."""
    gcc: int
    """Newest major version of gcc."""
    clang: int
    compilers_source: str
    glibc_below: str | None
    """First glibc whose headers clash; None: none known."""
    glibc_source: str
    sm: frozenset[int]
    """Architectures of its ptxas, as 89."""
    sm_source: str

    @property
    def order(self) -> Version:
        return parse_version(self.version)


@dataclass(frozen=True)
class DriverFloor:
    """From this driver version on, this CUDA version runs."""

    driver: str
    cuda: str
    source: str


@dataclass(frozen=True)
class WheelToolkit:
    """A toolkit that can be installed from Python wheels."""

    cuda: str
    machine: str
    """As uname -m names it."""
    source: str


@dataclass(frozen=True)
class GpuRow:
    """A GPU by name; the driver's own word wins over every figure here."""

    name: str
    capability: str
    vram_gib: int
    bandwidth: int
    """GB/s of device memory."""
    pci: tuple[str, ...]
    """PCI device ids, four lower-case hex digits."""
    source: str
    """Of the bandwidth."""


@dataclass(frozen=True)
class Xids:
    """Which Xid errors of the kernel log speak against a GPU, and for how long."""

    fatal: frozenset[int]
    fatal_source: str
    recent_hours: int
    recent_source: str


@lru_cache
def text(name: str) -> str:
    """A file of this folder. Raises FileNotFoundError."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


@lru_cache
def _toolkits_yaml() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text("toolkits.yaml"))
    return loaded


@lru_cache
def toolkits() -> tuple[ToolkitRow, ...]:
    """All known toolkits, newest first."""
    data = _toolkits_yaml()
    rows = [
        ToolkitRow(
            version=version,
            **{**row, "sm": frozenset(row["sm"])},
            glibc_source=data["sources"]["glibc"],
        )
        for version, row in data["toolkits"].items()
    ]
    return tuple(sorted(rows, key=lambda row: row.order, reverse=True))


def toolkit(version: str) -> ToolkitRow | None:
    """The row of major.minor; None: not in the table."""
    return next((row for row in toolkits() if row.version == version), None)


@lru_cache
def driver_floors() -> tuple[DriverFloor, ...]:
    """Newest first."""
    return tuple(DriverFloor(**row) for row in _toolkits_yaml()["driver_floors"])


@lru_cache
def wheel_toolkits() -> tuple[WheelToolkit, ...]:
    """Newest first."""
    return tuple(WheelToolkit(**row) for row in _toolkits_yaml()["wheels"])


@lru_cache
def xids() -> Xids:
    row = yaml.safe_load(text("xids.yaml"))
    return Xids(**{**row, "fatal": frozenset(row["fatal"])})


@lru_cache
def gpus() -> tuple[GpuRow, ...]:
    rows = yaml.safe_load(text("gpus.yaml"))["gpus"]
    return tuple(GpuRow(**{**row, "pci": tuple(row["pci"])}) for row in rows)


def gpu_by_pci(device_id: str) -> GpuRow | None:
    """The GPU with that PCI device id, if it is in the table."""
    return next((row for row in gpus() if device_id.lower() in row.pci), None)


def gpu_by_name(name: str) -> GpuRow | None:
    """The GPU that the driver calls `name`, as "NVIDIA GeForce RTX 4090"."""
    bare = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((row for row in gpus() if row.name == bare), None)
