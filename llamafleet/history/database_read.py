"""The records of a history that a filter wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from sys import intern
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from llamafleet.history import comparable
from llamafleet.history.database import RECORDS, Tuple
from llamafleet.history.record import Light, Record
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
            # Most texts are those of thousands of records.
            values: Iterator[Any] = (intern(one) if type(one) is str else one for one in row)
            yield Record(*values)


def figures(engine: Engine, wanted: Filter, *, by_gpu: bool = False) -> Iterator[Light]:
    """Oldest first, or those of each GPU of a host in turn; whatever `last` is."""
    c = RECORDS.c
    asked = (_hashable(c[name]) for name in comparable.ASKED)
    query = sa.select(c.id, c.test_time, c.median_ts, *asked)
    query = query.where(*_conditions(wanted, engine.dialect.name))
    query = query.order_by(*((c.host, c.gpu_uuid) if by_gpu else ()), c.test_time, c.id)
    first: dict[tuple[object, ...], Record] = {}
    with engine.connect() as connection:
        for id, time, median, *told in connection.execute(
            query, execution_options={"yield_per": AT_ONCE}
        ):
            key = (comparable.is_figure(median), *told)
            if key not in first:
                values = map(_value, comparable.ASKED, told)
                rest = dict(zip(comparable.ASKED, values, strict=True))
                first[key] = Record(id=id, test_time=time, avg_ts=median, median_ts=median, **rest)
            yield Light(first[key], time, median)


def _hashable(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """JSON as its text, which is read once for all records that are alike."""
    return sa.cast(column, sa.String()) if _is_json(column) else column


def _value(name: str, told: Any) -> Any:
    column = RECORDS.c[name]
    if not _is_json(column):
        return told
    found = json.loads(told)
    return tuple(found or ()) if isinstance(column.type, Tuple) else found


def _is_json(column: sa.Column[Any]) -> bool:
    return isinstance(column.type, (sa.JSON, Tuple))


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
