"""What the report is made of, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup

from llamafleet.history import comparable
from llamafleet.history.comparison import Comparison
from llamafleet.history.html import plot
from llamafleet.history.lastupdate import Updated
from llamafleet.history.outliers import Outlier
from llamafleet.history.record import Record
from llamafleet.history.series import GpuKey
from llamafleet.history.store import Built, Row
from llamafleet.history.words import WARNING
from llamafleet.protocol.result import PASS, WORST_FIRST, Check, Result

ORDER: tuple[str, ...] = (*WORST_FIRST, "")
"""Of verdicts; "": nothing is said."""
WRITTEN = 30
"""So many GPUs, the worst first, have their history in the page as it is; that of the others a
script unpacks: written out it is 15 times as large."""


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
    """Which run it is, and what became of it."""
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
    rings: int
    """Figures of a GPU that was not free and healthy."""
    svg: Markup
    axes: plot.Axes
    changes: tuple[ChangeView, ...]
    said: str
    """The plot in words."""


@dataclass(frozen=True)
class GpuView:
    """A GPU; or all of a host together, its CPU, or a host of which no GPU is known."""

    id: str
    key: GpuKey
    host: str
    name: str
    verdict: str
    driver: str
    toolkit: str
    build: str
    pp: Record | None
    """The newest of prompt processing."""
    tg: Record | None
    series: tuple[SeriesView, ...]
    checks: tuple[Check, ...]
    proven: datetime | None
    """When the result of those checks was made, which need not be that of the verdict."""
    slow: tuple[Outlier, ...]
    roofline: float | None
    """Share of the rate that its memory's bandwidth allows."""
    bands: tuple[str, ...]
    """Its figures beside what is expected of its kind, in lines."""
    spark: Markup
    written: bool
    """Its history stands in the page as it is."""

    @property
    def uuid(self) -> str:
        return self.key.uuid

    @property
    def single(self) -> bool:
        """One GPU, not several together."""
        return self.key.gpus == 1

    @property
    def measured(self) -> datetime | None:
        """When its newest figure was."""
        return max((one.test_time for one in (self.pp, self.tg) if one), default=None)

    @property
    def models(self) -> str:
        """Of its figures."""
        return ", ".join(dict.fromkeys(comparable.model(one) for one in (self.pp, self.tg) if one))

    @property
    def rank(self) -> int:
        """Of its verdict: 0 is the worst."""
        return ORDER.index(self.verdict)

    @property
    def warned(self) -> bool:
        """It is below what is expected, which makes no verdict."""
        return any(f"{WARNING} " in line for line in self.bands)

    @property
    def red(self) -> bool:
        """Of its evidence something is not green."""
        return any(check.status != "pass" for check in self.checks)

    @property
    def opened(self) -> bool:
        """Shown at once."""
        return self.written and (bool(self.slow) or self.red or self.verdict not in (PASS, ""))


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
    phases: tuple[tuple[int, str, float], ...]
    """Number of the colour, name and seconds."""
    svg: Markup


MOST_UPDATED = 100
"""Lines of a table of GPUs that were updated."""


class UpdateView(NamedTuple):
    """GPUs that went from one driver to another."""

    update: Updated
    drawn: tuple[tuple[Comparison, Markup], ...]
    """Each comparison with its difference as a bar."""


class UpdatedGpu(NamedTuple):
    """One GPU's last update in one test."""

    gpu: GpuView
    update: Updated
    found: Comparison


@dataclass(frozen=True)
class Page:
    """All of it."""

    material: Material
    gpus: tuple[GpuView, ...]
    hosts: Mapping[str, int]
    """Number of hosts by verdict."""
    counted: Mapping[str, int]
    """Number of GPUs by verdict."""
    attention: tuple[tuple[Row, str], ...]
    """Rows of hosts that are not good, the worst first, each with the id of its worst GPU."""
    updates: tuple[UpdateView, ...]
    """The last one of each GPU, equal ones together, the newest first."""
    updated: tuple[UpdatedGpu, ...]
    """The same for each GPU by itself, the largest loss first."""
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
