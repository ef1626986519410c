"""Records as lines of a terminal; 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from llamafleet.history import comparable
from llamafleet.history.record import Record
from llamafleet.history.table import UUID_SHOWN, WIDTH
from llamafleet.terminal import columns, cut, printable

GAP = "  "
HEADERS = ("time (UTC)", "host", "GPU", "test", "t/s", "driver", "build", "verdict", "#")
RIGHT = HEADERS.index("t/s")
GPU = HEADERS.index("GPU")
LEAST = (
    *(("GPU", 20), ("host", 16), ("GPU", UUID_SHOWN), ("driver", 8), ("host", 6)),
    *(("test", 9), ("GPU", 8)),
)
"""Columns that are cut where there is no room, one after the other, and what is left of them."""
LONGEST = {"host": 20, "GPU": 40, "test": 14, "driver": 12}
BUILD_SHOWN = 8
"""Digits of a fingerprint or a commit."""

Cells = tuple[str, ...]


def table(records: Sequence[Record]) -> list[str]:
    """A line for each, oldest first; none where there are none.

    Figures in brackets are of a GPU that was not free. Those of several models, or with and without
    flash attention, are told apart by a number, and by what it stands for below the table.
    """
    if not records:
        return []
    records = sorted(records, key=_order)
    numbers = {of: str(n) for n, of in enumerate(dict.fromkeys(map(_measured, records)), start=1)}
    several = len(numbers) > 1
    headers = HEADERS if several else HEADERS[:-1]
    cells = [(*_cells(one), *([numbers[_measured(one)]] if several else [])) for one in records]
    widths = _narrowed([max(map(columns, each)) for each in zip(headers, *cells, strict=True)])
    dashes = tuple("-" * width for width in widths)
    lines = [_line(row, widths) for row in (headers, dashes)]
    lines += [
        _line(_named(one, row, widths[GPU]), widths)
        for one, row in zip(records, cells, strict=True)
    ]
    if several:
        lines += ["", *(cut(f"# {number}: {of}", WIDTH) for of, number in numbers.items())]
    return lines


def _order(record: Record) -> tuple[object, ...]:
    return record.test_time, record.host, -record.gpus, record.gpu_uuid, record.test


def _measured(record: Record) -> str:
    """Without which two figures of a test are not the same thing."""
    words = {True: ", flash attention on", False: ", flash attention off", None: ""}
    return f"{printable(record.model_filename) or 'a model'}{words[record.flash_attn]}"


def _cells(record: Record) -> Cells:
    rate = f"{record.median_ts:.1f}" if record.median_ts < 1e7 else f"{record.median_ts:.0e}"
    depth = f"@d{record.n_depth}" if record.n_depth else ""
    told = (
        f"{record.test_time:%Y-%m-%d %H:%M}",
        record.host,
        _gpu(record, LONGEST["GPU"]),
        f"{record.test}{record.n_prompt or record.n_gen}{depth}",
        f"({rate})" if record.busy else rate,
        record.driver,
        (record.fingerprint or record.build_commit)[:BUILD_SHOWN],
        record.verdict or "",
    )
    shown = (printable(text) or "-" for text in told)
    return tuple(cut(t, LONGEST.get(h, WIDTH)) for h, t in zip(HEADERS, shown, strict=False))


def _named(record: Record, cells: Cells, width: int) -> Cells:
    """The same with the GPU's name in that width."""
    return (*cells[:GPU], printable(_gpu(record, width)) or "-", *cells[GPU + 1 :])


def _gpu(record: Record, width: int) -> str:
    """Name, and the beginning of the UUID.

    A host may have several of a name, so it is the name that is cut.
    """
    uuid = record.gpu_uuid[:UUID_SHOWN]
    left = width - columns(uuid) - 1 if uuid else width
    return f"{cut(comparable.cards(record), left) if left > 0 else ''} {uuid}".strip()


def _narrowed(widths: list[int]) -> list[int]:
    """The same in the room that there is."""
    for header, least in LEAST:
        at = HEADERS.index(header)
        over = sum(widths) + len(GAP) * (len(widths) - 1) - WIDTH
        widths[at] -= max(0, min(over, widths[at] - least))
    return widths


def _line(row: Cells, widths: Sequence[int]) -> str:
    return GAP.join(map(_aligned, range(len(row)), row, widths)).rstrip()


def _aligned(column: int, text: str, width: int) -> str:
    shown = cut(text, width)
    blank = " " * (width - columns(shown))
    return blank + shown if column == RIGHT else shown + blank
