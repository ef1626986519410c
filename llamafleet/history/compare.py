"""A and B of one trait: two drivers, toolkits, builds, hosts or GPUs.

Runs of A and B are compared where everything else that counts is the same; by driver, toolkit or
build also only on the same GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llamafleet.history import comparable
from llamafleet.history.comparable import (
    BUILD,
    CARD,
    DRIVER,
    MEASURED,
    POWER,
    TEST,
    VERSION,
    Trait,
)
from llamafleet.history.comparison import (
    Comparison,
    Sides,
    blocks_of,
    differing,
    free_of,
    judged,
    left_out,
    refused,
    tested,
    told_apart,
)
from llamafleet.history.record import Figure, Record, Test

By = Literal["driver", "toolkit", "build", "host", "gpu"]
TESTS: tuple[Test, ...] = get_args(Test)
SHOWN = 10
"""Values that are named where one was not found."""


@dataclass(frozen=True)
class Axis:
    """What A and B are values of."""

    of: Callable[[Record], str]
    same: tuple[Trait, ...]
    """What must not differ beside."""
    on_one_gpu: bool
    """Each GPU is compared with itself."""
    part: str | None
    """What follows the beginning of a value: "." where 580 means 580.95.05; None: whole values."""


AXES: dict[By, Axis] = {
    "driver": Axis(lambda r: r.driver, (*MEASURED, *CARD, POWER, BUILD), True, "."),
    "toolkit": Axis(lambda r: r.toolkit, (*MEASURED, *CARD, POWER, DRIVER, VERSION), True, "."),
    "build": Axis(comparable.build, (*MEASURED, *CARD, POWER, DRIVER), True, ""),
    "host": Axis(lambda r: r.host, (*MEASURED, *CARD, POWER, DRIVER, BUILD), False, None),
    "gpu": Axis(lambda r: r.gpu_uuid, (*MEASURED, *CARD, POWER, DRIVER, BUILD), False, ""),
}


FIELDS: dict[By, str] = {
    "driver": "drivers",
    "toolkit": "toolkits",
    "build": "builds",
    "host": "hosts",
    "gpu": "gpus",
}
"""Of records.Filter."""


class NotFound(Exception):
    """No record has that value; the text may hold what hosts said."""


def patterns(by: By, value: str) -> tuple[str, ...]:
    """For records.Filter: all that `select` takes, so that a database reads no more than that."""
    part = AXES[by].part
    if part is None:
        return (value,)
    return value, f"{value}{part}*", f"GPU-{value}{part}*"


def select(figures: Iterable[Figure], by: By, value: str) -> list[Figure]:
    """Those of that value, or of one that begins so. Raises NotFound."""
    axis, counts = AXES[by], Counter[str]()
    found = []
    for one in figures:
        told = axis.of(one.of)
        if _means(axis, value, told):
            found.append(one)
        elif told:
            counts[told] += 1
    if not found:
        some = ", ".join(f"{name} ({n} records)" for name, n in counts.most_common(SHOWN))
        raise NotFound(
            f"--by {by}: found no record of {value!r}; expected one of: {some or 'none at all'}; "
            "next: llamafleet history"
        )
    return found


def _means(axis: Axis, value: str, told: str) -> bool:
    if not value or axis.part is None:
        return bool(value) and told == value
    begins = value + axis.part
    return told == value or told.startswith(begins) or told.startswith(f"GPU-{begins}")


def common(a: Iterable[Figure], b: Iterable[Figure], by: By) -> bool:
    """Whether any is both A and B."""
    of_a, of_b = ({AXES[by].of(one.of) for one in side} for side in (a, b))
    return not of_a.isdisjoint(of_b)


def compare(
    a: Sequence[Figure], b: Sequence[Figure], by: By, *, force: bool = False
) -> list[Comparison]:
    """One for each test and model of GPU that both sides have, or why there is none.

    `force`: each test as it is, BUSY figures too, whatever else differs.
    """
    axis, found = AXES[by], []
    for kind in TESTS:
        sides = [r for r in a if r.of.test == kind], [r for r in b if r.of.test == kind]
        if any(sides):
            found += [_forced(sides, axis)] if force else _of_one_test(sides, axis)
    return found


def _of_one_test(sides: Sides, axis: Axis) -> list[Comparison]:
    groups: dict[tuple[object, ...], Sides] = {}
    for number, side in enumerate(sides):
        for one in side:
            group = groups.setdefault(comparable.key(one.of, axis.same), ([], []))
            group[number].append(one)
    both = [group for group in groups.values() if all(free_of(group))]
    if not both:
        return [refused(sides, differing(sides, axis.same))]
    found = [judged(group, on_one_gpu=axis.on_one_gpu) for group in both]
    return list(told_apart(found, [a[0].of for a, _ in both], axis.same))


def _forced(sides: Sides, axis: Axis) -> Comparison:
    a, b = ([r for r in side if comparable.has_figure(r.of)] for side in sides)
    if not a or not b:
        return refused(sides, [])
    why = comparable.differing(a, b, [trait for trait in axis.same if trait is not TEST])
    why += [f"{count} {name} among them" for name, count in left_out((a, b)).items()]
    blocks = blocks_of((a, b)) if axis.on_one_gpu else []
    return tested(blocks or [(a, b)], [f"forced: {one}" for one in why])
