"""Builds of nvcc that are known to make wrong code: miscompiles.yaml."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from llamafleet.tables.rows import Origin, Row, load

Build = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
Capability = Annotated[str, Field(pattern=r"^\d+\.\d$")]
Text = Annotated[str, Field(min_length=1)]


class _Miscompile(Row):
    """One fault, as `protocol.miscompiles` judges by it."""

    releases: Annotated[dict[Build, Build], Field(min_length=1)]
    capabilities: Annotated[tuple[Capability, ...], Field(min_length=1)]
    types: Annotated[tuple[Text, ...], Field(min_length=1)]
    what: Text
    good: Text
    report: Text
    """Where to read about it."""
    source: Origin


class _Miscompiles(Row):
    miscompiles: tuple[_Miscompile, ...]


def rows() -> list[dict[str, Any]]:
    """As plain data: what the zipapp carries and `protocol.miscompiles` reads."""
    table = load("miscompiles.yaml", _Miscompiles).miscompiles
    return [row.model_dump(mode="json") for row in table]
