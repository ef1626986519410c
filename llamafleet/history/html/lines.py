"""The figures of one GPU in one test as a plot, with what changed along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamafleet.history import comparable
from llamafleet.history.comparison import judged
from llamafleet.history.html import plot
from llamafleet.history.html.view import ChangeView, SeriesView, rate
from llamafleet.history.record import Record, Test
from llamafleet.history.series import Change, Series, around, changes, middle

SHOWN = ("flash attention", "KV type", "n_batch")
"""Of comparable.MEASURED, beside model and test."""

TESTS: Mapping[Test, str] = {"pp": "prompt processing", "tg": "generation"}


def line_of(id: str, one: Series) -> SeriesView:
    records = one.records[-plot.MOST_POINTS :]
    points = [plot.Point(r.test_time, r.median_ts, not comparable.is_baseline(r)) for r in records]
    changed = changes(records)
    found = tuple(_change(number, records, changed) for number in range(1, len(changed) + 1))
    title = title_of(one.last)
    rings = sum(point.busy for point in points)
    said = _said(title, records, found, rings)
    return SeriesView(
        id=id,
        test=comparable.test_name(one.last),
        title=title,
        settings=settings(one.last),
        records=records,
        left_out=len(one.records) - len(records),
        rings=rings,
        svg=plot.history(points, [(change.time, change.number) for change in found], said),
        axes=plot.axes(points),
        changes=found,
        said=said,
    )


def _change(number: int, records: tuple[Record, ...], found: Sequence[Change]) -> ChangeView:
    """`number` counts from 1."""
    at, what = found[number - 1].at, found[number - 1].what
    before, after = around(records, found, at)
    return ChangeView(
        number=number,
        time=records[at].test_time,
        what=what,
        before=middle(before),
        runs_before=len(before),
        after=middle(after),
        runs_after=len(after),
        judged=judged(([*before], [*after]), on_one_gpu=False) if before and after else None,
    )


def _said(title: str, records: Sequence[Record], found: Sequence[ChangeView], rings: int) -> str:
    figures = [record.median_ts for record in records]
    last = records[-1]
    parts = [
        f"{title}: {len(records)} measurements from {records[0].test_time:%Y-%m-%d} "
        f"to {last.test_time:%Y-%m-%d}",
        f"lowest {rate(min(figures))}, highest {rate(max(figures))}, "
        f"last {rate(last.median_ts)} tokens per second",
    ]
    if rings:
        parts.append(f"{rings} of a GPU that was not free and healthy")
    if found:
        parts.append(f"{len(found)} {'change' if len(found) == 1 else 'changes'}, told below")
    return "; ".join(parts)


def why_ring(record: Record) -> str:
    """Why a figure is no baseline; "": it is one."""
    if comparable.is_baseline(record):
        return ""
    return "; ".join(record.busy) or record.verdict or "no verdict"


def title_of(record: Record) -> str:
    """As "generation (tg128)"."""
    return f"{TESTS[record.test]} ({comparable.test_name(record)})"


def settings(record: Record) -> str:
    """The model, and what else is told of those that figures share; as "7b-q4_0, flash attention
    off"."""
    named = [(trait.name, trait.of(record)) for trait in comparable.MEASURED]
    parts = [comparable.model(record) or "model not told"]
    parts += [
        f"{name} {comparable.said(value)}" for name, value in named if name in SHOWN and told(value)
    ]
    return ", ".join(parts)


def told(value: object) -> bool:
    """Anything at all."""
    several = value if isinstance(value, tuple) else (value,)
    return any(one not in comparable.UNTOLD_VALUES for one in several)
