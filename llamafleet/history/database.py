"""The history as a database: its tables, how it is opened and brought to today's form.

Core of SQLAlchemy: SQLite in a file, or PostgreSQL for several controllers. Loaded where a history
is used, not by every command.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
from sqlalchemy.types import TypeDecorator

from llamafleet.history.files import to_set_aside
from llamafleet.history.record import Record
from llamafleet.history.records import VARIABLE, HistoryError
from llamafleet.history.store import DATABASE
from llamafleet.terminal import conceal

HEAD = "0001"
"""The newest form: the last of migrations/versions."""

VERSION_TABLE = "benchmark_version"
"""The database may hold other tables than ours."""

BUSY_S = 60
"""How long a writer waits for another one."""

CONNECT_S = 10
"""How long a server is waited for: it may be down at the end of each run."""

LOCK = 0x6C6C616D61
"""Of PostgreSQL's advisory locks the one of who writes: "llama"."""

SERVER = {
    "connect_timeout": CONNECT_S,
    # A network that was cut says nothing: it is noticed within a minute, not within two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": BUSY_S * 1000,
}
"""Of libpq, unless the URL tells them."""

SESSION = f"SET LOCAL lock_timeout = '{BUSY_S}s'; SET LOCAL TIME ZONE 'UTC'"
"""Who holds a lock and goes away must not hold a run's end as well; and in another zone a moment at
the calendar's edge can't be read."""

MIGRATIONS = Path(__file__).parent / "migrations"

SCHEMES = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


class Utc(TypeDecorator[datetime]):
    """A moment: SQLite keeps no zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        told = value.astimezone(timezone.utc)
        return told.replace(tzinfo=None) if dialect.name == "sqlite" else told

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).astimezone(
            timezone.utc
        )


class Tuple(TypeDecorator[tuple[Any, ...]]):
    """A tuple, as a list of JSON."""

    impl = sa.JSON
    cache_ok = True

    def process_bind_param(self, value: tuple[Any, ...] | None, dialect: Dialect) -> Any:
        return list(value or ())

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[Any, ...]:
        return tuple(value or ())


KINDS: dict[str, sa.types.TypeEngine[Any]] = {
    "str": sa.String(),
    "Test": sa.String(),
    "Verdict | None": sa.String(),
    "datetime": Utc(),
    "float": sa.Double(),
    "float | None": sa.Double(),
    "int": sa.BigInteger(),
    "int | None": sa.BigInteger(),
    "bool | None": sa.Boolean(),
    "tuple[float, ...]": Tuple(),
    "tuple[str, ...]": Tuple(),
    "Mapping[str, float]": sa.JSON(),
    "Mapping[str, Any]": sa.JSON(),
}
"""Column types by the annotation of a record's field."""


def _columns() -> Iterator[sa.Column[Any]]:
    for one in fields(Record):
        kind = str(one.type)
        yield sa.Column(one.name, KINDS[kind], primary_key=one.name == "id",
                        nullable="None" in kind)  # fmt: skip


METADATA = sa.MetaData()
RECORDS = sa.Table(
    "benchmark_records",
    METADATA,
    *_columns(),
    sa.Index("benchmark_records_time", "test_time", "id"),
    sa.Index("benchmark_records_host", "host", "test_time"),
    sa.Index("benchmark_records_gpu", "gpu_uuid", "test_time"),
)
SOURCES = sa.Table(
    "benchmark_sources",
    METADATA,
    sa.Column("folder", sa.String(), primary_key=True),
    sa.Column("path", sa.String(), primary_key=True),
    sa.Column("size", sa.BigInteger(), nullable=False),
    sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
)
"""Files that were taken in: read again only when they change."""


def url_of(results: Path, told: str) -> URL:
    """`told`: a URL, or "" for the file below the folder of results. Raises HistoryError."""
    if not told:
        return URL.create(SCHEMES["sqlite"], database=str(results / DATABASE))
    try:
        url = make_url(told if told.isprintable() else "")
    except (sa.exc.ArgumentError, ValueError) as error:
        raise HistoryError(_unknown("one that is no URL")) from error
    conceal([str(url.password)] if url.password else [])
    name = url.get_backend_name()
    if name not in SCHEMES or (name == "sqlite" and not _is_file(url)):
        raise HistoryError(_unknown(f"{name}://{url.database or ''}"))
    return url.set(drivername=SCHEMES[name])


