"""The newest that is known of each host: by a run, and of hosts it did not ask by their results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llamafleet.history.runs import Run
from llamafleet.history.store import Row, Store, read_result
from llamafleet.protocol.result import Result
from llamafleet.protocol.verify import LATEST
from llamafleet.terminal import printable


@dataclass(frozen=True)
class Fleet:
    """All hosts of a folder of results."""

    rows: tuple[Row, ...]
    results: dict[str, Result]
    """The newest of each host."""
    unread: tuple[str, ...]
    """What could not be read, a line each."""


def newest(run: Run, root: Path) -> Fleet:
    """A host of `run` by its row there; any other by its newest result."""
    store, results, unread = Store(root), {}, []
    for path in sorted(root.glob(f"*/{LATEST}")):
        result = read_result(path)
        if isinstance(result, Result):
            results[store.host_of(path, result)] = result
        else:
            unread.append(printable(f"{path} can't be read: {result.reason}"))
    asked = {row.host for row in run.rows}
    others = [Row.of(host, one, (), ()) for host, one in results.items() if host not in asked]
    return Fleet((*run.rows, *others), results, tuple(unread))
