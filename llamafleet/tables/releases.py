"""Releases of llama-cpp-python that are known here: releases.yaml."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from llamafleet.tables import Version, parse_version
from llamafleet.tables.rows import Origin, Row, load

MOST = 10
"""Of the rows, the newest first, these may be built."""

Names = frozenset[str]


class _Row(Row):
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of its source archive."""
    uploaded: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    has: Names = frozenset()
    """Options beside those that are common to most."""
    lacks: Names = frozenset()
    """Options of those that it has not."""
    source: Origin


class _Releases(Row):
    sources: tuple[Origin, ...]
    """Anchors, for rows that share one."""
    options: Names
    releases: Annotated[tuple[_Row, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Release:
    """One release, with all its options by name."""

    version: str
    sha256: str
    uploaded: str
    options: Names

    @property
    def order(self) -> Version:
        return parse_version(self.version)

    def nearest(self, option: str) -> str:
        """The option whose name is most like that one; "": none is."""
        near = difflib.get_close_matches(option, sorted(self.options), n=1)
        return near[0] if near else ""


def releases() -> tuple[Release, ...]:
    """Those that may be built, newest first."""
    table = load("releases.yaml", _Releases)
    return tuple(
        Release(
            version=row.version,
            sha256=row.sha256,
            uploaded=row.uploaded,
            options=(table.options | row.has) - row.lacks,
        )
        for row in table.releases[:MOST]
    )


def release(version: str) -> Release | None:
    """The release of that version; None: nothing is known of it."""
    return next((one for one in releases() if one.version == version), None)


def as_released(version: str) -> str:
    """A version as packages and archives are named by it (PEP 440): 0.3.36 of 0.3.036.

    Raises ValueError.
    """
    from packaging.version import Version as Canonical

    return str(Canonical(version))


def outdated(version: str) -> bool:
    """Whether it is older than all of them."""
    return parse_version(version) < releases()[-1].order


def having(option: str) -> tuple[str, ...]:
    """Versions that have that option, newest first."""
    return tuple(one.version for one in releases() if option in one.options)


def common_options() -> Names:
    """The options that a row names only where it lacks them."""
    return load("releases.yaml", _Releases).options
