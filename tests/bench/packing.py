"""`python -m tests.bench.packing TREE [NINJA_LOG]`: how full a build keeps its cores. SIMULATED.

TREE: a CMake tree with build.ninja. The units cost what the zipapp's table says, or what they took
by NINJA_LOG. A list scheduler takes the units as ninja 1.13 does: of those that are ready the one
with the most steps behind it, then the one that stands first in its file.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafleet.onhost import ninja
from llamafleet.tables import unit_costs

LINK_S = 0.2
"""Of a library: median of 8 links of the CPU build, 2 cores."""
CORES = (16, 32)


@dataclass(frozen=True)
class Graph:
    """What ninja carries out, each step by its number in build.ninja's order."""

    seconds: Mapping[int, float]
    after: Mapping[int, frozenset[int]]
    """The steps that must be done first."""
    weight: Mapping[int, int]
    """Steps on the longest way to the end, itself included."""


def graph(text: str, cost: Callable[[str], float], units_alone: bool = False) -> Graph:
    """Of a build.ninja; `units_alone`: as where the objects are what is asked for."""
    lines = text.split("\n")
    all_of = ninja.statements(lines)
    wanted = [one for one in ninja.needed(lines, all_of) if not units_alone or one.compiles]
    made = {output: one.first for one in wanted for output in one.outputs}
    after = {
        one.first: frozenset(made[name] for name in one.inputs if name in made) for one in wanted
    }
    seconds = {one.first: _seconds(one, cost) for one in wanted}
    return Graph(seconds, after, _weights(wanted, after))


def _seconds(one: ninja.Statement, cost: Callable[[str], float]) -> float:
    if one.rule == "phony":
        return 0.0
    return cost(ninja.unit(one.outputs[0])) if one.compiles else LINK_S


def _weights(
    wanted: Sequence[ninja.Statement], after: Mapping[int, frozenset[int]]
) -> dict[int, int]:
    """Ninja's critical path: a phony step counts nothing."""
    own = {one.first: 0 if one.rule == "phony" else 1 for one in wanted}
    behind: dict[int, list[int]] = {number: [] for number in own}
    for number, first in after.items():
        for one in first:
            behind[one].append(number)
    weight: dict[int, int] = {}

    def of(number: int) -> int:
        if number not in weight:
            weight[number] = own[number] + max(map(of, behind[number]), default=0)
        return weight[number]

    return {number: of(number) for number in own}


def wall(found: Graph, cores: int) -> float:
    """Seconds until all is made."""
    left = {number: set(first) for number, first in found.after.items()}
    behind: dict[int, list[int]] = {number: [] for number in left}
    for number, first in found.after.items():
        for one in first:
            behind[one].append(number)
    ready = [(-found.weight[one], one) for one, first in left.items() if not first]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < cores:
            one = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + found.seconds[one], one))
        now, done = heapq.heappop(running)
        for one in behind[done]:
            left[one].discard(done)
            if not left[one]:
                heapq.heappush(ready, (-found.weight[one], one))
    return now


def cost_from(ninja_log: str) -> Callable[[str], float]:
    """Seconds of a unit by a build's own log."""
    took = {ninja.unit(one.output): one.took / 1000 for one in ninja.logged(ninja_log)}
    return lambda unit: took.get(unit, 0.0)


def main(tree: str, ninja_log: str = "") -> int:
    """Print the table."""
    table = ninja.costs_from(unit_costs.rows())
    cost = cost_from(Path(ninja_log).read_text()) if ninja_log else table.of
    text = (Path(tree) / "build.ninja").read_text()
    longest, _ = ninja.ordered(text, table.of)
    links = LINK_S * sum(1 for one in ninja.statements(text.split("\n")) if "LINKER" in one.rule)
    kinds: dict[str, Callable[[int], float]] = {
        "as CMake wrote it": lambda cores: wall(graph(text, cost), cores),
        "longest first, one run of ninja": lambda cores: wall(graph(longest, cost), cores),
        "longest first, units alone, then the rest": (
            lambda cores: wall(graph(longest, cost, units_alone=True), cores) + links
        ),
    }
    work = sum(graph(text, cost).seconds.values())
    print("simulated, not measured")
    print(f"{len(graph(text, cost, units_alone=True).seconds)} units, {work / 60:.1f} CPU-minutes")
    print("| order | cores | wall s | packing | wall to CPU-time / cores |\n|---|---|---|---|---|")
    for name, took in kinds.items():
        for cores in CORES:
            spent = took(cores)
            full = work / cores
            print(f"| {name} | {cores} | {spent:.0f} | {full / spent:.3f} | {spent / full:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