def _is_file(url: URL) -> bool:
    """Of SQLite: neither in memory, where nothing is kept, nor with words of the driver's."""
    return bool(url.database) and url.database != ":memory:" and not url.query


def _unknown(found: str) -> str:
    return (
        f"history: found the database {found}; expected postgresql://HOST/NAME or "
        f"sqlite:///FILE; next: export {VARIABLE}=URL"
    )


@contextmanager
def opened(results: Path, told: str) -> Iterator[Engine]:
    """The database, of today's form. Raises HistoryError, also for what goes wrong inside."""
    url = url_of(results, told)
    engine = _engine(url)
    try:
        _prepare(engine)
        yield engine
    except sa.exc.SQLAlchemyError as error:
        raise HistoryError(_failed(url, error)) from error
    finally:
        engine.dispose()


def _failed(url: URL, error: sa.exc.SQLAlchemyError) -> str:
    """A driver's own words, without the statement and its values."""
    said = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
    name = url.get_backend_name()
    # As it was told: how we reach it is no part of it.
    shown = url.set(drivername=name).render_as_string()
    return (
        f"history: found that {shown} can't be used ({said}); expected a database; "
        f"next: {_step(url, said)}"
    )


def _step(url: URL, said: str) -> str:
    if url.get_backend_name() == "postgresql":
        told = os.environ.get(VARIABLE)
        return f'psql "${VARIABLE}"' if told else "psql URL, as it was told with --database"
    if "not a database" in said or "malformed" in said:
        # Results are taken in again from their files.
        return to_set_aside(url.database)
    folder = Path(str(url.database)).parent
    if "full" in said or "I/O error" in said:  # Which of both, is by chance.
        return f"df -h {shlex.quote(str(folder))}"
    return f"ls -la {shlex.quote(str(folder))}"


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    told = {name: value for name, value in SERVER.items() if name not in url.query}
    engine = sa.create_engine(url, connect_args=told)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(SESSION)
        if _writes(connection):
            # Two that write the same records in another order would wait for each other.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))

    return engine


def _sqlite(url: URL) -> Engine:
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        # Python's sqlite3 begins no transaction by itself then: `begin` does.
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=NORMAL")
        # Ids come in no order: with 2 MB, as is usual, a million of them are waited for.
        connection.execute("PRAGMA cache_size=-65536")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Two that read and then write would wait for each other.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")

    return engine


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("writes"))


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: one at a time, whoever else does."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


# -- its form --------------------------------------------------------------------------------------


def _prepare(engine: Engine) -> None:
    """Bring it to today's form; a newer one is refused."""
    with engine.connect() as connection:
        if _form(connection) == HEAD:
            return
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            _write_ahead(connection.connection.driver_connection)
    with writing(engine) as connection:
        # Another process may have done it meanwhile.
        found = _form(connection)
        if found != HEAD:
            _upgrade(connection, found)


def _write_ahead(connection: Any) -> None:
    """With this a writer and readers are not in each other's way; without it they wait.

    Of all statements the one for which SQLite itself does not wait until others are done.
    """
    ends = time.monotonic() + BUSY_S
    while time.monotonic() < ends:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                return  # What is wrong, the next statement says.
        time.sleep(0.05)


def _form(connection: Connection) -> str:
    """ "": a database without our tables."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return ""
    found = connection.execute(sa.select(sa.column("version_num")).select_from(
        sa.table(VERSION_TABLE))).scalar()  # fmt: skip
    return str(found or "")


def _upgrade(connection: Connection, found: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    # A folder may have a % in its name, which stands for something there.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}
    if found and found not in known:
        raise HistoryError(
            f"history: found a database of form {found}; expected up to {HEAD}; next: git pull"
        )
    command.upgrade(config, HEAD)
