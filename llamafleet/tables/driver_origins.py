"""Where a driver comes from, and the commands that change it there: driver-origins.yaml."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from llamafleet.tables.rows import Origin, Row, load

Purpose = Literal["install", "open", "proprietary", "branch", "tools", "fabric"]

Commands = Annotated[tuple[str, ...], Field(min_length=1)]


class DriverOrigin(Row):
    """One way by which a host gets its driver."""

    id: str
    manager: str
    """As the snapshot names it; "": none, NVIDIA's own installer."""
    packages: tuple[str, ...]
    systems: tuple[str, ...]
    like: bool = False
    versions: tuple[str, ...] = ()
    install: Commands
    open: Commands
    proprietary: Commands
    branch: Commands
    tools: Commands
    fabric: Commands
    source: Origin

    def commands(self, purpose: Purpose) -> tuple[str, ...]:
        """As the table has them, places in braces not filled in."""
        found: tuple[str, ...] = getattr(self, purpose)
        return found

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
    rows = [row for row in origins() if row.manager == manager]
    by_package = next((row for row in rows if row.has_one_of(installed)), None)
    major = version.partition(".")[0]
    return by_package or next(
        (
            row
            for row in rows
            if (not row.versions or major in row.versions)
            and (system in row.systems or (row.like and set(like) & set(row.systems)))
        ),
        None,
    )


def runfile() -> DriverOrigin:
    """NVIDIA's own installer."""
    return origins()[-1]
