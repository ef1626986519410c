"""What the last driver update of each GPU cost or brought: all runs before it and since.

A driver that came back to an older version is an update as well. One under which the GPU never was
free is passed over, as nothing can be held against it. Runs of one build are compared where both
drivers have some; else it is said which build came along. Another model, power limit or flash
attention makes it no comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from llamafleet.history import comparable
from llamafleet.history.comparable import BUILD, CARD, MEASURED, POWER, TOOLKIT, Trait
from llamafleet.history.comparison import (
    Comparison,
    Sides,
    differing,
    free_of,
    judged,
    refused,
    told_apart,
)
from llamafleet.history.record import Figure

SAME = (*MEASURED, POWER)
"""Of one GPU: its name may change with the driver."""
BESIDE = (BUILD, TOOLKIT)
"""What an update may bring along."""
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
    """What else changed with it, and on how many of them where not on all."""


@dataclass(frozen=True)
class _Change:
    """The last one of one GPU, in one test."""

    drivers: tuple[str, str]
    sides: Sides
    parts: tuple[Sides, ...]
    """Those of `sides` that may be compared, each for itself; each has free runs on both."""
    first: tuple[datetime, str]
    """Time and id of the oldest record."""

    @property
    def since(self) -> datetime:
        return self.sides[1][0].test_time

    @property
    def place(self) -> Key:
        return comparable.place(self.sides[1][0].of)


def last_updates(figures: Iterable[Figure]) -> list[Updated]:
    """The last update of every GPU, equal ones together, the newest first."""
    return last_updates_of([figures])


def last_updates_of(gpus: Iterable[Iterable[Figure]]) -> list[Updated]:
    """The same of one GPU after the other: all its figures, or those of several. Of each only what
    is compared is held to the end."""
    found = (change for figures in gpus for change in _changes(figures))
    alike: dict[tuple[str, str], list[_Change]] = {}
    # As if they had come oldest first: what is measured at the same time has the order of ids.
    for change in sorted(found, key=lambda one: one.first):
        alike.setdefault(change.drivers, []).append(change)
    updates = [_updated(changes) for changes in alike.values()]
    return sorted(updates, key=lambda one: one.since, reverse=True)


def _changes(figures: Iterable[Figure]) -> Iterator[_Change]:
    """One for each GPU and test of which both drivers have figures."""
    histories: dict[Key, list[Figure]] = {}
    for one in figures:
        if one.of.driver and one.of.gpus > 0:
            histories.setdefault((one.of.test, *comparable.place(one.of)), []).append(one)
    for history in histories.values():
        history.sort(key=lambda one: one.test_time)
        before, after = sides = _sides(history)
        if before:
            drivers = before[-1].of.driver, after[-1].of.driver
            first = history[0].test_time, history[0].of.id
            yield _Change(drivers, sides, tuple(_parts(sides)), first)


def _sides(history: Sequence[Figure]) -> Sides:
    """The runs under the driver before, and under that of now; of no update the first are none."""
    newest = _tail(history)
    earlier = history[: len(history) - len(newest)]
    free = [one for one in earlier if comparable.is_baseline(one.of)]
    line = [*(free or earlier), *newest]
    after = _tail(line)
    before = _tail(line[: len(line) - len(after)])
    if before and free:
        since, driver = before[0].test_time, before[0].of.driver
        before = [one for one in earlier if one.of.driver == driver and one.test_time >= since]
    return before, after


def _tail(history: Sequence[Figure]) -> list[Figure]:
    """The newest runs, as far back as they have one driver."""
    at = len(history)
    while at > 0 and history[at - 1].of.driver == history[-1].of.driver:
        at -= 1
    return list(history[at:])


def _parts(sides: Sides) -> Iterator[Sides]:
    """One for each thing that was measured under both drivers; of several builds that both have,
    the one that was measured last."""
    for part in _by(sides, SAME):
        of_one_build = _by(part, BESIDE)
        yield max(of_one_build, key=lambda one: one[1][-1].test_time, default=part)


def _by(sides: Sides, traits: Sequence[Trait]) -> list[Sides]:
    """Parted by traits; those without a free run on either side are left out."""
    found: dict[Key, Sides] = {}
    for number, side in enumerate(sides):
        for one in side:
            found.setdefault(comparable.key(one.of, traits), ([], []))[number].append(one)
    return [part for part in found.values() if all(free_of(part))]


def _updated(changes: Sequence[_Change]) -> Updated:
    before, after = changes[0].drivers
    groups: dict[Key, list[Sides]] = {}
    for change in changes:
        # What can't be compared is told apart, or it would be lost in what can.
        for part in change.parts or (change.sides,):
            newest = part[1][-1].of
            key = (bool(change.parts), *comparable.key(newest, (*SAME, *CARD)))
            groups.setdefault(key, []).append(part)
    joined = [(able, _joined(parts)) for (able, *_), parts in groups.items()]
    found = [_compared(sides, able=bool(able)) for able, sides in joined]
    return Updated(
        before=before,
        after=after,
        since=min(change.since for change in changes),
        comparisons=told_apart(found, [sides[1][-1].of for _, sides in joined], SAME),
        also=tuple(_also(changes)),
    )


def _compared(sides: Sides, *, able: bool) -> Comparison:
    return judged(sides, on_one_gpu=True) if able else refused(sides, differing(sides, SAME))


def _also(changes: Sequence[_Change]) -> Iterator[str]:
    for trait in BESIDE:
        moved: dict[Key, Sides] = {}
        for change in changes:
            sides = _joined(change.parts or (change.sides,))
            if comparable.differing(*sides, (trait,)):
                old = moved.get(change.place, ([], []))
                moved[change.place] = _joined((old, sides))
        if moved:
            gpus = len({change.place for change in changes})
            some = f" (on {len(moved)} of {gpus} GPUs)" if len(moved) < gpus else ""
            yield comparable.of_both(*_joined(moved.values()), trait) + some


def _joined(parts: Iterable[Sides]) -> Sides:
    several = list(parts)
    return [r for a, _ in several for r in a], [r for _, b in several for r in b]
