"""`python -m tests.bench.compare [FLEETS]`: what is called faster or slower in simulated fleets.

Prints the table of docs/compare.md: nothing is random but by a fixed seed. Beside what runs differ
by, each GPU is moved a little by each installation of a driver, which no test of runs can tell from
an effect; it is what LEAST is for.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from llamafleet.history.compare import compare
from llamafleet.history.record import Record
from tests.history.made import RATES, record

FLEETS = 1000
SPREAD = 0.004
"""Of the runs of one GPU; measured on an H200, 2026-11-26."""
INSTALLED = 0.003
"""By choice: as much as one H200's two runs lie apart."""
SHAPES = ((1, 4), (1, 10), (6, 1), (8, 3), (64, 1))
"""GPUs, and runs of each on either side."""
EFFECTS = (0.0, -0.01, -0.02, -0.03, -0.05)


@dataclass(frozen=True)
class Fleet:
    gpus: int
    runs: int
    effect: float

    def side(self, driver: str, chance: random.Random) -> Iterator[Record]:
        change = 1 + (self.effect if driver == "B" else 0.0)
        for gpu in range(self.gpus):
            level = RATES["tg"] * change * (1 + chance.gauss(0, INSTALLED))
            for _ in range(self.runs):
                rate = level * (1 + chance.gauss(0, SPREAD))
                yield record(gpu, median_ts=rate, driver=driver)

    def answer(self, seed: int) -> str:
        chance = random.Random(seed)
        a, b = (list(self.side(driver, chance)) for driver in "AB")
        [found] = compare(a, b, "driver")
        return found.answer


def main(fleets: str = str(FLEETS)) -> int:
    seeds = range(int(fleets))
    heads = [f"{100 * effect:+g} %" if effect else "no effect" for effect in EFFECTS]
    print(f"| GPUs | runs on either side | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * len(EFFECTS))
    for gpus, runs in SHAPES:
        cells = []
        for effect in EFFECTS:
            answers = [Fleet(gpus, runs, effect).answer(seed) for seed in seeds]
            told = ("faster", "slower") if not effect else ("slower",)
            cells.append(f"{100 * sum(map(answers.count, told)) / len(answers):.1f} %")
        print(f"| {gpus} | {runs} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
