"""The table of a run: a line for each host, below it one for each of several GPUs; 100 columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from llamafleet.history.comparable import plain
from llamafleet.history.store import GpuLine, Row
from llamafleet.protocol.result import BUSY, CPU_ONLY, FAIL, NOT_VERIFIED, PASS
from llamafleet.terminal import GREEN, RED, YELLOW, coloured, columns, cut, printable

WIDTH = 100
GAP = "  "
CHANGED = "changed"
HEADERS = ("host", "GPU", "driver", "toolkit", "build", "verdict", "pp t/s", "tg t/s", CHANGED)
NUMBERS = frozenset({"pp t/s", "tg t/s"})
SPANNED = HEADERS.index("verdict")
"""Columns whose room a GPU's line has for its name: those before its verdict."""
MOST = {"driver": 12, "toolkit": 7, "build": 8, "verdict": 12, "pp t/s": 10, "tg t/s": 10}
"""Longer texts of these no host has; host, GPU and changes get the room that is left."""
UUID_SHOWN = 12
"""Characters of a UUID: "GPU-" and eight more."""
DASH = "- "
COLOURS: dict[str, str] = {
    PASS: GREEN,
    BUSY: YELLOW,
    CPU_ONLY: YELLOW,
    FAIL: RED,
    NOT_VERIFIED: RED,
}
"""Of a verdict."""

Cells = tuple[str, ...]


def table(rows: Sequence[Row], *, colours: bool = False) -> tuple[list[str], bool]:
    """Its lines, printable but for colours, and whether they say what changed: without room for
    that it stands elsewhere."""
    hosts = [tuple(map(printable, _cells(row))) for row in rows]
    gpus = [[_gpu_cells(gpu) for gpu in _listed(row)] for row in rows]
    widths = _widths(hosts, [gpu for some in gpus for gpu in some])
    whole = _total(widths) <= WIDTH
    if not whole:
        widths = _narrowed(widths[:-1])
    lines = [_line(HEADERS, widths), _line(["-" * width for width in widths], widths)]
    for host, some in zip(hosts, gpus, strict=True):
        lines.append(_line(host, widths, colours=colours))
        lines += [_gpu_line(gpu, widths, colours=colours) for gpu in some]
    return lines, whole


def in_colour(verdict: str) -> str:
    return coloured(verdict, COLOURS.get(verdict, ""))


# -- cells -----------------------------------------------------------------------------------------


def _cells(row: Row) -> Cells:
    return (
        row.host,
        _gpus(row) or "-",
        row.driver or "-",
        row.toolkit or "-",
        row.build[:8] or "-",
        row.verdict,
        *_rates(row, row.figures_busy),
        ", ".join(row.changed) or "nothing",
    )


def _gpus(row: Row) -> str:
    """As "2x H100 80GB HBM3", where some are left out as "1 of 2 H100 80GB HBM3"."""
    names = plain(row.gpu)
    if not row.left_out:
        return names
    counted = names if "," in names else re.sub(r"^\d+x ", "", names)
    return f"{counted_gpus(row)} {counted}"


def short(uuid: str) -> str:
    """A GPU's UUID, where there is no room for it."""
    return uuid[:UUID_SHOWN]


def counted_gpus(row: Row) -> str:
    """How many of the host's GPUs were verified, as "1 of 2"."""
    return f"{len(row.gpus)} of {len(row.gpus) + len(row.left_out)}"


def _listed(row: Row) -> tuple[GpuLine, ...]:
    """GPUs that have a line of their own: the host's is of all of them together."""
    return row.gpus if len(row.gpus) > 1 else ()


def _gpu_cells(gpu: GpuLine) -> Cells:
    """Name, beginning of the UUID, verdict and rates."""
    named = (plain(gpu.name), short(gpu.uuid))
    return tuple(map(printable, (*named, gpu.verdict, *_rates(gpu, gpu.busy))))


def _rates(of: Row | GpuLine, busy: bool) -> Cells:
    """pp and tg; in brackets where they are not those of a free GPU."""
    told = ["-" if rate is None else _rate(rate) for rate in (of.pp, of.tg)]
    return tuple(f"({text})" if busy and text != "-" else text for text in told)


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if abs(rate) < 1e6 else f"{rate:.0e}"


# -- widths ----------------------------------------------------------------------------------------


def _widths(hosts: Sequence[Cells], gpus: Sequence[Cells]) -> list[int]:
    """What each column takes if it may."""
    widths = []
    below = [("",) * SPANNED + gpu[2:] + ("",) for gpu in gpus]
    for header, *cells in zip(HEADERS, *hosts, *below, strict=True):
        widest = max(columns(cell) for cell in (header, *cells))
        widths.append(min(widest, MOST.get(header, widest)))
    named = max((columns(f"{DASH}{name} {uuid}") for name, uuid, *_ in gpus), default=0)
    widths[1] += max(0, named - _total(widths[:SPANNED]))
    return widths


def _narrowed(widths: list[int]) -> list[int]:
    """WIDTH at most in all: host and GPU give way, the longer one first."""
    host, gpu = widths[:2]
    room = WIDTH - _total([0, 0, *widths[2:]])
    if host + gpu <= room:
        return widths
    smaller = min(host, gpu, room // 2)
    both = [smaller, room - smaller] if host <= gpu else [room - smaller, smaller]
    return [*both, *widths[2:]]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


# -- lines -----------------------------------------------------------------------------------------


def _line(cells: Sequence[str], widths: Sequence[int], *, colours: bool = False) -> str:
    aligned = map(partial(_aligned, colours=colours), HEADERS, cells, widths)
    return GAP.join(aligned).rstrip()


def _aligned(header: str, text: str, width: int, *, colours: bool = False) -> str:
    shown = cut(text, width)
    blank = " " * (width - columns(shown))
    if colours and header == HEADERS[SPANNED]:
        shown = in_colour(shown)
    return blank + shown if header in NUMBERS else shown + blank


def _gpu_line(gpu: Cells, widths: Sequence[int], *, colours: bool) -> str:
    """The name is cut where there is no room, the UUID is not."""
    name, uuid, *rest = gpu
    room = _total(widths[:SPANNED])
    shown = f"{DASH}{cut(name, room - columns(f'{DASH} {uuid}'))} {uuid}"
    aligned = partial(_aligned, colours=colours)
    cells = map(aligned, HEADERS[SPANNED:], rest, widths[SPANNED:])
    return GAP.join([_aligned("", shown, room), *cells]).rstrip()
