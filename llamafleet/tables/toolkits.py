"""CUDA Toolkits: what each accepts, from which driver on it runs, and what installs it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llamafleet.tables import Version, parse_version
from llamafleet.tables.rows import Cuda, Machine, Origin, Row, load


class ToolkitRow(Row):
    """What one minor version of the CUDA Toolkit accepts."""

    version: Cuda
    gcc: int
    """Newest major version of gcc."""
    clang: int
    compilers_source: Origin
    glibc_below: str | None
    """First glibc whose headers clash; None: none known."""
    glibc_source: Origin
    sm: frozenset[int]
    """Architectures of its ptxas, as 89."""
    sm_source: Origin

    @property
    def order(self) -> Version:
        return parse_version(self.version)


class DriverFloor(Row):
    """From this driver version on, this CUDA version runs."""

    driver: str
    cuda: Cuda
    source: Origin


class WheelToolkit(Row):
    """A toolkit that can be installed from Python wheels."""

    cuda: Cuda
    machine: Machine
    source: Origin


class Runfile(Row):
    """NVIDIA's installer for any distribution."""

    cuda: Cuda
    machine: Machine
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    """major.minor.patch."""
    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source: Origin

    @property
    def path(self) -> str:
        """Below NVIDIA_URL."""
        return f"{self.version}/local_installers/{self.file}"


class _Toolkits(Row):
    sources: tuple[Origin, ...]
    """Anchors, for rows that share one."""
    driver_floors: tuple[DriverFloor, ...]
    wheels: tuple[WheelToolkit, ...]
    toolkits: tuple[ToolkitRow, ...]


class _Runfiles(Row):
    sources: tuple[Origin, ...]
    runfiles: tuple[Runfile, ...]


def _table() -> _Toolkits:
    return load("toolkits.yaml", _Toolkits)


def toolkits() -> tuple[ToolkitRow, ...]:
    """All known toolkits, newest first."""
    return _table().toolkits


def toolkit(version: str) -> ToolkitRow | None:
    """The row of major.minor; None: not in the table."""
    return next((row for row in toolkits() if row.version == version), None)


def driver_floors() -> tuple[DriverFloor, ...]:
    """Newest first."""
    return _table().driver_floors


def wheel_toolkits() -> tuple[WheelToolkit, ...]:
    """Newest first."""
    return _table().wheels


def runfiles() -> tuple[Runfile, ...]:
    return load("runfiles.yaml", _Runfiles).runfiles


def runfile(cuda: str, machine: str) -> Runfile | None:
    """The runfile of major.minor for that machine; None: not in the table."""
    return next((r for r in runfiles() if (r.cuda, r.machine) == (cuda, machine)), None)
