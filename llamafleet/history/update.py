"""Before and after a driver update: what a host's results say on either side of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamafleet.protocol.result import Result

SAME = ("model", "bench", "context")
"""Inputs of a verification that must agree, or the figures can't be compared."""


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


@dataclass(frozen=True)
class Update:
    """The last result under the driver before, and the first since under this one."""

    before: Side
    after: Side
    differs: tuple[str, ...] = ()
    """What else changed, so that the figures can't be compared."""


def find_update(earlier: Iterable[Result], result: Result) -> Update | None:
    """The update that `result` is the first to be measured after; None: there was none.

    `earlier`: the stored results of the host, in any order. Results without a benchmark don't end
    the search: a failed verification after an update is not the one to compare with.
    """
    driver = result.inputs.driver
    measured = [one for one in earlier if one.measured and one.inputs.driver]
    if not driver or not measured:
        return None
    before = max(measured, key=lambda one: one.finished)
    # An older result under this driver does not count: going back to it is an update too.
    if before.inputs.driver == driver:
        return None
    differs = tuple(n for n in SAME if getattr(before.inputs, n) != getattr(result.inputs, n))
    return Update(_side(before), _side(result), differs)


def describe(update: Update) -> list[str]:
    """One line for the verdict, and one for each figure that can be compared."""
    before, after = update.before, update.after
    lines = [f"driver {before.driver} -> {after.driver}: {before.verdict} -> {after.verdict}"]
    if before.build != after.build:
        lines[0] += f", build {before.build[:8]} -> {after.build[:8]}"
    if update.differs:
        return [f"{lines[0]}; not compared: another {', '.join(update.differs)}"]
    for name, old, new in (("pp", before.pp, after.pp), ("tg", before.tg, after.tg)):
        if old and new:
            lines.append(f"{name} {old} -> {new} t/s: {change(old, new)}")
    return lines


def change(old: Rate, new: Rate) -> str:
    """The change in percent, and whether it is more than both spreads together explain."""
    difference = new.median - old.median
    percent = f"{100 * difference / old.median:+.1f} %" if old.median else "no rate before"
    if abs(difference) <= old.spread + new.spread:
        return f"{percent}, within the spread"
    return f"{percent}, {'FASTER' if difference > 0 else 'SLOWER'} than the spread explains"


def _side(result: Result) -> Side:
    measured = result.measured
    return Side(
        driver=result.inputs.driver or "",
        verdict=result.verdict,
        build=result.fingerprint,
        pp=Rate(measured.pp.median_ts, measured.pp.stdev_ts) if measured else None,
        tg=Rate(measured.tg.median_ts, measured.tg.stdev_ts) if measured else None,
    )
