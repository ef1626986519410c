"""What GPUs are expected to reach."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llamafleet.tables.rows import Origin, Row, load

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class ReferenceRow(Row):
    """What one model of GPU reached."""

    gpu: str
    gib: int | None = None
    """Of its memory, where there are several; None: it has one."""
    test: Literal["pp512", "tg128"]
    ts: Positive
    spread: Positive
    flash_attention: bool | None
    build: str
    source: Origin


class BandwidthRow(Row):
    gpu: str
    gib: int | None = None
    gb_s: Positive
    source: Origin


class Low(Row):
    """Shares of a reference."""

    measured: Share
    reported: Share


class ClaimsRow(Row):
    """Of the guide; both ends of a range."""

    gpu: str
    tokens_per_s: tuple[Positive, Positive]
    memory_gb: tuple[Positive, Positive]
    utilisation: Positive
    """Per cent, at least."""
    load_s: tuple[Positive, Positive]
    source: Origin


class BandTable(Row):
    sources: tuple[Origin, ...]
    low: Low
    roofline_low: Share
    models: tuple[str, ...]
    references: tuple[ReferenceRow, ...]
    bandwidths: tuple[BandwidthRow, ...]
    claims: ClaimsRow


def bands() -> BandTable:
    return load("bands.yaml", BandTable)
