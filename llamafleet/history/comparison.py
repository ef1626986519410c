"""Two sets of runs that are comparable, judged: faster, slower, or what else can be said.

A unit is one run: its median. Repetitions within a run are no units, as they share its moment: on
one H200 they lie 0.1 % apart and two runs 0.4 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from llamafleet.history import comparable
from llamafleet.history.ranks import Block, shift
from llamafleet.history.record import Record, Test

Answer = Literal["faster", "slower", "no difference shown", "too few runs", "not comparable"]

ALPHA = 0.05
"""One in twenty of what does not differ would be called different, were comparable.LEAST not
there too."""
MOST_RUNS = 100
"""Of one GPU on either side: the newest."""
ENOUGH = "4 runs on either side on one GPU, or 1 on either side on 6 GPUs"
"""What ALPHA takes at the least; tests/history/test_compare.py counts it."""

Sides = tuple[list[Record], list[Record]]
"""Of A, of B."""


@dataclass(frozen=True)
class Side:
    """The runs of A, or of B, that were compared."""

    runs: int
    gpus: int
    median_ts: float


@dataclass(frozen=True)
class Comparison:
    """What is said of one test on one model of GPU. Rates in tokens per second."""

    test: str
    """As pp512."""
    kind: Test
    card: str
    model: str
    answer: Answer
    a: Side | None = None
    b: Side | None = None
    ratio: float | None = None
    """B by A: the median over all pairs of runs that were compared."""
    low: float | None = None
    """Ends of the interval of 95 % confidence."""
    high: float | None = None
    p: float | None = None
    why: tuple[str, ...] = ()
    """Why it is not comparable, or what was forced."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Records that are no baseline, by reason."""


def blocks_of(sides: Sides) -> list[Sides]:
    """The runs of each GPU that has some on both."""
    a, b = (_by_place(side) for side in sides)
    return [(a[one], b[one]) for one in a if one in b]


def _by_place(records: Iterable[Record]) -> dict[tuple[object, ...], list[Record]]:
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        found.setdefault(comparable.place(record), []).append(record)
    return found


def judged(sides: Sides, *, on_one_gpu: bool) -> Comparison:
    """Of records that are comparable; BUSY ones are left out. `on_one_gpu`: each with itself."""
    free = free_of(sides)
    if not all(free):
        return refused(sides, [])
    blocks = blocks_of(free) if on_one_gpu else [free]
    if not blocks:
        return refused(sides, ["no GPU has runs of both A and B"])
    return replace(tested(blocks), left_out=left_out(sides))


def tested(blocks: Sequence[Sides], why: Sequence[str] = ()) -> Comparison:
    """The comparison of all runs in `blocks`, whatever they are."""
    blocks = [(_newest(a), _newest(b)) for a, b in blocks]
    told = _told(_joined(blocks), "too few runs", why)
    figures: list[Block] = [(_logs(a), _logs(b)) for a, b in blocks]
    found = shift(figures, ALPHA)
    if found is None:
        rough = median(y - x for a, b in figures for x in a for y in b)
        return replace(told, ratio=math.exp(rough))
    ratio, low, high = (math.exp(one) for one in (found.estimate, found.low, found.high))
    answer: Answer = "no difference shown"
    if found.p <= ALPHA and abs(ratio - 1) >= _least(told):
        answer = "faster" if ratio > 1 else "slower"
    return replace(told, answer=answer, ratio=ratio, low=low, high=high, p=found.p)


def _newest(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda one: one.test_time)[-MOST_RUNS:]


def _joined(blocks: Sequence[Sides]) -> Sides:
    return [r for a, _ in blocks for r in a], [r for _, b in blocks for r in b]


def _logs(records: Iterable[Record]) -> list[float]:
    return [math.log(record.median_ts) for record in records]


def _least(told: Comparison) -> float:
    sides = [side.median_ts for side in (told.a, told.b) if side]
    return comparable.least(told.kind, max(sides), comparable.LEAST)


# -- what can't be compared ------------------------------------------------------------------------


def refused(sides: Sides, why: Sequence[str]) -> Comparison:
    """`sides` with what is no baseline; it is said which side has nothing else."""
    missing = [
        f"{name} has no {(*sides[0], *sides[1])[0].test} of a free and healthy GPU"
        for name, side in zip("AB", free_of(sides), strict=True)
        if not side
    ]
    return replace(_told(sides, "not comparable", missing or why), left_out=left_out(sides))


def free_of(sides: Sides) -> Sides:
    a, b = ([r for r in side if comparable.is_baseline(r)] for side in sides)
    return a, b


def left_out(sides: Sides) -> dict[str, int]:
    """How many are no baseline, by reason."""
    rest = [r for side in sides for r in side if not comparable.is_baseline(r)]
    return dict(Counter("BUSY" if r.busy else r.verdict or "no figure" for r in rest))


def _told(sides: Sides, answer: Answer, why: Sequence[str]) -> Comparison:
    every = (*sides[0], *sides[1])
    return Comparison(
        test=_one(map(comparable.test_name, every)),
        kind=every[0].test,
        card=_one(map(comparable.card, every)),
        model=_one(map(comparable.model, every)),
        answer=answer,
        a=_side(sides[0]),
        b=_side(sides[1]),
        why=tuple(why),
    )


def _one(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _side(records: Sequence[Record]) -> Side | None:
    if not records:
        return None
    gpus = len({comparable.place(record) for record in records})
    return Side(len(records), gpus, median(record.median_ts for record in records))
