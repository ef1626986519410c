"""Two sets of runs that are comparable, judged: faster, slower, or what else can be said.

A unit is one run: its median. Repetitions within a run are no units, as they share its moment: on
one H200 they lie 0.1 % apart and two runs 0.4 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from llamafleet.history import comparable
from llamafleet.history.comparable import Trait
from llamafleet.history.ranks import Block, shift
from llamafleet.history.record import Figure, Record, Test

Answer = Literal["faster", "slower", "no difference shown", "too few runs", "not comparable"]

NOTHING_SHOWN: Answer = "no difference shown"

ALPHA = 0.05
"""One in twenty of what does not differ would be called different, were comparable.LEAST not
there too."""
MOST_RUNS = 100
"""Of one GPU on either side: the newest."""
ENOUGH = "4 runs on either side on one GPU, or 1 on either side on 6 GPUs"
"""What ALPHA takes at the least; tests/history/test_compare.py counts it."""

Sides = tuple[list[Figure], list[Figure]]
"""Of A, of B."""


@dataclass(frozen=True)
class Side:
    """The runs of A, or of B, that were compared."""

    runs: int
    gpus: int
    """0: the CPU's."""
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
    """Why it is not comparable, what was forced, or why a difference is not spoken of."""
    under: tuple[str, ...] = ()
    """What tells it from another with the same test, card and model, as "power limit: 350 W"."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Records that are no baseline, by reason."""

    @property
    def title(self) -> str:
        """Of what it speaks; only the test is not in it."""
        return ", ".join((self.card, self.model, *self.under))


def told_apart(
    found: Sequence[Comparison], of: Sequence[Record], traits: Sequence[Trait]
) -> tuple[Comparison, ...]:
    """Those that would look alike, with the traits in which they are not.

    `of`: a record of each.
    """
    alike: dict[tuple[str, ...], list[Record]] = {}
    for one, record in zip(found, of, strict=True):
        alike.setdefault((one.test, one.title), []).append(record)
    return tuple(
        replace(one, under=tuple(_apart(record, alike[one.test, one.title], traits)))
        for one, record in zip(found, of, strict=True)
    )


def _apart(record: Record, others: Sequence[Record], traits: Sequence[Trait]) -> Iterator[str]:
    for trait in traits:
        if len({comparable.said(trait.of(one)) for one in others}) > 1:
            yield f"{trait.name}: {comparable.said(trait.of(record))}"


def blocks_of(sides: Sides) -> list[Sides]:
    """The runs of each GPU that has some on both."""
    a, b = (_by_place(side) for side in sides)
    return [(a[one], b[one]) for one in a if one in b]


def _by_place(figures: Iterable[Figure]) -> dict[tuple[object, ...], list[Figure]]:
    found: dict[tuple[object, ...], list[Figure]] = {}
    for one in figures:
        found.setdefault(comparable.place(one.of), []).append(one)
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
    told = replace(told, answer=NOTHING_SHOWN, ratio=ratio, low=low, high=high, p=found.p)
    # Where figures are equal p may be below ALPHA and an end of the interval be 1.
    if found.p > ALPHA or low <= 1 <= high:
        return told
    if abs(ratio - 1) < _least(told):
        return replace(told, why=(*told.why, _too_little(told)))
    return replace(told, answer="faster" if ratio > 1 else "slower")


def _too_little(told: Comparison) -> str:
    least = _least(told)
    if least > comparable.LEAST:
        return (
            f"less than {least:.0%}: above {comparable.HIGH[told.kind]:,.0f} t/s it is the "
            "launching of kernels that is measured"
        )
    return f"less than {least:.0%}, by which two runs of one GPU may differ"


def _newest(figures: Iterable[Figure]) -> list[Figure]:
    return sorted(figures, key=lambda one: one.test_time)[-MOST_RUNS:]


def _joined(blocks: Sequence[Sides]) -> Sides:
    return [r for a, _ in blocks for r in a], [r for _, b in blocks for r in b]


def _logs(figures: Iterable[Figure]) -> list[float]:
    return [math.log(one.median_ts) for one in figures]


def _least(told: Comparison) -> float:
    sides = [side.median_ts for side in (told.a, told.b) if side]
    return comparable.least(told.kind, max(sides), comparable.LEAST)


# -- what can't be compared ------------------------------------------------------------------------


def refused(sides: Sides, why: Sequence[str]) -> Comparison:
    """`sides` with what is no baseline; it is said which side has nothing else."""
    missing = [
        f"{name} has no {(*sides[0], *sides[1])[0].of.test} of a free and healthy GPU"
        for name, side in zip("AB", free_of(sides), strict=True)
        if not side
    ]
    return replace(_told(sides, "not comparable", missing or why), left_out=left_out(sides))


def differing(sides: Sides, traits: Sequence[Trait]) -> list[str]:
    """Why no free run of A is as one of B; never empty."""
    found = comparable.differing(*free_of(sides), traits)
    names = ", ".join(trait.name for trait in traits)
    return found or [f"no run of A has all of these as one of B has them: {names}"]


def free_of(sides: Sides) -> Sides:
    a, b = ([r for r in side if comparable.is_baseline(r.of)] for side in sides)
    return a, b


def left_out(sides: Sides) -> dict[str, int]:
    """How many are no baseline, by reason."""
    return dict(Counter(why for side in sides for r in side if (why := comparable.flaw(r.of))))


def _told(sides: Sides, answer: Answer, why: Sequence[str]) -> Comparison:
    every = [one.of for side in sides for one in side]
    return Comparison(
        test=_one(map(comparable.test_name, every)),
        kind=every[0].test,
        card=_one(map(comparable.cards, every)),
        model=_one(map(comparable.model, every)),
        answer=answer,
        a=_side(sides[0]),
        b=_side(sides[1]),
        why=tuple(why),
    )


def _one(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _side(figures: Sequence[Figure]) -> Side | None:
    if not figures:
        return None
    # Of a place, as each of its runs tells it: several GPUs that worked together are as many.
    gpus = sum({comparable.place(one.of): one.of.gpus for one in figures}.values())
    return Side(len(figures), gpus, median(one.median_ts for one in figures))
