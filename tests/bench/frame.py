"""One row of figures for each thing that is measured, and the table of them for the docs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Row:
    """What something cost. `packing`, `wheel_bytes`: None where there is none."""

    name: str
    wall_s: float = 0.0
    cpu_s: float = 0.0
    packing: float | None = None
    wheel_bytes: int | None = None
    said: str = ""
    """In which order, how many hits, of which host."""
    phases: dict[str, float] = field(default_factory=dict)


def measured(name: str, work: Callable[[], Row]) -> Row:
    """The row that `work` gives, with its name, wall time and its children's CPU time."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    row = work()
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return replace(row, name=name, wall_s=wall, cpu_s=cpu)


def keep_to(cores: int) -> int:
    """Limit this process and its children to that many cores (0: all it has); how many it has."""
    have = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, have[: cores or len(have)])
    return len(os.sched_getaffinity(0))


def table(rows: Sequence[Row], cores: int) -> str:
    """Markdown. The last but one column is 1.00 where no core ever waits."""
    lines = [
        f"{cores} cores, all rows of one run",
        "| what | wall s | CPU-minutes | packing | wall to CPU-time / cores | wheel MB | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        full = row.cpu_s / cores
        packing = "" if row.packing is None else f"{row.packing:.3f}"
        wheel = "" if row.wheel_bytes is None else f"{row.wheel_bytes / 1e6:.1f}"
        ratio = f"{row.wall_s / full:.3f}" if full else ""
        lines.append(
            f"| {row.name} | {row.wall_s:.1f} | {row.cpu_s / 60:.1f} | {packing} | {ratio} "
            f"| {wheel} | {row.said} |"
        )
    lines += [f"{row.name}: {row.phases}" for row in rows if row.phases]
    return "\n".join(lines)
