"""What it costs to compile each unit of llama.cpp: unit-costs.yaml."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from llamafleet.tables.rows import Origin, Row, load

Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+\.dir/.*\.\w+$")]


class _Costs(Row):
    """CPU-seconds; only how they compare matters."""

    source: Origin
    units: Annotated[dict[Name, Seconds], Field(min_length=1)]
    families: tuple[tuple[Annotated[str, Field(min_length=1)], Seconds], ...]
    """(pattern of a whole name, seconds) for units that are not named; the first that fits."""


def rows() -> dict[str, Any]:
    """As plain data: what the zipapp carries and `onhost.ninja` reads."""
    return load("unit-costs.yaml", _Costs).model_dump(mode="json", exclude={"source"})
