"""What the last driver update of each GPU cost or brought: all runs before it and since.

A driver that came back to an older version is an update as well. What an update brings along, as
another build, is said beside; another model, power limit or flash attention makes it no comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from llamafleet.history import comparable
from llamafleet.history.comparable import BUILD, CARD, MEASURED, POWER, TOOLKIT
from llamafleet.history.comparison import Comparison, Sides, judged, refused
from llamafleet.history.record import Record

SAME = (*MEASURED, POWER)
"""Of one GPU: its name may change with the driver."""
Key = tuple[object, ...]


@dataclass(frozen=True)
class Updated:
    """GPUs that went from one driver to another, and what their figures say."""

    before: str
    """Driver."""
    after: str
    since: datetime
    """When the first of them was measured after it."""
    comparisons: tuple[Comparison, ...]
    also: tuple[str, ...] = ()
    """What else changed with it on all of them."""


@dataclass(frozen=True)
class _Change:
    """The last one of one GPU, in one test."""

    drivers: tuple[str, str]
    sides: Sides

    @property
    def since(self) -> datetime:
        return self.sides[1][0].test_time


def last_updates(records: Iterable[Record]) -> list[Updated]:
    """The last update of every GPU, equal ones together, the newest first."""
    alike: dict[tuple[str, str], list[_Change]] = {}
    for change in _changes(records):
        alike.setdefault(change.drivers, []).append(change)
    found = [_updated(changes) for changes in alike.values()]
    return sorted(found, key=lambda one: one.since, reverse=True)


def _changes(records: Iterable[Record]) -> Iterable[_Change]:
    """One for each GPU and test of which both drivers have figures."""
    histories: dict[Key, list[Record]] = {}
    for record in records:
        if record.driver and record.gpus > 0:
            histories.setdefault((record.test, *comparable.place(record)), []).append(record)
    for history in histories.values():
        history.sort(key=lambda one: one.test_time)
        after = _tail(history)
        before = _tail(history[: -len(after)])
        if before:
            yield _Change((before[-1].driver, after[-1].driver), (before, after))


def _tail(history: Sequence[Record]) -> list[Record]:
    """The newest runs, as far back as they have one driver."""
    at = len(history)
    while at > 0 and history[at - 1].driver == history[-1].driver:
        at -= 1
    return list(history[at:])


def _updated(changes: Sequence[_Change]) -> Updated:
    before, after = changes[0].drivers
    groups: dict[Key, list[_Change]] = {}
    for change in changes:
        newest = change.sides[1][-1]
        groups.setdefault(comparable.key(newest, (*SAME, *CARD)), []).append(change)
    return Updated(
        before=before,
        after=after,
        since=min(change.since for change in changes),
        comparisons=tuple(map(_compared, groups.values())),
        also=tuple(comparable.differing(*_joined(changes), (BUILD, TOOLKIT))),
    )


def _compared(changes: Sequence[_Change]) -> Comparison:
    """Of each GPU the runs that are as its newest one."""
    same = [_alike(change.sides) for change in changes]
    sides = [r for a, _ in same for r in a], [r for _, b in same for r in b]
    if not sides[0]:
        every = _joined(changes)
        return refused(every, comparable.differing(*every, SAME))
    return judged(sides, on_one_gpu=True)


def _alike(sides: Sides) -> Sides:
    wanted = comparable.key(sides[1][-1], SAME)
    a, b = ([r for r in side if comparable.key(r, SAME) == wanted] for side in sides)
    return a, b


def _joined(changes: Sequence[_Change]) -> Sides:
    return (
        [r for change in changes for r in change.sides[0]],
        [r for change in changes for r in change.sides[1]],
    )
