"""Profiles of models: how each is put onto a GPU of 24 GB."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from llamafleet.tables.rows import Origin, Row, load


def _pattern(value: str) -> str:
    try:
        re.compile(value, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return value


class ProfileRow(Row):
    """One row; whether it fits a GPU is for protocol.fit to say."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    match: Annotated[str, AfterValidator(_pattern)]
    n_gpu_layers: Annotated[int, Field(ge=-1)]
    n_ctx: Annotated[int, Field(gt=0)]
    mmap: bool
    mlock: bool
    source: Origin


class _Profiles(Row):
    sources: tuple[Origin, ...]
    profiles: Annotated[tuple[ProfileRow, ...], Field(min_length=1)]


def profiles() -> tuple[ProfileRow, ...]:
    return load("profiles.yaml", _Profiles).profiles


def profile(name: str) -> ProfileRow | None:
    return next((row for row in profiles() if row.name == name), None)


def profile_of(*names: str) -> ProfileRow:
    """The first that matches one of a model's names; the last row matches all."""
    return next(
        row
        for row in profiles()
        if any(re.search(row.match, name, re.IGNORECASE) for name in (*names, ""))
    )
