"""What is said at the end of a run in which hosts were measured under a new driver first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llamafleet.history.records import VARIABLE, Filter, History, HistoryError
from llamafleet.history.store import Row

UNSAID = frozenset({"too few runs", "not comparable"})
"""Of each host the run's own lines tell it already."""
WILD = frozenset("*?[")


def after_update(results: Path, rows: Sequence[Row]) -> list[str]:
    """All runs of these hosts before and since the update, judged together; printable lines.

    None where no host was updated, where the runs are too few, or where there is no history.
    """
    hosts = tuple(row.host for row in rows if row.update)
    if not hosts:
        return []
    named = () if WILD.intersection("".join(hosts)) else hosts
    # Only here: most runs come to no update, and pyinfra's start waits for what is above.
    from llamafleet.history.lastupdate import last_updates_of
    from llamafleet.history.words import of_updates

    try:
        history = History(results, os.environ.get(VARIABLE, ""))
        gpus = (gpu for gpu in history.by_gpu(Filter(hosts=named)) if gpu[0].of.host in hosts)
        updates = last_updates_of(gpus)
    except (HistoryError, OSError):
        return []
    drivers = {(row.update.before.driver, row.update.after.driver) for row in rows if row.update}
    found = [
        one
        for one in updates
        if (one.before, one.after) in drivers
        and any(told.answer not in UNSAID for told in one.comparisons)
    ]
    return list(of_updates(found))
