"""What the report shows: rows, records and results of a fleet, put in order. It judges nothing
itself: who is slow and what an update cost, others say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup

from llamafleet.history.html import plot
from llamafleet.history.record import Record, Test
from llamafleet.history.series import (
    GpuKey,
    Same,
    Series,
    around,
    changes,
    middle,
    series,
)
from llamafleet.history.store import Built, Row
from llamafleet.protocol.result import FAIL, NOT_VERIFIED, PASS, Check, Result

WORST_FIRST: tuple[str, ...] = (FAIL, NOT_VERIFIED, "BUSY", "CPU ONLY", PASS, "")

TESTS: Mapping[Test, str] = {"pp": "prompt processing", "tg": "generation"}


class Slow(NamedTuple):
    """A GPU that is slower than its peers, in one test."""

    gpu: GpuKey
    test: Test
    text: str
    """By how much, and the likely reason."""


class Compared(NamedTuple):
    """Figures before and after a change."""

    word: str
    """As "slower"."""
    text: str
    """The ratio and how sure it is."""


@dataclass(frozen=True)
class Judges:
    """Who judges figures; the report only shows what they say."""

    slow: Callable[[Sequence[Record]], Sequence[Slow]]
    compared: Callable[[Sequence[Record], Sequence[Record]], Compared]
    roofline: Callable[[Record], float | None]
    """Share of what the GPU's memory allows, of a record of generation; None: not known."""
    bands: Callable[[Record], Sequence[str]]
    """What is said of a record beside what is expected of its GPU."""


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
    judged: Compared | None
    """None: on one side there is nothing to compare."""

    @property
    def driver(self) -> bool:
        return any(one.startswith("driver ") for one in self.what)


class SeriesView(NamedTuple):
    """One plot."""

    id: str
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
    slow: tuple[str, ...]
    roofline: float | None
    bands: tuple[str, ...]
    spark: Markup
    single: bool
    """One GPU, not several together."""


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
    updates: tuple[tuple[GpuView, SeriesView, ChangeView], ...]
    """The newest change of driver of each GPU."""
    groups: tuple[GroupView, ...]
    builds: tuple[BuildView, ...]

    @property
    def slow(self) -> tuple[GpuView, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.slow)


def page(material: Material, judges: Judges) -> Page:
    """The page of a fleet; a fleet without any row makes an empty one."""
    gpus = _gpus(material, judges)
    return Page(
        material=material,
        gpus=gpus,
        hosts=_counted(row.verdict for row in material.rows),
        counted=_counted(gpu.verdict for gpu in gpus if gpu.single and gpu.verdict),
        attention=tuple(row for row in material.rows if not row.good),
        updates=tuple(_updates(gpus)),
        groups=_groups(material.records, gpus),
        builds=tuple(_builds(material.rows)),
    )


def _counted(verdicts: Iterable[str]) -> dict[str, int]:
    counts = Counter(verdicts)
    return {verdict: counts[verdict] for verdict in WORST_FIRST if counts[verdict]}


# -- GPUs ------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A line of the fleet's table, before its history is known."""

    key: GpuKey
    host: str
    name: str
    verdict: str
    row: Row | None
    checks: tuple[Check, ...]


def _gpus(material: Material, judges: Judges) -> tuple[GpuView, ...]:
    by_gpu: dict[GpuKey, list[Series]] = defaultdict(list)
    for one in series(material.records):
        by_gpu[one.gpu].append(one)
    slow = defaultdict(list)
    for found in judges.slow(material.records):
        slow[found.gpu].append(f"{found.test}: {found.text}")
    places = [place for row in material.rows for place in _places(row, material.results)]
    told = {place.key for place in places}
    places += [_gone(key, some) for key, some in by_gpu.items() if key not in told]
    places.sort(
        key=lambda one: (
            WORST_FIRST.index(one.verdict),
            not slow.get(one.key),
            one.host,
            one.key,
        )
    )
    return tuple(
        _gpu(f"gpu-{number}", place, by_gpu.get(place.key, []), slow.get(place.key, []), judges)
        for number, place in enumerate(places, 1)
    )


def _places(row: Row, results: Mapping[str, Result]) -> list[_Place]:
    """The host's GPUs; where several were measured together, or it has none, a line for that."""
    result = results.get(row.host)
    checks = {gpu.uuid: gpu.checks for gpu in result.gpus} if result else {}
    own = result.checks if result else ()
    found = [
        _Place(
            key=GpuKey(gpu.uuid, "", 1),
            host=row.host,
            name=gpu.name,
            verdict=gpu.verdict,
            row=row,
            checks=checks.get(gpu.uuid, ()) + (own if len(row.gpus) == 1 else ()),
        )
        for gpu in row.gpus
    ]
    if len(found) == 1:
        return found
    name = f"all {len(found)} GPUs together" if found else row.gpu or "no GPU"
    together = _Place(GpuKey("", row.host, len(found)), row.host, name, row.verdict, row, own)
    return [*found, together]


def _gone(key: GpuKey, some: list[Series]) -> _Place:
    """Of a GPU that has a history and that no host's newest row speaks of."""
    last = some[0].last
    name = last.gpu_info or ("CPU" if not last.gpus else "GPU")
    return _Place(key, last.host, name, "", None, ())


