"""Whether two sets of runs differ: the rank test of Mann and Whitney, within blocks.

A block is one GPU: its runs under A are compared with its own runs under B and never with those of
another GPU. With one block it is Mann-Whitney's test, with one run on each side of every block the
sign test; tests/history/test_ranks.py holds both against scipy. scipy has no test with blocks and
brings 170 MB with numpy, which no user needs for a sum: the distribution is exact and of integers.

Nothing is assumed of the figures but that, without an effect, which run of a GPU is A and which is
B is chance.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, comb, floor, prod, sqrt
from statistics import NormalDist

Block = tuple[Sequence[float], Sequence[float]]
"""Figures of A, figures of B."""

EXACT = 4000
"""Pairs up to which the distribution is counted out; beyond it is a normal one as far as the
interval's ends can tell (test_ranks.py)."""


@dataclass(frozen=True)
class Shift:
    """How far B lies from A."""

    estimate: float
    """Median of all differences within blocks (Hodges and Lehmann)."""
    low: float
    high: float
    """Ends of the interval of the given confidence; it leaves 0 out where `p` is below its rest."""
    p: float
    """Two-sided."""


class Differences:
    """B less A of all pairs within blocks, in order.

    Held by block, as numbers and not as objects: of a GPU there may be 10,000.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = [array("d", sorted(y - x for x in a for y in b)) for a, b in blocks]
        self.blocks = [one for one in self.blocks if one]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def __getitem__(self, rank: int) -> float:
        low = min(one[0] for one in self.blocks)
        high = max(one[-1] for one in self.blocks)
        # Until there is no number between them: the one at that rank is one of both.
        while low < (middle := (low + high) / 2) < high:
            if self.count(middle, bisect_right) > rank:
                high = middle
            else:
                low = middle
        return low if self.count(low, bisect_right) > rank else high

    def count(self, value: float, where: Callable[[array[float], float], int]) -> int:
        """How many are below it (bisect_left), or not above it (bisect_right)."""
        return sum(where(one, value) for one in self.blocks)

    @property
    def median(self) -> float:
        middle = len(self) // 2
        return self[middle] if len(self) % 2 else (self[middle - 1] + self[middle]) / 2


def smallest_p(blocks: Sequence[Block]) -> float:
    """The least that the test can give for so many runs, were they as far apart as can be."""
    return min(1.0, 2 / prod(comb(len(a) + len(b), len(a)) for a, b in blocks))


def shift(blocks: Sequence[Block], alpha: float) -> Shift | None:
    """B less A, with an interval of confidence 1 - `alpha`; None: the runs are too few for one."""
    if smallest_p(blocks) > alpha:
        return None
    between = Differences(blocks)
    above = len(between) - (between.count(0, bisect_left) + between.count(0, bisect_right)) / 2
    less = min(above, len(between) - above)
    sizes = [(len(a), len(b)) for a, b in blocks]
    if len(between) <= EXACT:
        p, cut = _exact(sizes, less, alpha)
    else:
        p, cut = _normal(sizes, less, alpha)
    return Shift(between.median, between[cut - 1], between[len(between) - cut], p)


def _exact(sizes: Sequence[tuple[int, int]], less: float, alpha: float) -> tuple[float, int]:
    """p, and how many differences lie outside of the interval at either end, the end with them."""
    counts = [1]
    for m, n in sizes:
        counts = _times(counts, _mann_whitney(m, n))
    every = sum(counts)
    p = min(1.0, 2 * sum(counts[: ceil(less) + 1]) / every)
    cut = tail = 0
    while 2 * (tail + counts[cut]) <= alpha * every:
        tail += counts[cut]
        cut += 1
    return p, cut


def _normal(sizes: Sequence[tuple[int, int]], less: float, alpha: float) -> tuple[float, int]:
    middle = sum(m * n for m, n in sizes) / 2
    spread = sqrt(sum(m * n * (m + n + 1) for m, n in sizes) / 12)
    p = min(1.0, 2 * NormalDist().cdf((less + 0.5 - middle) / spread))
    return p, max(1, floor(middle - 0.5 + spread * NormalDist().inv_cdf(alpha / 2)) + 1)


def _mann_whitney(m: int, n: int) -> list[int]:
    """How many orders of m and n runs have 0, 1, 2, ... pairs in which the second is above.

    Coefficients of the Gaussian binomial, the product over i of (1 - q^(n+i)) / (1 - q^i).
    """
    m, n = min(m, n), max(m, n)
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for at in range(m * n, n + i - 1, -1):
            counts[at] -= counts[at - n - i]
        for at in range(i, m * n + 1):
            counts[at] += counts[at - i]
    return counts


def _times(some: list[int], others: list[int]) -> list[int]:
    """The distribution of a sum."""
    counts = [0] * (len(some) + len(others) - 1)
    for at, count in enumerate(some):
        for beside, other in enumerate(others):
            counts[at + beside] += count * other
    return counts
