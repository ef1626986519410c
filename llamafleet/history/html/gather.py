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
    ORDER,
    BuildView,
    GpuView,
    GroupView,
    Material,
    Page,
    UpdatedGpu,
    UpdateView,
    rate,
)
from llamafleet.history.lastupdate import Updated, last_updates
from llamafleet.history.record import Record, Test
from llamafleet.history.series import GpuKey, gpu_key, series
from llamafleet.history.store import Row
from llamafleet.history.table import short

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
        attention=_attention(material.rows, gpus),
        updates=tuple(map(_update, last_updates(material.records))),
        updated=_updated(material.records, gpus),
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
    return {verdict: counts[verdict] for verdict in ORDER if counts[verdict]}


def _attention(rows: Iterable[Row], gpus: Iterable[GpuView]) -> tuple[tuple[Row, str], ...]:
    """`gpus`: the worst first."""
    worst: dict[str, str] = {}
    for gpu in gpus:
        worst.setdefault(gpu.host, gpu.id)
    bad = sorted((r for r in rows if not r.good), key=lambda r: ORDER.index(r.verdict))
    return tuple((row, worst[row.host]) for row in bad)


def _update(update: Updated) -> UpdateView:
    """All differences of one update are drawn to one scale."""
    ends = [end for one in update.comparisons for end in (one.ratio, one.low, one.high) if end]
    scale = max((abs(end - 1) for end in ends), default=0.0)
    drawn = tuple((one, plot.difference(one, scale)) for one in update.comparisons)
    return UpdateView(update, drawn)


def _updated(records: Iterable[Record], gpus: Iterable[GpuView]) -> tuple[UpdatedGpu, ...]:
    by_key: dict[GpuKey, list[Record]] = defaultdict(list)
    for record in records:
        by_key[gpu_key(record)].append(record)
    found = [
        UpdatedGpu(gpu, update, one)
        for gpu in gpus
        for update in last_updates(by_key.get(gpu.key, ()))
        for one in update.comparisons
    ]
    # No comparison, or one without an answer, after all that lost or gained.
    return tuple(sorted(found, key=lambda one: (one.found.p is None, one.found.ratio or 0.0)))


def _groups(records: Sequence[Record], gpus: Iterable[GpuView]) -> tuple[GroupView, ...]:
    """GPUs of one model and test by their last figure that is a baseline; of a slow one by its
    last: most that makes a GPU slow makes it BUSY."""
    slow = {(gpu.uuid, one.kind) for gpu in gpus for one in gpu.slow}
    shown = (r for r in records if r.gpu_uuid)
    found: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for one in series(
        r for r in shown if comparable.is_baseline(r) or (r.gpu_uuid, r.test) in slow
    ):
        key = comparable.key(one.last, (*comparable.CARD, *comparable.MEASURED))
        found[key].append(one.last)
    several = [some for some in found.values() if len(some) > 1]
    several.sort(key=lambda some: (comparable.card(some[0]), some[0].test))
    return tuple(_group(some, slow) for some in several)


def _group(some: Sequence[Record], slow: Container[tuple[str, Test]]) -> GroupView:
    dots = [
        plot.Dot(
            value=r.median_ts,
            label=f"{r.host} {short(r.gpu_uuid)}",
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
        parts = tuple(
            (names.index(name) % plot.COLOURS, name, seconds)
            for name, seconds in one.phases.items()
        )
        drawn = plot.phases([(n, s) for n, _, s in parts]) if parts else Markup("")
        yield BuildView(row.host, row.build, one, parts, drawn)
