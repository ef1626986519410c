"""The whole page of rows, records and results, put in order. Who is slow and what an update cost,
others judge."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from statistics import median

from markupsafe import Markup

from llamafleet.history import comparable
from llamafleet.history.bands import Bands
from llamafleet.history.html import plot
from llamafleet.history.html.gpus import gpus_of
from llamafleet.history.html.lines import settings, title_of
from llamafleet.history.html.view import (
    WORST_FIRST,
    BuildView,
    ChangeView,
    GpuView,
    GroupView,
    Material,
    Page,
    SeriesView,
    rate,
)
from llamafleet.history.lastupdate import last_updates
from llamafleet.history.record import Record, Test
from llamafleet.history.series import series
from llamafleet.history.store import Row

TIMES = (datetime(1971, 1, 1, tzinfo=timezone.utc), datetime(9000, 1, 1, tzinfo=timezone.utc))
"""Of a measurement: beyond, calendars end."""


def page(material: Material, bands: Bands) -> Page:
    """The page of a fleet; a fleet without any row makes an empty one."""
    material = _sound(material)
    gpus = gpus_of(material, bands)
    return Page(
        material=material,
        gpus=gpus,
        hosts=_counted(row.verdict for row in material.rows),
        counted=_counted(gpu.verdict for gpu in gpus if gpu.single and gpu.verdict),
        attention=tuple(row for row in material.rows if not row.good),
        updates=tuple(last_updates(material.records)),
        updated=tuple(_updated(gpus)),
        groups=_groups(material.records, gpus),
        builds=tuple(_builds(material.rows)),
    )


def _sound(material: Material) -> Material:
    """Without figures that can't be one: those of one host would take the page from all."""
    records = tuple(r for r in material.records if _is_sound(r))
    count = len(material.records) - len(records)
    if not count:
        return material
    told = "1 figure that can't be one is" if count == 1 else f"{count} figures that can't be are"
    notes = (*material.notes, f"{told} left out; next: llamafleet history --json")
    return replace(material, records=records, notes=notes)


def _is_sound(record: Record) -> bool:
    """Of not-a-number every comparison is false."""
    rates = comparable.has_figure(record) and 0 <= record.stddev_ts < comparable.RATES[1]
    return rates and TIMES[0] <= record.test_time < TIMES[1]


def _counted(verdicts: Iterable[str]) -> dict[str, int]:
    counts = Counter(verdicts)
    return {verdict: counts[verdict] for verdict in WORST_FIRST if counts[verdict]}


def _updated(gpus: Iterable[GpuView]) -> Iterable[tuple[GpuView, SeriesView, ChangeView]]:
    """Of each GPU the newest change of driver, in the newest series of each test."""
    for gpu in gpus:
        told: set[str] = set()
        for one in gpu.series:
            test = one.records[-1].test
            last = next((c for c in reversed(one.changes) if c.driver), None)
            if last and test not in told:
                told.add(test)
                yield gpu, one, last


def _groups(records: Sequence[Record], gpus: Iterable[GpuView]) -> tuple[GroupView, ...]:
    """GPUs of one model and test by their last figure that is a baseline."""
    slow = {(gpu.uuid, one.kind) for gpu in gpus for one in gpu.slow}
    found: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for one in series(r for r in records if r.gpu_uuid and comparable.is_baseline(r)):
        key = comparable.key(one.last, (*comparable.CARD, *comparable.MEASURED))
        found[key].append(one.last)
    several = [some for some in found.values() if len(some) > 1]
    several.sort(key=lambda some: (comparable.card(some[0]), some[0].test))
    return tuple(_group(some, slow) for some in several)


def _group(some: Sequence[Record], slow: Container[tuple[str, Test]]) -> GroupView:
    dots = [
        plot.Dot(
            value=r.median_ts,
            label=f"{r.host} {r.gpu_uuid[:12]}",
            slow=(r.gpu_uuid, r.test) in slow,
        )
        for r in some
    ]
    title = f"{comparable.card(some[0])}: {title_of(some[0])}, {settings(some[0])}"
    figures = [dot.value for dot in dots]
    centre, low, high = median(figures), min(figures), max(figures)
    said = (
        f"{title}: {len(dots)} GPUs, median {rate(centre)}, lowest {rate(low)}, "
        f"highest {rate(high)} tokens per second"
    )
    return GroupView(title, len(dots), centre, low, high, plot.distribution(dots, said))


def _builds(rows: Iterable[Row]) -> Iterable[BuildView]:
    """A phase has the same colour in each of them."""
    built = [(row, row.built) for row in rows if row.built and row.built.wall_s is not None]
    names = list(dict.fromkeys(name for _, one in built for name in one.phases))
    for row, one in built:
        parts = [(names.index(name), seconds) for name, seconds in one.phases.items()]
        drawn = plot.phases(parts) if parts else Markup("")
        yield BuildView(row.host, row.build, one, drawn)
