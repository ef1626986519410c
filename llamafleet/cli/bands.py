"""The command `llamafleet bands`: each GPU beside what GPUs of its kind are expected to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.filters import filtered
from llamafleet.history.records import Filter, History

if TYPE_CHECKING:
    from llamafleet.history.bands import Bands


def expected() -> Bands:
    """The table as the history takes it."""
    # Only here, as below: every command waits for what is above.
    from llamafleet.history.bands import Bands, Bandwidth, Claims, Reference
    from llamafleet.tables.bands import bands as table

    told = table()
    return Bands(
        references=tuple(Reference(**row.model_dump()) for row in told.references),
        bandwidths=tuple(Bandwidth(**row.model_dump()) for row in told.bandwidths),
        models=frozenset(name.lower() for name in told.models),
        low_measured=told.low.measured,
        low_reported=told.low.reported,
        roofline_low=told.roofline_low,
        claims=Claims(**told.claims.model_dump()),
    )


@click.command()
@filtered
def bands(*, history: History, wanted: Filter) -> None:
    """Print each GPU's newest figures beside what others of its model reached.

    Also the share of the memory's bandwidth that generation takes, and the guide's claims. What is
    below is warned of, which changes no verdict. Exit code 0; 2: bad input, or no figure.
    """
    from llamafleet.history.bands import newest
    from llamafleet.history.words import of_bands

    found = list(newest(record for record in history.records(wanted) if record.gpus == 1))
    if not found:
        raise BadInput("found no figure of a single GPU; expected some; next: llamafleet history")
    click.echo("\n".join(of_bands(found, expected())))
