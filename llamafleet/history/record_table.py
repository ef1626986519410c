"""Records as lines of a terminal; 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from llamafleet.history.record import Record
from llamafleet.history.table import MAKER, UUID_SHOWN, WIDTH
from llamafleet.terminal import columns, cut, printable

GAP = "  "
HEADERS = ("time (UTC)", "host", "GPU", "test", "t/s", "driver", "build", "verdict")
RIGHT = HEADERS.index("t/s")
GIVES_WAY = HEADERS.index("host"), HEADERS.index("GPU")
"""Columns that are cut where there is no room."""
LONGEST = {"host": 20, "GPU": 40, "driver": 12}
BUILD_SHOWN = 8
"""Digits of a fingerprint or a commit."""

Cells = tuple[str, ...]


def table(records: Sequence[Record]) -> list[str]:
    """A line for each, oldest first; none where there are none.

    Figures in brackets are of a GPU that was not free.
    """
    if not records:
        return []
    rows = [HEADERS, *map(_cells, sorted(records, key=_order))]
    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]
    for at in GIVES_WAY:
        over = sum(widths) + len(GAP) * (len(widths) - 1) - WIDTH
        widths[at] -= max(0, min(over, widths[at] - UUID_SHOWN))
    rows.insert(1, tuple("-" * width for width in widths))
    return [GAP.join(map(_aligned, range(len(row)), row, widths)).rstrip() for row in rows]


def _order(record: Record) -> tuple[object, ...]:
    return record.test_time, record.host, -record.gpus, record.gpu_uuid, record.test


def _cells(record: Record) -> Cells:
    rate = f"{record.median_ts:.1f}" if record.median_ts < 1e7 else f"{record.median_ts:.0e}"
    told = (
        f"{record.test_time:%Y-%m-%d %H:%M}",
        record.host,
        _gpu(record),
        f"{record.test}{record.n_prompt or record.n_gen}",
        f"({rate})" if record.busy else rate,
        record.driver,
        (record.fingerprint or record.build_commit)[:BUILD_SHOWN],
        record.verdict or "",
    )
    shown = (printable(text) or "-" for text in told)
    return tuple(cut(t, LONGEST.get(h, WIDTH)) for h, t in zip(HEADERS, shown, strict=True))


def _gpu(record: Record) -> str:
    """Name, and the beginning of the UUID: a host may have several of a name."""
    if record.gpus == 0:
        return "CPU"
    names = MAKER.sub("", record.gpu_info)
    each = set(names.split(", "))
    if record.gpus > 1 and len(each) == 1:
        names = f"{record.gpus}x {each.pop()}"
    return f"{names} {record.gpu_uuid[:UUID_SHOWN]}".strip()


def _aligned(column: int, text: str, width: int) -> str:
    shown = cut(text, width)
    blank = " " * (width - columns(shown))
    return blank + shown if column == RIGHT else shown + blank
