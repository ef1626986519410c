"""What driver, GPUs, C library and host compiler say of each CUDA Toolkit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamafleet.facts.host import Driver, HostSnapshot
from llamafleet.plans.toolkit.architectures import architecture
from llamafleet.plans.toolkit.compiler import candidates, fitting, refusal
from llamafleet.protocol.miscompiles import Miscompile, from_rows
from llamafleet.settings import Settings
from llamafleet.tables import miscompiles as table
from llamafleet.tables import parse_version
from llamafleet.tables.toolkits import ToolkitRow, driver_floors
from llamafleet.wheelhouse.manifest import Wheelhouse

Blockers = dict[str, str]
"""Cause (settings, driver, gpu, glibc, compiler) -> why a toolkit can't be used on this host."""


@dataclass(frozen=True)
class Case:
    """One host's choice of a toolkit: what is known before anything is chosen."""

    snapshot: HostSnapshot
    settings: Settings
    house: Wheelhouse | None
    cuda: str
    """Newest CUDA version that the driver runs."""
    capabilities: tuple[str, ...]
    against: dict[str, Blockers]
    """By toolkit version, newest first; an empty entry: nothing speaks against it."""
    unfit: tuple[tuple[str, str], ...]
    """(version, "root: why not") of each toolkit on the host that can't be used."""
    miscompiled: tuple[tuple[str, str], ...] = ()
    """(version, "where from: why not") of those that would be taken but for their compiler."""


def miscompiles() -> tuple[Miscompile, ...]:
    """What is known against builds of nvcc."""
    return from_rows(table.rows())


def newest_cuda(driver: Driver) -> tuple[str, str] | None:
    """Newest CUDA version that the driver runs, and who says so; None: none known.

    nvidia-smi's word comes first: the driver's version alone does not tell it. Without it what
    NVIDIA ships with each toolkit counts; what minor version compatibility would add does not:
    PTX of a newer minor version does not load.
    """
    if driver.cuda:
        return driver.cuda, "nvidia-smi"
    version = driver.smi or driver.module or driver.library
    for floor in driver_floors():
        if version and parse_version(version) >= parse_version(floor.driver):
            return floor.cuda, f"driver {version} is at least {floor.driver}; {floor.source}"
    return None


def blockers(
    row: ToolkitRow,
    snapshot: HostSnapshot,
    settings: Settings,
    cuda: str,
    capabilities: Sequence[str],
) -> Blockers:
    """What speaks against one toolkit version; `cuda` is the newest that the driver runs."""
    found: Blockers = {}
    if settings.toolkit_version not in (None, row.version):
        found["settings"] = f"toolkit_version = {settings.toolkit_version!r}"
    if row.order > parse_version(cuda):
        found["driver"] = f"the driver runs CUDA up to {cuda}"
    unknown = [c for c in capabilities if architecture(c) not in row.sm]
    if unknown:
        found["gpu"] = f"does not know compute capability {', '.join(unknown)}"
    if snapshot.glibc is None:
        found["glibc"] = "needs glibc"
    elif row.glibc_below and parse_version(snapshot.glibc) >= parse_version(row.glibc_below):
        found["glibc"] = f"its headers clash with glibc {snapshot.glibc}"
    if fitting(snapshot, settings, row) is None:
        tried = [refusal(c, row) for c in candidates(snapshot, settings)]
        found["compiler"] = "; ".join(t for t in tried if t) or "no host compiler"
    return found
