"""Before and after a driver update: what a host's results say on either side of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamafleet.history.comparable import LEAST, least
from llamafleet.history.record import Test
from llamafleet.protocol.result import Result

SAME = ("model", "bench", "context")
"""Inputs of a verification that must agree, or the figures can't be compared; and its GPUs."""


@dataclass(frozen=True)
class Rate:
    """Tokens per second."""

    median: float
    spread: float
    """Standard deviation of the repetitions."""

    def __str__(self) -> str:
        return f"{self.median:,.1f} ± {self.spread:,.1f}"


@dataclass(frozen=True)
class Side:
    """One result, as far as an update matters."""

    driver: str
    verdict: str
    build: str
    """Fingerprint."""
    pp: Rate | None = None
    tg: Rate | None = None
    busy: bool = False
    """The figures are not those of a free and healthy GPU: nothing is compared with them."""


@dataclass(frozen=True)
class Update:
    """The last result under the driver before, and the first since under this one."""

    before: Side
    after: Side
    differs: tuple[str, ...] = ()
    """What else changed, so that the figures can't be compared."""
    passed_over: int = 0
    """Results since `before` whose figures are no baseline, being BUSY."""


def find_update(earlier: Iterable[Result], result: Result) -> Update | None:
    """The update that `result` is the first to be measured after; None: there was none.

    `earlier`: the stored results of the host, in any order. Results without a benchmark don't end
    the search: a failed verification after an update is not the one to compare with. Nor do those
    of a GPU that was not free, unless there are no others.
    """
    driver = result.inputs.driver
    measured = [one for one in earlier if one.measured and one.inputs.driver]
    if not driver or not measured:
        return None
    free = [one for one in measured if not one.measured_busy]
    before = max(free or measured, key=lambda one: one.finished)
    passed_over = [one for one in measured if one.finished > before.finished]
    # An older result under this driver does not count: going back to it is an update too.
    if before.inputs.driver == driver:
        return None
    return Update(_side(before), _side(result), _differs(before, result), len(passed_over))


def _differs(before: Result, result: Result) -> tuple[str, ...]:
    names = [n for n in SAME if getattr(before.inputs, n) != getattr(result.inputs, n)]
    # By UUID: a newer driver may give a GPU another name.
    if {*before.inputs.uuids} != {*result.inputs.uuids}:
        names.append("set of GPUs")
    return tuple(names)


def describe(update: Update) -> list[str]:
    """One line for the verdict, and one for each figure that can be compared."""
    before, after = update.before, update.after
    lines = [f"driver {before.driver} -> {after.driver}: {before.verdict} -> {after.verdict}"]
    if before.build != after.build:
        lines[0] += f", build {before.build[:8]} -> {after.build[:8]}"
    if reasons := _why_not_compared(update):
        return [f"{lines[0]}; not compared: {', '.join(reasons)}"]
    if update.passed_over:
        lines[0] += f"; {update.passed_over} BUSY since then, no baseline"
    pairs: tuple[tuple[Test, Rate | None, Rate | None], ...] = (
        ("pp", before.pp, after.pp),
        ("tg", before.tg, after.tg),
    )
    for test, old, new in pairs:
        if old and new:
            lines.append(f"{test} {old} -> {new} t/s: {change(test, old, new)}")
    return lines


def _why_not_compared(update: Update) -> list[str]:
    reasons = [f"another {', '.join(update.differs)}"] if update.differs else []
    sides = (("before", update.before), ("after", update.after))
    when = [name for name, side in sides if side.busy]
    return reasons + ([f"the GPU was BUSY {' and '.join(when)}"] if when else [])


def change(test: Test, old: Rate, new: Rate) -> str:
    """The change in percent, and whether it is more than both spreads and comparable.least explain.

    A run on either side is no proof: `llamafleet compare --last-update` takes all there are.
    """
    difference = new.median - old.median
    percent = f"{100 * difference / old.median:+.1f} %" if old.median else "no rate before"
    if abs(difference) <= old.spread + new.spread:
        return f"{percent}, within the spread"
    if abs(difference) < least(test, max(old.median, new.median), LEAST) * old.median:
        return f"{percent}, less than runs of one GPU may differ by"
    return f"{percent}, {'FASTER' if difference > 0 else 'SLOWER'} than the spread explains"


def _side(result: Result) -> Side:
    measured = result.measured
    return Side(
        driver=result.inputs.driver or "",
        verdict=result.verdict,
        build=result.fingerprint,
        pp=Rate(measured.pp.median_ts, measured.pp.stdev_ts) if measured else None,
        tg=Rate(measured.tg.median_ts, measured.tg.stdev_ts) if measured else None,
        busy=result.measured_busy,
    )
