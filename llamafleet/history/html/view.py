"""What the report is made of, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup

from llamafleet.history.comparison import Comparison
from llamafleet.history.html import plot
from llamafleet.history.lastupdate import Updated
from llamafleet.history.outliers import Outlier
from llamafleet.history.record import Record
from llamafleet.history.store import Built, Row
from llamafleet.history.words import WARNING
from llamafleet.protocol.result import FAIL, NOT_VERIFIED, PASS, Check, Result

WORST_FIRST: tuple[str, ...] = (FAIL, NOT_VERIFIED, "BUSY", "CPU ONLY", PASS, "")


@dataclass(frozen=True)
class Material:
    """All that a report is made of."""

    made: datetime
    rows: tuple[Row, ...]
    """The newest of each host."""
    records: tuple[Record, ...]
    results: Mapping[str, Result] = field(default_factory=dict)
    """The newest of each host, by its name."""
    head: str = ""
    """Which run it is."""
    judged_since: datetime | None = None
    """Older figures say nothing of who is slow now; None: all count."""
    notes: tuple[str, ...] = ()
    """What is to be known before anything else, as which hosts are made up."""


# -- what is shown ---------------------------------------------------------------------------------


class ChangeView(NamedTuple):
    """A numbered line of a plot."""

    number: int
    time: datetime
    what: tuple[str, ...]
    before: float | None
    runs_before: int
    after: float | None
    runs_after: int
    judged: Comparison | None
    """None: on one side there is nothing to compare."""

    @property
    def driver(self) -> bool:
        return any(one.startswith("driver ") for one in self.what)


class SeriesView(NamedTuple):
    """One plot."""

    id: str
    test: str
    """As llama-bench names it."""
    title: str
    settings: str
    """What its figures share."""
    records: tuple[Record, ...]
    left_out: int
    """Older ones that are not drawn."""
    svg: Markup
    axes: plot.Axes
    changes: tuple[ChangeView, ...]
    said: str
    """The plot in words."""


@dataclass(frozen=True)
class GpuView:
    """A GPU; or all of a host together, its CPU, or a host of which no GPU is known."""

    id: str
    host: str
    name: str
    uuid: str
    verdict: str
    driver: str
    toolkit: str
    build: str
    pp: float | None
    tg: float | None
    busy: bool
    series: tuple[SeriesView, ...]
    checks: tuple[Check, ...]
    slow: tuple[Outlier, ...]
    roofline: float | None
    """Share of the rate that its memory's bandwidth allows."""
    bands: tuple[str, ...]
    """Its figures beside what is expected of its kind, in lines."""
    spark: Markup
    single: bool
    """One GPU, not several together."""

    @property
    def warned(self) -> bool:
        """It is below what is expected, which makes no verdict."""
        return any(f"{WARNING} " in line for line in self.bands)

    @property
    def needs_look(self) -> bool:
        """Its evidence stands on the page; that of others, which is much and all green, a script
        unpacks."""
        return bool(self.slow) or any(check.status != "pass" for check in self.checks)

    @property
    def opened(self) -> bool:
        """Shown at once."""
        return self.needs_look or self.verdict not in (PASS, "")


class GroupView(NamedTuple):
    """GPUs of one model under the same settings."""

    title: str
    gpus: int
    middle: float
    low: float
    high: float
    svg: Markup


class BuildView(NamedTuple):
    """What a host's newest build cost."""

    host: str
    build: str
    built: Built
    svg: Markup


@dataclass(frozen=True)
class Page:
    """All of it."""

    material: Material
    gpus: tuple[GpuView, ...]
    hosts: Mapping[str, int]
    """Number of hosts by verdict."""
    counted: Mapping[str, int]
    """Number of GPUs by verdict."""
    attention: tuple[Row, ...]
    """Rows of hosts that are not good."""
    updates: tuple[Updated, ...]
    """The last one of each GPU, equal ones together."""
    updated: tuple[tuple[GpuView, SeriesView, ChangeView], ...]
    """The same for each GPU by itself."""
    groups: tuple[GroupView, ...]
    builds: tuple[BuildView, ...]

    @property
    def slow(self) -> tuple[GpuView, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.slow)


def rate(value: float | None) -> str:
    """Tokens per second: what a person compares, not what the file holds."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}"
