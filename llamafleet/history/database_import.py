"""Takes the results that a folder holds into the history: once each, whoever else does the same."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from llamafleet.history.database import RECORDS, SOURCES, writing
from llamafleet.history.files import to_look_at, to_set_aside
from llamafleet.history.record import Record
from llamafleet.history.records import records_of
from llamafleet.history.runs import Run, RunError, Runs
from llamafleet.history.store import VERIFIED, Row, Store, read_result
from llamafleet.protocol.result import Result
from llamafleet.protocol.verify import LATEST
from llamafleet.received import Unreadable, plain

T = TypeVar("T")

BATCH = 200
"""Files of one transaction."""

SKEW = timedelta(days=1)
"""How far a host's clock may be from the controller's: results tell the host's time, runs the
controller's."""

KEPT = ("id", "run_id", "source")
"""Of a record that is there, a file that tells it again changes all but these."""


@dataclass
class Taken:
    """What an import came to."""

    files: int = 0
    """Files that were read and are good."""
    records: int = 0
    """Records that were not there before."""
    aside: list[str] = field(default_factory=list)
    """Results that were left out, one line each; such a file is read again next time."""
    runs_aside: list[str] = field(default_factory=list)
    """The same of runs, which a report names itself."""


@dataclass(frozen=True)
class Source:
    """A file as it was before it was read."""

    path: Path
    name: str
    """Below the folder of results."""
    size: int
    mtime_ns: int
    before: bool
    """It was taken in before it changed."""


def take_in(engine: Engine, results: Path) -> Taken:
    """All new results and runs below a folder."""
    taken = Taken()
    folder = f"{socket.gethostname()}:{results.resolve()}"
    with engine.connect() as connection:
        known = _known(connection, folder)
    store = Store(results)
    # Runs are listed first: one that ends meanwhile is read again when its results are here.
    runs = list(_new(results, results.glob("runs/*.json"), known, taken.runs_aside))
    for batch in _batches(_new(results, _stored(results, taken), known, taken.aside), BATCH):
        read = [(source, _records(store, source, taken)) for source in batch]
        good = [(source, records) for source, records in read if records is not None]
        with writing(engine) as connection:
            rows = [record for _, records in good for record in records]
            taken.records += put(connection, rows)
            for source, records in good:
                if source.before and source.path.name != LATEST:
                    _forget(connection, source, records)
            _mark(connection, folder, [source for source, _ in good])
        taken.files += len(good)
    for source in runs:
        run = _run(results, source, taken)
        if run is not None:
            with writing(engine) as connection:
                assign(connection, run)
                _mark(connection, folder, [source])
    return taken


def put(connection: Connection, records: Iterable[Record]) -> int:
    """Keep records; returns how many were not there before."""
    rows: dict[str, dict[str, Any]] = {}
    for record in records:  # The first one tells where it is from.
        rows.setdefault(record.id, _as_row(record))
    if not rows:
        return 0
    wanted = sa.select(RECORDS.c.id).where(RECORDS.c.id.in_(sa.bindparam("ids", expanding=True)))
    before = sum(
        len(connection.execute(wanted, {"ids": part}).all()) for part in _batches(rows, 10_000)
    )
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(RECORDS)
    again = {c.name: statement.excluded[c.name] for c in RECORDS.columns if c.name not in KEPT}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_=again), list(rows.values())
    )
    return len(rows) - before


def _forget(connection: Connection, source: Source, records: Iterable[Record]) -> None:
    """Of a file that was changed: what it told before and does not tell any more."""
    told = [record.id for record in records]
    c = RECORDS.c
    connection.execute(sa.delete(RECORDS).where(c.source == source.name, c.id.not_in(told)))


def _as_row(record: Record) -> dict[str, Any]:
    return {column.name: getattr(record, column.name) for column in RECORDS.columns}


# -- files -----------------------------------------------------------------------------------------


Known = dict[str, tuple[int, int]]
"""Size and time of change of a file when it was read, by its name."""


def _known(connection: Connection, folder: str) -> Known:
    columns = (SOURCES.c.path, SOURCES.c.size, SOURCES.c.mtime_ns)
    wanted = sa.select(*columns).where(SOURCES.c.folder == folder)
    return {path: (size, mtime) for path, size, mtime in connection.execute(wanted)}


