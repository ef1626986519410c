"""The command `llamafleet report`: what a run came to, and which runs there are."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, get_args

import click

from llamafleet.cli.errors import BadInput
from llamafleet.history.files import write_text
from llamafleet.history.record import Record
from llamafleet.history.records import VARIABLE, History, HistoryError, keep_up
from llamafleet.history.report import exit_code_of, render_line, render_run
from llamafleet.history.runs import Run, RunError, Runs, as_json
from llamafleet.terminal import colours_wanted

ALL = "all"
EXAMPLE = "llamafleet report --example"

Format = Literal["text", "html", "md", "junit", "json"]
LISTED: tuple[Format, ...] = ("text", "json")
"""Forms of a list of runs."""


@dataclass(frozen=True)
class Wanted:
    """What is to be printed, and where to."""

    form: Format
    output: Path | None
    """None: on the terminal."""
    results: Path


@click.command()
@click.option(
    *("--run", "wanted"),
    metavar=f"ID|{ALL}",
    help="Another run, by its id or the beginning of it; or a list of all, newest first.",
)
@click.option(
    *("--format", "form"),
    type=click.Choice(get_args(Format)),
    help="text: a table; html: a page with the history of the whole fleet; md: for GitHub; "
    "junit: for CI; json.  [default: text]",
)
@click.option("--json", "in_json", is_flag=True, help="The same as --format json.")
@click.option(
    *("-o", "--output"),
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it there.",
)
@click.option(
    *("--example", "as_example"),
    is_flag=True,
    help="A fleet to look at: recorded results, and hosts that are made up and say so.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
)
@click.pass_context
def report(
    context: click.Context,
    *,
    wanted: str | None,
    form: Format | None,
    in_json: bool,
    output: Path | None,
    as_example: bool,
    results: Path,
) -> None:
    """Print the last run again, or another one.

    The last run is the newest by its start, whatever its hosts were. Exit code 0: all PASS, or
    CPU ONLY or BUSY where that is allowed; 1: something is not; 2: no such run, or one that can't
    be read. A list of all judges nothing, nor does the example: 0 or 2.
    """
    how = Wanted(_form(form, in_json), output, results)
    _refuse(how, wanted, as_example)
    runs = Runs(results)
    try:
        if as_example:
            code = _example(how)
        elif wanted == ALL:
            code = _list(runs, how)
        elif wanted is not None:
            code = _show(runs.find(wanted), [], how)
        else:
            code = _show(*runs.last(), how)
    except RunError as error:
        raise BadInput(str(error)) from error
    if not as_example and how.form != "html":
        _take_in(results)  # After the report: a database that does not answer takes its time.
    context.exit(code)


def _form(form: Format | None, in_json: bool) -> Format:
    if in_json and form not in (None, "json"):
        raise BadInput(
            f"--json: found --format {form} beside it; expected one of both; "
            "next: llamafleet report --help"
        )
    return "json" if in_json else form or "text"


def _refuse(how: Wanted, wanted: str | None, as_example: bool) -> None:
    """What can't be had together."""
    if as_example and wanted is not None:
        raise BadInput(f"--example: found --run beside it; expected it alone; next: {EXAMPLE}")
    if wanted == ALL and how.form not in LISTED:
        raise BadInput(
            f"--run {ALL}: found --format {how.form}; expected {' or '.join(LISTED)}; "
            f"next: llamafleet report --run {ALL}"
        )
    if how.form == "html" and wanted is not None:
        raise BadInput(
            "--format html: found --run; expected none, as the page holds the whole history; "
            "next: llamafleet report --format html"
        )
    output = how.output
    if output and (not output.parent.is_dir() or (output.exists() and not output.is_file())):
        raise BadInput(
            f"--output {output}: found no file that could be written there; expected one in a "
            f"folder that exists; next: mkdir -p {output.parent}"
        )


def _take_in(results: Path) -> list[str]:
    """What there is to say of it, which is on the screen."""
    warnings = keep_up(results)
    for line in warnings:
        click.echo(f"Warning: {line}", err=True)
    return warnings


def _show(run: Run | None, errors: list[RunError], how: Wanted) -> int:
    """An older run proves nothing about a newer one that can't be read: `errors` decide first."""
    _say(errors)
    if run is None:
        return BadInput.exit_code
    if how.form == "html":
        text = _page(run, how.results, [*map(str, errors), *_take_in(how.results)])
    else:
        text = _text(run, how)
    _put(text, how.output)
    return BadInput.exit_code if errors else exit_code_of(run)


def _example(how: Wanted) -> int:
    from llamafleet.history.example import NOTES, example

    made = example()
    if how.form == "html":
        from llamafleet.cli.page import page_of

        # As on its day.
        then = made.run.finished or datetime.now(timezone.utc)
        text = page_of(made.run, made.run.rows, made.records, made.results, NOTES, made=then)
    else:
        text = _text(made.run, how)
    if how.form == "text":
        text = "\n".join([text, *_judged(made.records)])
    _put(text, how.output)
    for note in NOTES:
        click.echo(note, err=True)
    return 0


def _judged(records: Sequence[Record]) -> list[str]:
    """What `llamafleet compare --last-update` and `llamafleet outliers` say of them."""
    from llamafleet.history.lastupdate import last_updates
    from llamafleet.history.outliers import AGE, find_outliers
    from llamafleet.history.words import of_groups, of_updates

    return ["", *of_updates(last_updates(records)), "", *of_groups(find_outliers(records, AGE))]


def _page(run: Run, results: Path, notes: list[str]) -> str:
    from llamafleet.cli.page import page_of
    from llamafleet.history.fleet import newest

    fleet = newest(run, results)
    try:
        records = tuple(History(results, os.environ.get(VARIABLE, "")).records())
    except HistoryError as error:
        raise BadInput(str(error)) from error
    now = datetime.now(timezone.utc)
    notes = [*notes, *fleet.unread]
    return page_of(run, fleet.rows, records, fleet.results, notes, made=now)


def _text(run: Run, how: Wanted) -> str:
    if how.form == "json":
        return json.dumps(as_json(run), indent=1)
    if how.form == "junit":
        from llamafleet.history import junit

        return junit.render(run)
    if how.form == "md":
        from llamafleet.history import markdown

        return markdown.render(run)
    return render_run(run, colours=how.output is None and colours_wanted(sys.stdout))


def _list(runs: Runs, how: Wanted) -> int:
    found = list(runs.newest_first())
    errors = [run for run in found if isinstance(run, RunError)]
    kept = [run for run in found if isinstance(run, Run)]
    _say(errors)
    if how.form == "json":
        _put(json.dumps([as_json(run) for run in kept], indent=1), how.output)
    elif kept:
        _put("\n".join(map(render_line, kept)), how.output)
    return BadInput.exit_code if errors else 0


def _put(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text)
        return
    try:
        write_text(output, f"{text}\n")
    except OSError as error:
        raise BadInput(
            f"--output {output}: found {error.strerror}; expected a file that can be written; "
            f"next: ls -ld {output.parent}"
        ) from error


def _say(errors: list[RunError]) -> None:
    for error in errors:
        click.echo(f"Error: {error}", err=True)
