"""Where a driver comes from, and the commands that change it there: driver-origins.yaml."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from llamafleet.tables.rows import Origin, Row, load

Purpose = Literal["install", "open", "proprietary", "branch", "legacy", "tools", "fabric"]

Commands = Annotated[tuple[str, ...], Field(min_length=1)]


def _whole(commands: dict[Purpose, Commands]) -> dict[Purpose, Commands]:
    missing = set(get_args(Purpose)) - set(commands)
    if missing:
        raise ValueError(f"commands for {', '.join(sorted(missing))} are missing")
    return commands


class DriverOrigin(Row):
    """One way by which a host gets its driver."""

    id: str
    manager: str
    """As the snapshot names it; "": none, NVIDIA's own installer."""
    packages: tuple[str, ...]
    systems: tuple[str, ...]
    like: bool = False
    versions: tuple[str, ...] = ()
    commands: Annotated[dict[Purpose, Commands], AfterValidator(_whole)]
    """As typed as root, places in braces not filled in."""
    source: Origin

    def has_one_of(self, installed: Collection[str]) -> bool:
        return any(fnmatchcase(name, one) for one in self.packages for name in installed)


class _Origins(Row):
    origins: tuple[DriverOrigin, ...]


def origins() -> tuple[DriverOrigin, ...]:
    """All rows, the first that fits decides. Raises TableError."""
    return load("driver-origins.yaml", _Origins).origins


def origin_of(
    manager: str, installed: Collection[str], system: str, like: Collection[str], version: str
) -> DriverOrigin | None:
    """The row of a host; `version`: VERSION_ID. None: it is not known."""
    major = version.partition(".")[0]
    rows = [row for row in origins() if row.manager == manager]
    rows = [row for row in rows if not row.versions or major in row.versions]
    by_package = next((row for row in rows if row.has_one_of(installed)), None)
    return by_package or next(
        (
            row
            for row in rows
            if system in row.systems or (row.like and set(like) & set(row.systems))
        ),
        None,
    )


def runfile() -> DriverOrigin:
    """NVIDIA's own installer."""
    return origins()[-1]
