"""`python -m tests.bench.outliers [FLEETS]`: false alarms and finds in simulated fleets.

Prints the tables of docs/compare.md. Nothing is random but by a fixed seed. A fleet's GPUs differ
by a share of their own (normal, or with a long tail to the slow side), its runs by another one.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llamafleet.history import outliers
from llamafleet.history.record import Record, Test
from tests.history.made import RATES, record

FLEETS = 1000
RUNS = 1
"""Of each GPU: more would be closer together."""
SPREAD = 0.004
"""Of the runs of one GPU; measured on an H200, 2026-11-26."""
SIZES = (5, 8, 16, 64)
APART = (0.005, 0.01, 0.02, 0.03)
"""How far GPUs of one model are apart; 0.004 is measured, of four H200s."""
FLAT = (-2.0, -3.5)
"""Limits of z that are the same for any number of peers, to compare with."""
SLOWER = (0.04, 0.06, 0.08, 0.12, 0.2)
SMALL = (5, 8, 16)
OF_SMALL = (0.06, 0.08, 0.12, 0.16, 0.2, 0.3)
SEVERAL = ((5, 2), (6, 2), (6, 3), (8, 2), (8, 3), (8, 4), (8, 5), (16, 4), (16, 8), (16, 9))
"""GPUs, and how many of them are 20 % slower; 0.5 % apart."""
PLANTED: dict[str, dict[str, object]] = {
    "its power limit": {"power_limit_w": 450.0, "busy": ("capped",), "verdict": "BUSY"},
    "other process": {"processes": 1, "busy": ("in use",), "verdict": "BUSY"},
    "slowed down (thermal)": {"throttled_s": {"thermal": 2.0}, "busy": ("hot",)},
    "SM clock": {"sm_clock_mhz": 1500.0, "busy": ("locked",)},
    "PCIe x4": {"pcie_width": 4},
    "persistence": {"persistence": False},
}


@dataclass(frozen=True)
class Fleet:
    gpus: int
    apart: float
    tail: bool = False
    """One GPU in ten is up to four times `apart` slower: a mixture, and none of them is ill."""

    def records(self, chance: random.Random) -> Iterator[Record]:
        for gpu in range(self.gpus):
            for test in RATES:
                level = RATES[test] * (1 + chance.gauss(0, self.apart))
                if self.tail and chance.random() < 0.1:
                    level *= 1 - 4 * self.apart * chance.random()
                yield from runs(gpu, test, level, chance)


def runs(gpu: int, test: Test, level: float, chance: random.Random) -> Iterator[Record]:
    for run in range(RUNS):
        rate = level * (1 + chance.gauss(0, SPREAD))
        yield record(gpu, test, run / 10, median_ts=rate)


def found(records: list[Record]) -> list[outliers.Outlier]:
    return [one for group in outliers.find_outliers(records) for one in group.outliers]


def share(count: int, fleets: int) -> str:
    return f"{100 * count / fleets:.1f} %"


def alarms(fleet: Fleet, fleets: int) -> list[str]:
    """In how many fleets any GPU is flagged, by limit: what the laxest one flags is looked at."""
    counts = [0] * (len(FLAT) + 1)
    usual = outliers.z_limit
    outliers.z_limit = lambda peers: max(FLAT)
    for seed in range(fleets):
        flagged = found(list(fleet.records(random.Random(seed))))
        for at, limit in enumerate(FLAT):
            counts[at] += any(one.z <= limit for one in flagged)
        counts[-1] += any(one.z <= usual(one.peers) for one in flagged)
    outliers.z_limit = usual
    return [share(count, fleets) for count in counts]


def healthy(fleets: int) -> None:
    heads = [f"z <= {z:g}" for z in FLAT]
    print(f"| GPUs | apart | long tail | {' | '.join(heads)} | as it is |")
    print("|---|---|---|" + "---|" * (len(heads) + 1))
    for gpus in SIZES:
        for apart in APART:
            for tail in (False, True):
                cells = alarms(Fleet(gpus, apart, tail), fleets)
                row = (str(gpus), f"{100 * apart:g} %", "yes" if tail else "no", *cells)
                print(f"| {' | '.join(row)} |", flush=True)


def planted(slower: float, reason: str, fleet: Fleet) -> Callable[[random.Random], bool]:
    """Whether the slow GPU is found, with its reason first, and no other one."""

    def right(chance: random.Random) -> bool:
        ill = chance.randrange(fleet.gpus)
        uuid = record(ill).gpu_uuid
        records = [
            replace(r, median_ts=r.median_ts * (1 - slower), **PLANTED[reason])  # type: ignore[arg-type]
            if r.gpu_uuid == uuid
            else r
            for r in fleet.records(chance)
        ]
        told = found(records)
        return bool(told) and all(
            one.gpu_uuid == uuid and one.likely and reason in one.likely[0] for one in told
        )

    return right


def ill(fleets: int) -> None:
    print("| planted | " + " | ".join(f"{100 * s:g} % slower" for s in SLOWER) + " |")
    print("|---|" + "---|" * len(SLOWER))
    for reason in PLANTED:
        rights = [planted(s, reason, Fleet(16, 0.01)) for s in SLOWER]
        counts = [sum(right(random.Random(seed)) for seed in range(fleets)) for right in rights]
        cells = [share(count, fleets) for count in counts]
        print(f"| {reason} | {' | '.join(cells)} |", flush=True)


def small(fleets: int) -> None:
    """One slow GPU by the size of the fleet: what few peers can't tell."""
    print("| GPUs | apart | " + " | ".join(f"{100 * s:g} % slower" for s in OF_SMALL) + " |")
    print("|---|---|" + "---|" * len(OF_SMALL))
    reason = next(iter(PLANTED))
    for gpus in SMALL:
        for apart in APART[:3]:
            rights = [planted(s, reason, Fleet(gpus, apart)) for s in OF_SMALL]
            counts = [sum(right(random.Random(seed)) for seed in range(fleets)) for right in rights]
            cells = [share(count, fleets) for count in counts]
            print(f"| {gpus} | {100 * apart:g} % | {' | '.join(cells)} |", flush=True)


def several(fleets: int) -> None:
    """In how many fleets all slow GPUs are found and no other."""
    print("| GPUs | slow ones | all found, and no other |\n|---|---|---|")
    for gpus, slow in SEVERAL:
        ill = {record(gpu).gpu_uuid for gpu in range(slow)}
        right = 0
        for seed in range(fleets):
            records = [
                replace(r, median_ts=r.median_ts * 0.8) if r.gpu_uuid in ill else r
                for r in Fleet(gpus, APART[0]).records(random.Random(seed))
            ]
            right += {one.gpu_uuid for one in found(records)} == ill
        print(f"| {gpus} | {slow} | {share(right, fleets)} |", flush=True)


def main(fleets: str = str(FLEETS)) -> int:
    healthy(int(fleets))
    print()
    ill(int(fleets))
    print()
    small(int(fleets))
    print()
    several(int(fleets))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
