"""A run as text: its head, a table, the reasons below it, and the exit code; and runs as a list."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from llamafleet.history.runs import Run, RunState
from llamafleet.history.store import Built, Row, ServedLine
from llamafleet.history.table import counted_gpus, table
from llamafleet.history.update import describe
from llamafleet.protocol.result import BUSY, CPU_ONLY
from llamafleet.terminal import printable

ENDS: dict[RunState, str] = {
    "running": "NO END: it still runs, or was killed",
    "interrupted": "INTERRUPTED: not everything was done",
}
"""What is said of a run that is not complete."""


NOTHING = "no host was in this run: nothing is proven"


def render_run(run: Run, *, colours: bool = False) -> str:
    """Which run it is, and what it came to."""
    return f"{head(run)}\n{render(run.rows, colours=colours)}"


def head(run: Run) -> str:
    """Which run it is, in a line."""
    if run.started is None:
        parts = [f"run {run.id}", "of before runs were kept: start, command and limit are unknown"]
    else:
        command = f"started {_started(run)} as: {shlex.join(run.command)}"
        parts = [f"run {run.id}", _hosts(run), *_end(run), command]
    return printable(", ".join(parts))


def proves_nothing(run: Run) -> list[str]:
    """Why a run is no success, be its rows all PASS; empty: it is one."""
    return [*_end(run), *([] if run.rows else [NOTHING])]


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


def render(rows: Sequence[Row], *, colours: bool = False) -> str:
    """The table, and below it: why hosts are not PASS, whose figures count for nothing, which GPUs
    were left out, what is served, changes that the table has no room for, what a driver update
    changed, and what builds cost."""
    if not rows:
        return NOTHING
    shown, whole = table(rows, colours=colours)
    lines = [line for row in rows for line in _reasons(row)]
    lines += [f"{row.host} {_left_out(row)}" for row in rows if row.left_out]
    lines += [f"{row.host} {_served(one)}" for row in rows for one in row.served]
    if not whole:
        lines += [f"{row.host} changed: {', '.join(row.changed)}" for row in rows if row.changed]
    lines += [f"{r.host} {line}" for r in rows if r.update for line in describe(r.update)]
    costs = [(row, _cost(row.built) if row.built else "") for row in rows]
    lines += [f"{row.host} build {row.build}: {cost}" for row, cost in costs if cost]
    return "\n".join((*shown, *map(printable, lines)))


def _reasons(row: Row) -> list[str]:
    lines = []
    if row.verdict == CPU_ONLY:
        lines.append(
            f"!!! {row.host}: CPU ONLY. No GPU was used and nothing here proves offload. !!!"
        )
    lines += [f"{row.host} {row.verdict}  {_joined(line)}" for line in row.reason]
    lines += [f"{row.host} {BUSY}  {_joined(line)}" for line in row.busy]
    if row.verdict == BUSY and row.allowed:
        lines.append(f"{row.host} {BUSY}  is taken for good: the setting allow_busy says so")
    return lines


def _joined(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def _left_out(row: Row) -> str:
    return (
        f"{counted_gpus(row)} GPUs: not verified, as the setting gpus says: "
        f"{', '.join(row.left_out)}"
    )


def _served(one: ServedLine) -> str:
    place = f"[{one.address}]" if ":" in one.address else one.address
    file = f" ({one.model})" if one.model else ""
    return (
        f"serves {one.profile}: {one.state}, http://{place}:{one.port}/v1, model {one.alias}{file}"
    )


def exit_code(rows: Sequence[Row]) -> int:
    """0 where every host is PASS, or CPU ONLY or BUSY where its settings allow that.

    1 otherwise; also without any host, since then nothing is proven.
    """
    return 0 if rows and all(row.good for row in rows) else 1


def exit_code_of(run: Run) -> int:
    """The same of a whole run: of one that was cut off not everything was done, be it all PASS."""
    return exit_code(run.rows) if run.state == "complete" else 1


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
    parts += [f"second attempt: {built.retried}"] if built.retried else []
    return ", ".join(parts) + (f" ({phases})" if phases else "")
