"""`python -m tests.bench.zlimit`: how far from few peers a healthy GPU lies, for outliers.z_limit.

Of normal figures, one GPU against the median and MAD of its peers: the modified z beyond which in 2
of 100 fleets some GPU of them lies on the slow side, in one of two tests.
"""

from __future__ import annotations

import sys

import numpy as np

from llamafleet.history.outliers import MAD_TO_SIGMA, z_limit

PEERS = (4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 20, 24, 31, 48, 63, 96, 127)
ALARMS = 0.02
DRAWS = 4_000_000
AT_ONCE = 200_000


def counted(peers: int, chance: np.random.Generator) -> float:
    """Both sides are as good: their mean."""
    wanted, found = min(DRAWS, 10 * DRAWS // peers), []
    while wanted > 0:
        drawn = min(wanted, AT_ONCE)
        figures = chance.standard_normal((drawn, peers))
        middle = np.median(figures, axis=1)
        mad = np.median(np.abs(figures - middle[:, None]), axis=1)
        found.append((chance.standard_normal(drawn) - middle) / (MAD_TO_SIGMA * mad))
        wanted -= drawn
    rare = ALARMS / (2 * (peers + 1))
    low, high = np.quantile(np.concatenate(found), [rare, 1 - rare])
    return float(low - high) / 2


def main() -> int:
    chance = np.random.default_rng(1)
    print("| peers | counted | z_limit |\n|---|---|---|")
    for peers in PEERS:
        print(f"| {peers} | {counted(peers, chance):.1f} | {z_limit(peers):.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
