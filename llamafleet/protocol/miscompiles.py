"""Builds of nvcc that are known to make wrong code: for which GPUs, and what of it shows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llamafleet.protocol.decode import decode


@dataclass(frozen=True)
class Miscompile:
    """One fault of a compiler."""

    releases: dict[str, str]
    """Version of the CUDA Toolkit, as 13.2.1 -> build of its nvcc, as 13.2.78."""
    capabilities: tuple[str, ...]
    """Compute capabilities of the GPUs that the wrong code is for."""
    types: tuple[str, ...]
    """Quantisations that it computes wrongly."""
    what: str
    good: str
    """The builds around it that make right code."""
    report: str
    """Where to read about it."""
    source: str

    def concerns(self, capabilities: Iterable[str]) -> tuple[str, ...]:
        """Those of the capabilities that it makes wrong code for."""
        return tuple(sorted({*capabilities} & {*self.capabilities}, key=_order))

    def said(self, build: str, capabilities: Iterable[str]) -> str:
        """What is wrong with that build, for these GPUs."""
        named = f"nvcc {build}" if build else "an nvcc that does not tell its build"
        bad = " and ".join(self.releases.values())
        doubt = "" if build else f" and may be one of {bad}, which"
        return (
            f"{named}{doubt} computes {', '.join(self.types)} wrongly on compute capability "
            f"{', '.join(self.concerns(capabilities))} ({self.report}); right: {self.good}"
        )


def from_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[Miscompile, ...]:
    """The table as the zipapp carries it. Raises DecodeError."""
    return tuple(decode(Miscompile, row) for row in rows)


def wrong_build(
    known: Iterable[Miscompile], build: str, version: str, capabilities: Collection[str]
) -> str:
    """Why an nvcc must not compile for these GPUs; "": nothing is known against it.

    `build`: as it tells it, 13.2.78. Where it tells none, its version (13.2) must have no bad one.
    """
    for row in known:
        bad = row.releases.values()
        doubtful = not build and any(_minor(other) == version for other in bad)
        if row.concerns(capabilities) and (build in bad or doubtful):
            return row.said(build, capabilities)
    return ""


def wrong_release(known: Iterable[Miscompile], release: str, capabilities: Collection[str]) -> str:
    """The same of a version of the CUDA Toolkit that is not there yet, as 13.2.1."""
    for row in known:
        if release in row.releases and row.concerns(capabilities):
            return row.said(row.releases[release], capabilities)
    return ""


def _minor(build: str) -> str:
    return ".".join(build.split(".")[:2])


def _order(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
