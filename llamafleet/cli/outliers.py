"""The command `llamafleet outliers`: GPUs that are slower than their peers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime, timezone

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.filters import filtered
from llamafleet.history.records import Filter, History
from llamafleet.terminal import masked_data


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@filtered
@click.pass_context
def outliers(context: click.Context, /, *, as_json: bool, history: History, wanted: Filter) -> None:
    """Tell which GPUs are slower than others of their model with the same build, and why.

    A GPU is its 5 newest runs, of the last 90 days unless --window says otherwise; pp and tg are
    judged apart. It takes 4 free and healthy peers. Exit code 0: no GPU is slow; 1: some are; 2:
    bad input, or no GPU has enough peers.
    """
    # Only here: every command waits for what is above.
    from llamafleet.history.outliers import AGE, find_outliers
    from llamafleet.history.words import of_groups

    timed = wanted.since is not None or wanted.until is not None
    if not timed:
        wanted = replace(wanted, since=datetime.now(timezone.utc) - AGE)
    found = find_outliers(history.records(wanted))
    if not found:
        raise BadInput(
            f"found no figure of a single GPU in that time ({AGE.days} days without --window); "
            "expected some; next: llamafleet outliers --window now-360d:now"
        )
    if as_json:
        click.echo(json.dumps(masked_data([asdict(group) for group in found]), indent=1))
    else:
        click.echo("\n".join(of_groups(found)))
    if any(group.outliers for group in found):
        context.exit(1)
    context.exit(0 if any(group.judged for group in found) else BadInput.exit_code)
