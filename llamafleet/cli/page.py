"""The HTML report beside what is expected of each GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from llamafleet.cli.bands import expected
from llamafleet.history.html.render import render
from llamafleet.history.html.view import Material
from llamafleet.history.record import Record
from llamafleet.history.report import head, proves_nothing
from llamafleet.history.runs import Run
from llamafleet.history.store import Row
from llamafleet.protocol.result import Result


def page_of(
    run: Run,
    rows: Sequence[Row],
    records: Sequence[Record],
    results: Mapping[str, Result],
    notes: Sequence[str],
    *,
    made: datetime,
) -> str:
    """The page of a fleet whose newest run that is."""
    material = Material(
        made=made,
        rows=tuple(rows),
        records=tuple(records),
        results=results,
        head=head(run),
        notes=(*proves_nothing(run), *notes),
    )
    return render(material, expected())
