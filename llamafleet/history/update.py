"""Before and after a driver update: what a host's results say on either side of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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


def find_update(earlier: Iterable[Mapping[str, Any]], result: Mapping[str, Any]) -> Update | None:
    """The update that `result` is the first to be measured after; None: there was none.

    `earlier`: the stored results of the host, in any order. Results without a benchmark don't end
    the search: a failed verification after an update is not the one to compare with.
    """
    driver = _driver(result)
    measured = [r for r in earlier if r.get("benchmark") and _driver(r)]
    if not driver or not measured:
        return None
    before = max(measured, key=lambda r: float(r.get("finished") or 0))
    # An older result under this driver does not count: going back to it is an update too.
    if _driver(before) == driver:
        return None
    old, new = before.get("inputs") or {}, result.get("inputs") or {}
    differs = tuple(name for name in SAME if old.get(name) != new.get(name))
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


def _driver(result: Mapping[str, Any]) -> str:
    return str((result.get("inputs") or {}).get("driver") or "")


def _side(result: Mapping[str, Any]) -> Side:
    benchmark = result.get("benchmark") or {}
    return Side(
        driver=_driver(result),
        verdict=str(result.get("verdict")),
        build=str(result.get("fingerprint") or ""),
        pp=_rate(benchmark.get("pp")),
        tg=_rate(benchmark.get("tg")),
    )


def _rate(figures: Mapping[str, Any] | None) -> Rate | None:
    if not figures or "median_ts" not in figures:
        return None
    return Rate(float(figures["median_ts"]), float(figures.get("stdev_ts") or 0))
