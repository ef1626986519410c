"""A run as GitHub's Markdown: for an issue, a pull request or a wiki."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import chain

from llamafleet.history.report import ENDS, NOTHING
from llamafleet.history.runs import Run
from llamafleet.history.store import GpuLine, Row
from llamafleet.history.update import describe
from llamafleet.terminal import printable

HEADERS = ("host", "GPU", "driver", "toolkit", "build", "verdict", "pp t/s", "tg t/s")
RIGHT = ("pp t/s", "tg t/s")
SPECIAL = re.compile(r"([\\`*_{}\[\]()<>+!|~&:])")
"""What makes anything of a text but a text: a table's cell, emphasis, HTML."""
LINKED = re.compile(r"[@#]|//|www\.|\bGH-", re.IGNORECASE)
"""What GitHub makes a link or a mention of, though it is escaped: all but in code."""


def render(run: Run) -> str:
    """A table with a line for each GPU, and below it why hosts are not good."""
    parts = [f"### llamafleet: run {text(run.id)}", _head(run)]
    if not run.rows:
        return "\n\n".join([*parts, f"**{NOTHING}**"])
    lines = [_line(HEADERS), _line(["---:" if one in RIGHT else "---" for one in HEADERS])]
    lines += [_line(cells) for row in run.rows for cells in _cells(row)]
    parts.append("\n".join(lines))
    parts += _listed("Why", chain.from_iterable(map(_reasons, run.rows)))
    updates = [(row.host, line) for row in run.rows if row.update for line in describe(row.update)]
    parts += _listed("After a driver update", updates)
    return "\n\n".join(part for part in parts if part)


def text(value: str) -> str:
    """A text that is nothing but that, wherever it stands, also in a table."""
    if LINKED.search(value):
        return code(value).replace("|", r"\|")
    return SPECIAL.sub(r"\\\1", printable(value))


def code(value: str) -> str:
    """A text as code; more backticks around it than are in it."""
    shown = printable(value)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    blank = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{blank}{shown}{blank}{fence}"


def _head(run: Run) -> str:
    parts = [f"{len(run.hosts)} of {run.fleet} hosts"]
    parts += [f"**{ENDS[run.state]}**"] if run.state in ENDS else []
    if run.started:
        parts.append(f"started {run.started:%Y-%m-%d %H:%M:%S%z}")
    if run.command:
        parts.append(f"as {code(shlex.join(run.command))}")
    return ", ".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[list[str]]:
    """The host's line, and one for each of several GPUs."""
    known = [text(one) or "-" for one in (row.gpu, row.driver, row.toolkit, row.build[:8])]
    rates = _rates(row, row.figures_busy)
    lines = [[text(row.host), *known, f"**{row.verdict}**", *rates]]
    if len(row.gpus) > 1:
        lines += [
            ["", text(f"{gpu.name} {gpu.uuid}"), "", "", "", gpu.verdict, *_rates(gpu, gpu.busy)]
            for gpu in row.gpus
        ]
    return lines


def _rates(of: Row | GpuLine, busy: bool) -> list[str]:
    told = ["-" if rate is None else f"{rate:,.1f}" for rate in (of.pp, of.tg)]
    return [f"({one})" if busy and one != "-" else one for one in told]


def _reasons(row: Row) -> Iterable[tuple[str, str]]:
    for line in row.reason + row.busy:
        yield f"{row.host} {row.verdict}", line
    if row.left_out:
        yield row.host, f"not verified, as the setting gpus says: {', '.join(row.left_out)}"


def _listed(title: str, lines: Iterable[tuple[str, str]]) -> list[str]:
    told = [f"- **{text(host)}**: {code(line)}" for host, line in lines]
    return ["\n".join([f"**{title}**", "", *told])] if told else []
