"""The HTML report with who judges its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from llamafleet.history.html.render import render
from llamafleet.history.html.view import Expected, Material
from llamafleet.history.record import Record
from llamafleet.history.runs import Run
from llamafleet.history.store import Row
from llamafleet.protocol.result import Result


def page_of(
    run: Run,
    rows: Sequence[Row],
    records: Sequence[Record],
    results: Mapping[str, Result],
    notes: Sequence[str],
) -> str:
    """The page of a fleet whose newest run that is."""
    return render(
        Material(
            made=datetime.now(timezone.utc),
            rows=tuple(rows),
            records=tuple(records),
            results=results,
            head=f"run {run.id}",
            notes=tuple(notes),
        ),
        EXPECTED,
    )


EXPECTED = Expected(roofline=lambda record: None, bands=lambda record: ())
