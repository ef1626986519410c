"""The command `llamafleet report`: what a run came to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from llamafleet.cli.errors import BadInput
from llamafleet.history.report import exit_code, render
from llamafleet.history.store import Store, StoreError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
)
@click.pass_context
def report(context: click.Context, as_json: bool, results: Path) -> None:
    """Print the last run again. Exit code 0: all PASS; 1: something is not; 2: no run."""
    try:
        rows = Store(results).last_run()
    except StoreError as error:
        raise BadInput(str(error)) from error
    click.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else render(rows))
    context.exit(exit_code(rows))
