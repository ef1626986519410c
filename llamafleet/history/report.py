"""A run as text: its head, a table, the reasons below it, and the exit code; and runs as a list."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from llamafleet.history.runs import Run, RunState
from llamafleet.history.store import Built, GpuLine, Row
from llamafleet.history.update import describe
from llamafleet.protocol.result import CPU_ONLY, GOOD
from llamafleet.terminal import printable

HEADERS = ("host", "GPU", "driver", "toolkit", "build", "verdict", "pp t/s", "tg t/s", "changed")
NUMBERS = frozenset({"pp t/s", "tg t/s"})

ENDS: dict[RunState, str] = {
    "running": "NO END: it still runs, or was killed",
    "interrupted": "INTERRUPTED: not everything was done",
}
"""What is said of a run that is not complete."""


def render_run(run: Run) -> str:
    """Which run it is, and what it came to."""
    if run.started is None:
        parts = [f"run {run.id}", "of before runs were kept: start, command and limit are unknown"]
    else:
        command = f"started {_started(run)} as: {shlex.join(run.command)}"
        parts = [f"run {run.id}", _hosts(run), *_end(run), command]
    return f"{printable(', '.join(parts))}\n{render(run.rows)}"


def render_line(run: Run) -> str:
    """A run in a list of runs."""
    counts = Counter(row.verdict for row in run.rows)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no host"
    return printable("  ".join((run.id, _started(run), _hosts(run), verdicts, *_end(run))))


def _started(run: Run) -> str:
    return "before runs were kept" if run.started is None else f"{run.started:%Y-%m-%d %H:%M:%S%z}"


def _hosts(run: Run) -> str:
    fleet = "" if run.started is None else f"of {run.fleet} "
    return f"{len(run.hosts)} {fleet}hosts"


def _end(run: Run) -> list[str]:
    return [ENDS[run.state]] if run.state in ENDS else []


def render(rows: Sequence[Row]) -> str:
    """The table, why hosts are not PASS, what a driver update changed, and what builds cost."""
    if not rows:
        return "no host was in this run: nothing is proven"
    parts = _table([cells for row in rows for cells in (_cells(row), *_gpu_cells(row))])
    for row in rows:
        if row.verdict == CPU_ONLY:
            parts.append(
                f"!!! {row.host}: CPU ONLY. No GPU was used and nothing here proves offload. !!!"
            )
        parts += [f"{row.host} {row.verdict}  {' '.join(line.split())}" for line in row.reason]
    parts += [f"{r.host} {line}" for r in rows if r.update for line in describe(r.update)]
    costs = [(row, _cost(row.built) if row.built else "") for row in rows]
    parts += [f"{row.host} build {row.build}: {cost}" for row, cost in costs if cost]
    return "\n".join(map(printable, parts))


def exit_code(rows: Sequence[Row]) -> int:
    """0 where every host is PASS, or CPU ONLY: that is given only where settings allow it.

    1 otherwise; also without any host, since then nothing is proven.
    """
    return 0 if rows and all(row.verdict in GOOD for row in rows) else 1


def exit_code_of(run: Run) -> int:
    """The same of a whole run: of one that was cut off not everything was done, be it all PASS."""
    return exit_code(run.rows) if run.state == "complete" else 1


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.host,
        row.gpu or "-",
        row.driver or "-",
        row.toolkit or "-",
        row.build[:8] or "-",
        row.verdict,
        *_rates(row),
        ", ".join(row.changed) or "nothing",
    )


def _gpu_cells(row: Row) -> list[tuple[str, ...]]:
    """A line for each GPU, where there are several: the host's own is of all of them together."""
    if len(row.gpus) < 2:
        return []
    return [
        ("", f"- {gpu.name} {gpu.uuid[:12]}", "", "", "", gpu.verdict, *_rates(gpu), "")
        for gpu in row.gpus
    ]


def _rates(of: Row | GpuLine) -> tuple[str, ...]:
    """pp and tg."""
    return tuple("-" if rate is None else f"{rate:.1f}" for rate in (of.pp, of.tg))


def _table(cells: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [tuple(map(printable, line)) for line in cells]  # Before their widths are taken.
    widths = [max(map(len, column)) for column in zip(HEADERS, *cells, strict=True)]
    lines = [HEADERS, tuple("-" * width for width in widths), *cells]
    return [
        "  ".join(
            text.rjust(width) if header in NUMBERS else text.ljust(width)
            for header, text, width in zip(HEADERS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def _cost(built: Built) -> str:
    """What the stamp does not tell is left out."""
    parts = []
    if built.wall_s is not None:
        parts.append(f"{built.wall_s:.0f} s wall")
    if built.cpu_s is not None:
        parts.append(f"{built.cpu_s / 60:.1f} CPU-minutes")
    if built.wheel_bytes is not None:
        parts.append(f"wheel {built.wheel_bytes / 1e6:.1f} MB")
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in built.phases.items())
    return ", ".join(parts) + (f" ({phases})" if phases else "")