def _gpu(id: str, place: _Place, some: list[Series], slow: list[str], judges: Judges) -> GpuView:
    newest: dict[Test, Record] = {}
    for one in some:
        newest.setdefault(one.same.test, one.last)
    pp, tg = newest.get("pp"), newest.get("tg")
    last = pp or tg
    row = place.row
    main = next((one for one in some if one.same.test == "tg"), None)
    free = [record.median_ts for record in main.records if not record.busy] if main else []
    return GpuView(
        id=id,
        host=place.host,
        name=place.name,
        uuid=place.key.uuid,
        verdict=place.verdict,
        driver=(row.driver if row else "") or (last.driver if last else ""),
        toolkit=(row.toolkit if row else "") or (last.toolkit if last else ""),
        build=(row.build if row else "") or (last.fingerprint if last else ""),
        pp=pp.median_ts if pp else None,
        tg=tg.median_ts if tg else None,
        busy=bool(last and last.busy),
        series=tuple(_series(f"{id}-{n}", one, judges) for n, one in enumerate(some, 1)),
        checks=place.checks,
        slow=tuple(slow),
        roofline=judges.roofline(tg) if tg else None,
        bands=tuple(line for record in (pp, tg) if record for line in judges.bands(record)),
        spark=plot.sparkline(free[-30:]),
        single=place.key.gpus == 1,
    )


# -- history ---------------------------------------------------------------------------------------


def _series(id: str, one: Series, judges: Judges) -> SeriesView:
    records = one.records[-plot.MOST_POINTS :]
    points = [plot.Point(r.test_time, r.median_ts, bool(r.busy)) for r in records]
    found = tuple(
        _change(number, records, change.at, change.what, judges)
        for number, change in enumerate(changes(records), 1)
    )
    title = f"{TESTS[one.same.test]} ({one.same.test}{one.same.tokens})"
    said = _said(title, records, found)
    return SeriesView(
        id=id,
        title=title,
        settings=settings(one.same),
        records=records,
        left_out=len(one.records) - len(records),
        svg=plot.history(points, [(change.time, change.number) for change in found], said),
        axes=plot.axes(points),
        changes=found,
        said=said,
    )


def _change(
    number: int, records: tuple[Record, ...], at: int, what: tuple[str, ...], judges: Judges
) -> ChangeView:
    before, after = around(records, at)
    return ChangeView(
        number=number,
        time=records[at].test_time,
        what=what,
        before=middle(before),
        runs_before=len(before),
        after=middle(after),
        runs_after=len(after),
        judged=judges.compared(before, after) if before and after else None,
    )


def _said(title: str, records: Sequence[Record], found: Sequence[ChangeView]) -> str:
    figures = [record.median_ts for record in records]
    last = records[-1]
    parts = [
        f"{title}: {len(records)} measurements from {records[0].test_time:%Y-%m-%d} "
        f"to {last.test_time:%Y-%m-%d}",
        f"lowest {rate(min(figures))}, highest {rate(max(figures))}, "
        f"last {rate(last.median_ts)} tokens per second",
    ]
    if busy := sum(bool(record.busy) for record in records):
        parts.append(f"{busy} of a GPU that was not free")
    parts += [f"change {c.number}: {', '.join(c.what)}" for c in found]
    return "; ".join(parts)


def settings(one: Same) -> str:
    """As "7b-q4_0, flash attention off"."""
    parts = [one.model or "model not told"]
    if one.flash_attn is not None:
        parts.append(f"flash attention {'on' if one.flash_attn else 'off'}")
    if one.depth:
        parts.append(f"at depth {one.depth}")
    if any(one.cache):
        parts.append(f"cache {'/'.join(one.cache)}")
    return ", ".join(parts)


def rate(value: float | None) -> str:
    """Tokens per second: what a person compares, not what the file holds."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}"


def _updates(gpus: Iterable[GpuView]) -> Iterable[tuple[GpuView, SeriesView, ChangeView]]:
    """Of each GPU the newest change of driver, in the newest series of each test."""
    for gpu in gpus:
        told: set[str] = set()
        for one in gpu.series:
            test = one.records[-1].test
            last = next((c for c in reversed(one.changes) if c.driver), None)
            if last and test not in told:
                told.add(test)
                yield gpu, one, last


# -- the fleet -------------------------------------------------------------------------------------


def _groups(records: Sequence[Record], gpus: Iterable[GpuView]) -> tuple[GroupView, ...]:
    """GPUs of one model and test by their last figure of a free GPU."""
    slow = {(gpu.uuid, text[:2]) for gpu in gpus for text in gpu.slow}
    found: dict[tuple[str, Same], list[Record]] = defaultdict(list)
    for one in series(record for record in records if record.gpu_uuid and not record.busy):
        found[one.last.gpu_info, one.same].append(one.last)
    made = []
    for (name, same), some in sorted(found.items(), key=lambda one: (one[0][0], one[0][1].test)):
        if len(some) < 2:
            continue
        dots = [
            plot.Dot(r.median_ts, f"{r.host} {r.gpu_uuid[:12]}", (r.gpu_uuid, r.test) in slow)
            for r in some
        ]
        title = f"{name}: {TESTS[same.test]} ({same.test}{same.tokens}), {settings(same)}"
        figures = [dot.value for dot in dots]
        centre, low, high = middle(some) or 0.0, min(figures), max(figures)
        said = (
            f"{title}: {len(dots)} GPUs, median {rate(centre)}, lowest {rate(low)}, "
            f"highest {rate(high)} tokens per second"
        )
        made.append(GroupView(title, len(dots), centre, low, high, plot.distribution(dots, said)))
    return tuple(made)


def _builds(rows: Iterable[Row]) -> Iterable[BuildView]:
    for row in rows:
        if row.built and row.built.wall_s is not None:
            parts = list(row.built.phases.items())
            said = "phases: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts)
            drawn = plot.phases(parts, said) if parts else Markup("")
            yield BuildView(row.host, row.build, row.built, drawn)
