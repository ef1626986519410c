"""The view of `llamafleet watch`: a line for each GPU, in as many columns as there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamafleet.plans.trouble import QUIET, RANKS, Line
from llamafleet.terminal import DIM, RED, YELLOW, coloured, columns, cut, printable

GAP = "  "
NARROWEST = 40
STATE = "state"
STATE_ROOM = 30
"""Columns for the state before a further figure is shown."""
HOST_MOST = 24
MODEL_MOST = 22

Show = Callable[[Line], str]


@dataclass(frozen=True)
class Column:
    """One of the view."""

    header: str
    show: Show
    weight: int
    """Of two that have no room the one with the larger weight goes."""
    most: int = 12
    right: bool = True


def _number(value: float | None, form: str = ".0f") -> str:
    return "-" if value is None else format(value, form)


def _pair(used: float | None, of: float | None, scale: float = 1, form: str = ".0f") -> str:
    told = [None if one is None else one / scale for one in (used, of)]
    return "-" if told == [None, None] else "/".join(_number(one, form) for one in told)


def _state(line: Line) -> str:
    return f"{line.trouble}: {line.why}" if line.why else line.trouble


def _gpu(show: Show) -> Show:
    """Nothing where the line is of a host."""
    return lambda line: show(line) if line.gpu else ""


def _services(line: Line) -> str:
    return ",".join(f"{one.profile}:{one.state or '?'}" for one in line.services)


def _figure(name: str, form: str = ".0f") -> Show:
    return _gpu(lambda line: _number(getattr(line.gpu, name), form))


def _index(line: Line) -> str:
    assert line.gpu
    return str(line.gpu.index) if line.gpu.index is not None else line.gpu.pci


def _memory(line: Line) -> str:
    assert line.gpu
    return _pair(line.gpu.used_mib, line.gpu.total_mib, 1024, ".1f")


def _power(line: Line) -> str:
    assert line.gpu
    return _pair(line.gpu.power_w, line.gpu.power_limit_w)


COLUMNS = (
    Column("host", lambda line: line.host, 0, HOST_MOST, right=False),
    Column("GPU", _gpu(_index), 0),
    Column("%", _figure("utilisation"), 0),
    Column("GiB", _gpu(_memory), 0),
    Column("W", _gpu(_power), 1),
    Column("C", _figure("temperature_c"), 1),
    Column("SM MHz", _figure("sm_clock_mhz"), 3),
    Column("mem MHz", _figure("memory_clock_mhz"), 6),
    Column(
        "proc",
        _gpu(lambda line: "-" if line.processes is None else str(len(line.processes))),
        4,
    ),
    Column("tok/s", lambda line: _number(line.tokens_s, ".1f") if line.services else "", 2),
    Column("service", _services, 5, MODEL_MOST, right=False),
    Column(
        "model",
        lambda line: (line.gpu.name if line.gpu else "").removeprefix("NVIDIA "),
        7,
        MODEL_MOST,
        right=False,
    ),
    Column(STATE, _state, 0, 200, right=False),
)


def table(lines: Sequence[Line], width: int) -> list[str]:
    """Header and lines, each in at most so many columns, NARROWEST or more."""
    width = max(width, NARROWEST)
    rows = [[printable(column.show(line)) for column in COLUMNS] for line in lines]
    widths = _widths(rows)
    shown = _fitting(widths, width)
    state = len(COLUMNS) - 1
    others = sum(widths[n] + len(GAP) for n in shown if n != state)
    widths[state] = max(width - others, 1)
    header = [column.header for column in COLUMNS]
    return [cut(_row(cells, shown, widths), width) for cells in (header, *rows)]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """What each column takes if it may; 0: nothing is in it."""
    widths = []
    for number, column in enumerate(COLUMNS):
        widest = max((columns(row[number]) for row in rows), default=0)
        widths.append(min(max(widest, columns(column.header)), column.most) if widest else 0)
    return widths


def _fitting(widths: Sequence[int], width: int) -> list[int]:
    """The columns that are shown."""
    shown = [n for n, one in enumerate(widths) if one or COLUMNS[n].header == STATE]
    while True:
        taken = sum(widths[n] + len(GAP) for n in shown if COLUMNS[n].header != STATE)
        heaviest = max(shown, key=lambda n: COLUMNS[n].weight)
        room = min(STATE_ROOM, widths[-1])
        if taken + room <= width or COLUMNS[heaviest].weight == 0:
            return shown
        shown.remove(heaviest)


def _row(cells: Sequence[str], shown: Sequence[int], widths: Sequence[int]) -> str:
    told = []
    for number in shown:
        text = cut(cells[number], widths[number])
        blank = " " * (widths[number] - columns(text))
        told.append(blank + text if COLUMNS[number].right else text + blank)
    return GAP.join(told).rstrip()


def summary(lines: Sequence[Line]) -> str:
    """How many GPUs, hosts and troubles there are."""
    gpus = sum(line.gpu is not None for line in lines)
    hosts = len({line.host for line in lines})
    counts: dict[str, int] = {}
    for line in lines:
        counts[line.trouble] = counts.get(line.trouble, 0) + 1
    told = ", ".join(f"{counts[name]} {name}" for name in RANKS if name in counts)
    return f"GPUs {gpus}, hosts {hosts}: {told}"


def picture(lines: Sequence[Line], width: int, height: int, *, colours: bool) -> list[str]:
    """A whole screen: the summary, then as many lines as there is room for, the worst ones."""
    room = max(height - 3, 1)
    shown = lines if len(lines) <= room else lines[: room - 1]
    told = [cut(summary(lines), max(width, NARROWEST)), ""]
    header, *rows = table(shown, width)
    told.append(header)
    told += [
        _coloured(line, row) if colours else row for line, row in zip(shown, rows, strict=True)
    ]
    if left := len(lines) - len(shown):
        told.append(f"and {left} more, none in more trouble than these")
    return told


def _coloured(line: Line, row: str) -> str:
    """Red what nobody can use, yellow what is not free or slowed down, dim what does nothing."""
    if RANKS[line.trouble] < RANKS["throttled"]:
        return coloured(row, RED)
    if line.trouble in QUIET:
        return coloured(row, DIM)
    return coloured(row, YELLOW if RANKS[line.trouble] <= RANKS["held"] else "")
