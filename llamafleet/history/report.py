"""A run as text: a table, the reasons below it, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence

from llamafleet.history.store import Built, GpuLine, Row
from llamafleet.history.update import describe
from llamafleet.protocol.result import CPU_ONLY, GOOD

HEADERS = ("host", "GPU", "driver", "toolkit", "build", "verdict", "pp t/s", "tg t/s", "changed")
NUMBERS = frozenset({"pp t/s", "tg t/s"})


def render(rows: Sequence[Row]) -> str:
    """The table, why hosts are not PASS, what a driver update changed, and what builds cost."""
    if not rows:
        return "no host was in this run: nothing is proven"
    parts = [_table([cells for row in rows for cells in (_cells(row), *_gpu_cells(row))])]
    for row in rows:
        if row.verdict == CPU_ONLY:
            parts.append(
                f"!!! {row.host}: CPU ONLY. No GPU was used and nothing here proves offload. !!!"
            )
        parts += [f"{row.host} {row.verdict}  {' '.join(line.split())}" for line in row.reason]
    parts += [f"{r.host} {line}" for r in rows if r.update for line in describe(r.update)]
    costs = [(row, _cost(row.built) if row.built else "") for row in rows]
    parts += [f"{row.host} build {row.build}: {cost}" for row, cost in costs if cost]
    return "\n".join(parts)


def exit_code(rows: Sequence[Row]) -> int:
    """0 where every host is PASS, or CPU ONLY: that is given only where settings allow it.

    1 otherwise; also without any host, since then nothing is proven.
    """
    return 0 if rows and all(row.verdict in GOOD for row in rows) else 1


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


def _table(cells: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(HEADERS, *cells, strict=True)]
    lines = [HEADERS, tuple("-" * width for width in widths), *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if header in NUMBERS else text.ljust(width)
            for header, text, width in zip(HEADERS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


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