def _stored(results: Path, taken: Taken) -> Iterator[Path]:
    """Files of results; a folder that can't be read is named."""
    for folder in sorted(results.iterdir()):
        if folder.name == "runs" or not folder.is_dir():
            continue
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
        except OSError as error:
            taken.aside.append(_aside(folder, error.strerror or str(error), to_look_at(folder)))
            continue
        yield from paths


def _new(results: Path, paths: Iterable[Path], known: Known, aside: list[str]) -> Iterator[Source]:
    for path in paths:
        name = plain(str(path.relative_to(results)))
        try:
            stat = path.stat()
        except OSError as error:
            aside.append(_aside(path, error.strerror or str(error), to_look_at(path)))
            continue
        if not S_ISREG(stat.st_mode):  # A pipe would be waited for.
            aside.append(_aside(path, "no regular file", to_set_aside(path)))
        elif known.get(name) != (stat.st_size, stat.st_mtime_ns):
            yield Source(path, name, stat.st_size, stat.st_mtime_ns, name in known)


def _records(store: Store, source: Source, taken: Taken) -> tuple[Record, ...] | None:
    """None, and named: it can't be read."""
    try:
        source.path.open("rb").close()
    except OSError as error:
        found = error.strerror or str(error)
        taken.aside.append(_aside(source.path, found, to_look_at(source.path)))
        return None
    result = read_result(source.path)
    try:
        if isinstance(result, Result):
            own = replace(result, host=store.host_of(source.path, result))
            return records_of(own, source=source.name)
        found = result.reason.removeprefix("found ")
    except ValueError as error:
        found = str(error)
    newer = isinstance(result, Unreadable) and result.newer
    step = "git pull" if newer else to_set_aside(source.path)
    taken.aside.append(_aside(source.path, found, step))
    return None


def _run(results: Path, source: Source, taken: Taken) -> Run | None:
    """None: it can't be read, and is named, or is no run."""
    try:
        return Runs(results).read(source.path.stem)
    except RunError as error:
        taken.runs_aside.append(str(error))
        return None


def _aside(path: Path, found: str, step: str) -> str:
    return f"{path}: found {found}; expected a result; next: {step}"


def _mark(connection: Connection, folder: str, sources: Sequence[Source]) -> None:
    if not sources:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(SOURCES)
    told = {"size": statement.excluded.size, "mtime_ns": statement.excluded.mtime_ns}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["folder", "path"], set_=told),
        [
            {"folder": folder, "path": one.name, "size": one.size, "mtime_ns": one.mtime_ns}
            for one in sources
        ],
    )


# -- runs ------------------------------------------------------------------------------------------


def assign(connection: Connection, run: Run) -> None:
    """Tell the records of a run whose they are, by their figures: a result names no run."""
    if run.started is None or run.finished is None:
        return
    told = [figure for row in run.rows if VERIFIED in row.changed for figure in _figures(row)]
    if not told:
        return
    c = RECORDS.c
    connection.execute(
        sa.update(RECORDS)
        .where(
            *(c.run_id == "", c.host == sa.bindparam("of_host")),
            *(c.test_time > run.started - SKEW, c.test_time < run.finished + SKEW),
            *(c.fingerprint == sa.bindparam("of_build"), c.test == sa.bindparam("of_test")),
            *(c.gpu_uuid == sa.bindparam("of_gpu"), c.median_ts == sa.bindparam("of_rate")),
        )
        .values(run_id=run.id),
        told,
    )


def _figures(row: Row) -> Iterator[dict[str, Any]]:
    """Each figure that a run's row tells."""
    told: list[tuple[str, float | None, float | None]] = [("", row.pp, row.tg)]
    told += [(gpu.uuid, gpu.pp, gpu.tg) for gpu in row.gpus]
    for uuid, pp, tg in told:
        for test, rate in (("pp", pp), ("tg", tg)):
            if rate is not None:
                common = {"of_host": row.host, "of_build": row.build, "of_gpu": uuid}
                yield {**common, "of_test": test, "of_rate": rate}


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
