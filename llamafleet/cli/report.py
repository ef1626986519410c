"""The command `llamafleet report`: what a run came to, and which runs there are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from llamafleet.cli.errors import BadInput
from llamafleet.history.report import exit_code_of, render_line, render_run
from llamafleet.history.runs import Run, RunError, Runs, as_json
from llamafleet.terminal import colours_wanted

ALL = "all"


@click.command()
@click.option(
    *("--run", "wanted"),
    metavar=f"ID|{ALL}",
    help="Another run, by its id or the beginning of it; or a list of all, newest first.",
)
@click.option("--json", "in_json", is_flag=True, help="Print the run, or a list of them, as JSON.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
)
@click.pass_context
def report(context: click.Context, wanted: str | None, in_json: bool, results: Path) -> None:
    """Print the last run again, or another one.

    The last run is the newest by its start, whatever its hosts were. Exit code 0: all PASS, or
    CPU ONLY or BUSY where that is allowed; 1: something is not; 2: no such run, or one that can't
    be read. A list of all judges nothing: 0 or 2.
    """
    runs = Runs(results)
    try:
        if wanted == ALL:
            code = _list(runs, in_json)
        elif wanted is not None:
            code = _show(runs.find(wanted), [], in_json)
        else:
            code = _show(*runs.last(), in_json)
    except RunError as error:
        raise BadInput(str(error)) from error
    context.exit(code)


def _show(run: Run | None, errors: list[RunError], in_json: bool) -> int:
    """An older run proves nothing about a newer one that can't be read: `errors` decide first."""
    _say(errors)
    if run is None:
        return BadInput.exit_code
    colours = colours_wanted(sys.stdout)
    click.echo(json.dumps(as_json(run), indent=1) if in_json else render_run(run, colours=colours))
    return BadInput.exit_code if errors else exit_code_of(run)


def _list(runs: Runs, in_json: bool) -> int:
    found = list(runs.newest_first())
    errors = [run for run in found if isinstance(run, RunError)]
    kept = [run for run in found if isinstance(run, Run)]
    _say(errors)
    if in_json:
        click.echo(json.dumps([as_json(run) for run in kept], indent=1))
    else:
        for run in kept:
            click.echo(render_line(run))
    return BadInput.exit_code if errors else 0


def _say(errors: list[RunError]) -> None:
    for error in errors:
        click.echo(f"Error: {error}", err=True)
