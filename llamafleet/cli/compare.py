"""The command `llamafleet compare`: two drivers, toolkits, builds, hosts or GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.filters import filtered
from llamafleet.history.compare import FIELDS, By, NotFound, common, compare, patterns, select
from llamafleet.history.comparison import Comparison
from llamafleet.history.record import Figure
from llamafleet.history.records import Filter, History
from llamafleet.terminal import masked_data, printable

USE = "llamafleet compare --by driver A B, or llamafleet compare --last-update"


@click.command(name="compare")
@click.argument("values", metavar="[A B]", nargs=-1)
@click.option("--by", type=click.Choice(get_args(By)), help="What A and B are.")
@click.option("--last-update", is_flag=True, help="Before and since each GPU's last driver update.")
@click.option("--force", is_flag=True, help="Compare whatever differs, BUSY figures too.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@filtered
@click.pass_context
def compare_command(
    context: click.Context,
    /,
    *,
    values: tuple[str, ...],
    by: By | None,
    last_update: bool,
    force: bool,
    as_json: bool,
    history: History,
    wanted: Filter,
) -> None:
    """Tell whether B is faster or slower than A: medians, ratio and an interval of 95 %.

    A run is one figure. Runs are compared where all else that counts is the same, by driver,
    toolkit or build on the same GPU; BUSY ones never. A and B may be the beginning of a value, as
    580. Exit code 0: nothing slower was shown; 1: something is slower; 2: bad input, or nothing
    could be compared.
    """
    # Only here: every command waits for what is above.
    from llamafleet.history.lastupdate import last_updates_of
    from llamafleet.history.words import of_comparisons, of_updates

    if last_update:
        if by or values or force:
            raise BadInput(
                f"--last-update: found other arguments beside; expected none; next: {USE}"
            )
        found = last_updates_of(history.by_gpu(wanted))
        told = [one for update in found for one in update.comparisons]
        lines = list(of_updates(found)) or ["no GPU has figures before and since a driver update"]
        data: object = [asdict(one) for one in found]
    else:
        told = compare(*_sides(history, wanted, by, values), _axis(by), force=force)
        lines = [_heading(_axis(by), values), *of_comparisons(told)]
        data = [asdict(one) for one in told]
    if as_json:
        click.echo(json.dumps(masked_data(data), indent=1, default=str))
    else:
        click.echo("\n".join(lines))
    context.exit(_code(told))


def _axis(by: By | None) -> By:
    if by is None:
        raise BadInput(f"--by: found nothing; expected what A and B are; next: {USE}")
    return by


def _heading(by: By, values: Sequence[str]) -> str:
    return printable(f"A: {by} {values[0]}, B: {by} {values[1]}")


def _sides(
    history: History, wanted: Filter, by: By | None, values: Sequence[str]
) -> tuple[list[Figure], list[Figure]]:
    """Raises BadInput."""
    axis = _axis(by)
    if len(values) != 2:
        raise BadInput(f"found {len(values)} values; expected two, A and B; next: {USE}")
    a, b = (_of(history, wanted, axis, value) for value in values)
    if common(a, b, axis):
        raise BadInput(
            f"found runs that are both {axis} {values[0]} and {values[1]}; expected values of "
            "which neither begins with the other; next: llamafleet history"
        )
    return a, b


def _of(history: History, wanted: Filter, by: By, value: str) -> list[Figure]:
    """Of an axis that is filtered as well, all that the filter gives is searched."""
    field = FIELDS[by]
    narrow: dict[str, Any] = {} if getattr(wanted, field) else {field: patterns(by, value)}
    own = replace(wanted, **narrow)
    try:
        return select(history.figures(own), by, value)
    except NotFound:
        pass
    try:
        return select(history.figures(wanted), by, value)
    except NotFound as error:
        raise BadInput(str(error)) from error


def _code(found: Sequence[Comparison]) -> int:
    if any(one.answer == "slower" for one in found):
        return 1
    compared = any(one.answer != "not comparable" for one in found)
    return 0 if compared else BadInput.exit_code
