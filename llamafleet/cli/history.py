"""The command `llamafleet history`: what was measured, when and under which conditions."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.filters import filtered, text_of
from llamafleet.history import llama_bench
from llamafleet.history.record import Record, as_json
from llamafleet.history.record_table import table
from llamafleet.history.records import Filter, History
from llamafleet.terminal import printable

SHOWN = 30
"""Lines of the table, where --last does not say."""

MOST = 10**9
"""Of --last: a number that each database takes."""

Format = Literal["table", "json", "csv", "jsonl"]

FORMULA = "=+-@"
"""A cell that begins so is computed by spreadsheets, and hosts tell what is in it."""


@click.command()
@filtered
@click.option(
    "--last",
    type=click.IntRange(1, MOST),
    metavar="N",
    help=f"The newest N alone; the table takes {SHOWN}, else all.",
)
@click.option("--json", "form", flag_value="json", help="Print all there is of each, as JSON.")
@click.option("--csv", "form", flag_value="csv", help="The same as CSV.")
@click.option(
    "--llama-bench",
    "form",
    flag_value="jsonl",
    help="The same as llama-bench -o jsonl prints it, with a column of ours that --import reads.",
)
@click.option(
    "--import",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Take in a file of llama-bench -o jsonl, or of --llama-bench; may be repeated.",
)
@click.option(
    "--of",
    "host",
    metavar="HOST",
    default="",
    callback=text_of,
    help="The host on which the files of --import were measured.",
)
def history(
    *,
    history: History,
    wanted: Filter,
    last: int | None,
    form: Format | None,
    files: tuple[Path, ...],
    host: str,
) -> None:
    """Print what was measured: a line for each test of each GPU, oldest first.

    Results below RESULTS are taken into RESULTS/history.db by themselves; what can't be read is
    named. Exit code 0; 2: bad input, or a history that can't be used.
    """
    if host and not files:
        raise BadInput(f"--of {host}: found no --import; expected one; next: --import FILE")
    for path in files:
        _take(history, path, host)
    wanted = replace(wanted, last=last or (None if form else SHOWN))
    PRINT[form or "table"](history, wanted)


def _take(history: History, path: Path, host: str) -> None:
    """Take in a file of llama-bench. Raises BadInput, HistoryError."""
    refused: list[str] = []
    try:
        found = list(_records(llama_bench.read_file(path, host), refused))
    except llama_bench.BenchFileError as error:
        raise BadInput(f"--import: {error}; next: llama-bench -o jsonl > FILE") from error
    if not all(record.host for record in found):
        raise BadInput(
            f"--import {path}: found rows of llama-bench, which name no host; expected --of; "
            f"next: llamafleet history --import {shlex.quote(str(path))} --of HOST"
        )
    for line in refused:
        click.echo(f"Warning: {printable(line)}", err=True)
    count = history.add(found)
    click.echo(f"{printable(str(path))}: {count} new records", err=True)


def _records(found: Iterable[Record | str], refused: list[str]) -> Iterator[Record]:
    for one in found:
        if isinstance(one, Record):
            yield one
        else:
            refused.append(one)


# -- forms -----------------------------------------------------------------------------------------


def _table(history: History, wanted: Filter) -> None:
    records = list(history.records(wanted))
    for line in table(records):
        click.echo(line)
    total = history.count(wanted)
    if total > len(records):
        click.echo(f"the newest {len(records)} of {total}; more: --last {total}, --json, --csv")
    if not total:
        click.echo("nothing was measured that is so")


def _json(history: History, wanted: Filter) -> None:
    """One record a line, as they come: there may be a million."""
    click.echo("[")
    before = ""
    for record in history.records(wanted):
        click.echo(before + json.dumps(as_json(record)), nl=False)
        before = ",\n"
    click.echo("\n]" if before else "]")


def _csv(history: History, wanted: Filter) -> None:
    names = [one.name for one in fields(Record)]
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    for record in history.records(wanted):
        writer.writerow({name: _cell(value) for name, value in as_json(record).items()})


def _cell(value: object) -> object:
    """Lists and objects as JSON; no cell is a formula."""
    if isinstance(value, (tuple, list, Mapping)):
        return json.dumps(value)
    if isinstance(value, str) and value[:1] in tuple(FORMULA):
        return f"'{value}"
    return value


def _jsonl(history: History, wanted: Filter) -> None:
    for record in history.records(wanted):
        click.echo(llama_bench.line_of(record))


PRINT: dict[Format, Callable[[History, Filter], None]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
    "jsonl": _jsonl,
}
