"""The records of a history that a filter wants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from llamafleet.history.database import RECORDS
from llamafleet.history.record import Record
from llamafleet.history.records import Filter

AT_ONCE = 2000
"""Rows that are fetched together."""


def read(engine: Engine, wanted: Filter) -> Iterator[Record]:
    """Oldest first."""
    c = RECORDS.c
    query = sa.select(*(c[name] for name in Record.__dataclass_fields__))
    query = query.where(*_conditions(wanted, engine.dialect.name))
    if wanted.last is not None:
        newest = query.order_by(c.test_time.desc(), c.id.desc()).limit(wanted.last).subquery()
        query = sa.select(*newest.c).order_by(newest.c.test_time, newest.c.id)
    else:
        query = query.order_by(c.test_time, c.id)
    with engine.connect() as connection:
        for row in connection.execute(query, execution_options={"yield_per": AT_ONCE}):
            yield Record(*row)


def count(engine: Engine, wanted: Filter) -> int:
    """How many there are, whatever `last` is."""
    query = sa.select(sa.func.count()).select_from(RECORDS)
    query = query.where(*_conditions(wanted, engine.dialect.name))
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def _conditions(wanted: Filter, dialect: str) -> Iterator[sa.ColumnElement[bool]]:
    """What must hold of a record."""
    c = RECORDS.c
    for patterns, names in wanted.columns():
        if patterns:
            yield sa.or_(*(_like(c[n], p, dialect) for n in names for p in patterns))
    if wanted.tests:
        yield c.test.in_(wanted.tests)
    if wanted.verdicts:
        yield c.verdict.in_(wanted.verdicts)
    if wanted.since is not None:
        yield c.test_time >= wanted.since
    if wanted.until is not None:
        yield c.test_time < wanted.until
    if wanted.busy is not None:
        none = sa.cast(c.busy, sa.String()) == "[]"
        yield ~none if wanted.busy else none
    if wanted.together is not None:
        yield c.gpus > 1 if wanted.together else c.gpus <= 1


def _like(column: sa.Column[Any], pattern: str, dialect: str) -> sa.ColumnElement[bool]:
    """A pattern of * and ? in SQL."""
    if not {"*", "?"} & set(pattern):
        return column == pattern
    if dialect == "sqlite":  # Its LIKE does not know cases.
        return column.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
    for sign in "\\%_":
        pattern = pattern.replace(sign, f"\\{sign}")
    return column.like(pattern.replace("*", "%").replace("?", "_"), escape="\\")
