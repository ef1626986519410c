"""What a GPU reached beside what GPUs of its kind are expected to reach.

A band warns; no verdict is made of it. What the figures depend on must be the same, or it is said
what is not: the GPU and its form factor, flash attention, the power limit. The build is not, for no
two figures have the same: it is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llamafleet.history import comparable
from llamafleet.history.record import Record

Answer = Literal["within", "above", "below", "not comparable"]
Met = Literal["met", "not met", "not applicable"]
Tier = Literal["measured here", "reported", "recalled"]

CAPPED = 0.99
"""Of the default power limit, below which a figure is that of a capped card."""
SPREADS = 2.0
"""Above a reference by more of its spreads, and by ABOVE: said, as it is no mistake."""
ABOVE = 1.05
ROUNDED_GIB = 0.6
"""What is sold as 12 GB is 11.99, as 96 GB 95.6."""
LARGE = 1e9
"""Bytes of weights from which reading them is what generation takes; below it is launching."""
GB = 1e9
MIB = float(2**20)


@dataclass(frozen=True)
class Reference:
    """As tables/bands.py has it."""

    gpu: str
    gib: int | None
    test: str
    ts: float
    spread: float
    flash_attention: bool | None
    build: str
    source: str


@dataclass(frozen=True)
class Bandwidth:
    gpu: str
    gib: int | None
    gb_s: float
    source: str


@dataclass(frozen=True)
class Claims:
    """What the guide promises of one model of GPU."""

    gpu: str
    tokens_per_s: tuple[float, float]
    memory_gb: tuple[float, float]
    utilisation: float
    load_s: tuple[float, float]
    source: str


@dataclass(frozen=True)
class Bands:
    """All that is expected."""

    references: tuple[Reference, ...]
    bandwidths: tuple[Bandwidth, ...]
    models: frozenset[str]
    """Names of the model of the references, in small letters."""
    low_measured: float
    low_reported: float
    roofline_low: float
    claims: Claims


@dataclass(frozen=True)
class Band:
    """A figure beside one reference. `ratio`: of the figure to it, told even if not comparable."""

    answer: Answer
    reference: Reference
    tier: Tier
    ratio: float
    why: str = ""


@dataclass(frozen=True)
class Roofline:
    """Generation by the memory's bandwidth: each token reads all weights once."""

    share: float
    most_ts: float
    bandwidth: Bandwidth
    answer: Answer
    why: str = ""


@dataclass(frozen=True)
class Claim:
    """One promise of the guide."""

    name: str
    claimed: str
    found: str
    answer: Met
    why: str = ""


def tier(source: str) -> Tier:
    """How far a figure is to be trusted, by how its source begins."""
    if source.startswith("measured"):
        return "measured here"
    return "reported" if source.startswith("looked up") else "recalled"


def band(record: Record, bands: Bands) -> Band | None:
    """None: nothing is known of that GPU with that model and test."""
    known = {record.model_filename.lower(), record.model_type.lower()} & bands.models
    if not known or record.gpus != 1:
        return None
    named = (one for one in bands.references if one.test == comparable.test_name(record))
    found = next((one for one in named if _is(one, record)), None)
    return _against(record, found, bands) if found else None


def _is(row: Reference | Bandwidth, record: Record) -> bool:
    if row.gpu.lower() != comparable.card(record).lower():
        return False
    return row.gib is None or abs((record.vram_mib or 0) / 1024 - row.gib) <= ROUNDED_GIB


def _against(record: Record, reference: Reference, bands: Bands) -> Band:
    trusted = tier(reference.source)
    ratio = record.median_ts / reference.ts
    if why := "; ".join(_unlike(record, reference)):
        return Band("not comparable", reference, trusted, ratio, why)
    low = bands.low_measured if trusted == "measured here" else bands.low_reported
    if ratio < low:
        return Band("below", reference, trusted, ratio, f"expected at least {low:.0%} of it")
    above = ratio > ABOVE and record.median_ts > reference.ts + SPREADS * reference.spread
    return Band("above" if above else "within", reference, trusted, ratio)


def _unlike(record: Record, reference: Reference) -> Iterator[str]:
    if not comparable.is_baseline(record):
        yield f"the figure is no baseline: {'BUSY' if record.busy else record.verdict}"
    if record.flash_attn != reference.flash_attention:
        own, other = map(_attention, (record.flash_attn, reference.flash_attention))
        yield f"flash attention: {own}, the reference {other}"
    limit, made = record.power_limit_w, record.power_default_w
    if limit and made and limit < CAPPED * made:
        yield f"the power limit is {limit:g} W, the default {made:g} W"


def _attention(told: bool | None) -> str:
    return "as llama.cpp chooses" if told is None else comparable.said(told)


def roofline(record: Record, bands: Bands) -> Roofline | None:
    """None: it is not generation by one GPU, or bandwidth or size are not known.

    The KV cache and what is computed beside are left out, so a share of 1 is not reached.
    """
    rows = (row for row in bands.bandwidths if _is(row, record))
    if record.test != "tg" or record.gpus != 1 or not record.model_size:
        return None
    if (row := next(rows, None)) is None:
        return None
    most = row.gb_s * GB / record.model_size
    share, why = record.median_ts / most, ""
    answer: Answer = "below" if share < bands.roofline_low else "within"
    if not comparable.is_baseline(record):
        why = f"the figure is no baseline: {'BUSY' if record.busy else record.verdict}"
    elif record.model_size < LARGE:
        why = "so small a model is launched, not read"
    elif share > 1:
        why = "not all weights are read for a token, as in a mixture of experts"
    elif answer == "below":
        return Roofline(share, most, row, answer, f"expected {bands.roofline_low:.0%} or more")
    return Roofline(share, most, row, "not comparable" if why else answer, why)


# -- the guide's claims ----------------------------------------------------------------------------


def claims(record: Record, bands: Bands) -> tuple[Claim, ...]:
    """Of one figure of generation: each promise met, not met, or why it does not apply."""
    told = bands.claims
    other = ""
    if comparable.card(record).lower() != told.gpu.lower():
        other = f"it speaks of the {told.gpu}"
    elif not comparable.is_baseline(record):
        other = "the GPU was not free and healthy"
    parts = (_speed, _memory, _utilisation, _load)
    found = tuple(part(record, bands) for part in parts)
    if not other:
        return found
    return tuple(Claim(one.name, one.claimed, one.found, "not applicable", other) for one in found)


def _speed(record: Record, bands: Bands) -> Claim:
    low, high = bands.claims.tokens_per_s
    found = f"{record.median_ts:.1f}"
    roof = roofline(record, bands)
    if record.median_ts >= low:
        more = "more than it promises" if record.median_ts > high else ""
        return Claim("tokens per second", f"{low:g}-{high:g}", found, "met", more)
    if roof and roof.most_ts < low:
        why = f"the memory's bandwidth allows {roof.most_ts:.1f} with a model of this size"
        return Claim("tokens per second", f"{low:g}-{high:g}", found, "not applicable", why)
    return Claim("tokens per second", f"{low:g}-{high:g}", found, "not met")


def _memory(record: Record, bands: Bands) -> Claim:
    low, high = bands.claims.memory_gb
    name, claimed = "GPU memory", f"{low:g}-{high:g} GB"
    if record.peak_vram_mib is None:
        return Claim(name, claimed, comparable.UNTOLD, "not applicable", "not recorded")
    peak = record.peak_vram_mib * MIB / GB
    found = f"{peak:.1f} GB"
    if low <= peak <= high:
        return Claim(name, claimed, found, "met")
    if peak < low:
        size = (record.model_size or 0) / GB
        why = f"it depends on the model: this one has {size:.1f} GB of weights"
        return Claim(name, claimed, found, "not applicable", why)
    return Claim(name, claimed, found, "not met", "it takes more")


def _utilisation(record: Record, bands: Bands) -> Claim:
    least = bands.claims.utilisation
    name, claimed = "GPU utilisation", f"{least:g} % and more"
    if record.utilisation is None:
        return Claim(name, claimed, comparable.UNTOLD, "not applicable", "not recorded")
    found = f"{record.utilisation:.0f} %"
    if record.utilisation >= least:
        return Claim(name, claimed, found, "met")
    if record.model_size and record.model_size < LARGE:
        why = "so small a model is launched, not read"
        return Claim(name, claimed, found, "not applicable", why)
    return Claim(name, claimed, found, "not met")


def _load(record: Record, bands: Bands) -> Claim:
    low, high = bands.claims.load_s
    name, claimed = "load time", f"{low:g}-{high:g} s"
    if record.load_s is None:
        return Claim(name, claimed, comparable.UNTOLD, "not applicable", "not recorded")
    found = f"{record.load_s:.1f} s"
    if record.load_s > high:
        return Claim(name, claimed, found, "not met")
    return Claim(name, claimed, found, "met", "faster than it promises" * (record.load_s < low))


def newest(records: Iterable[Record]) -> Iterator[Record]:
    """The newest record of each GPU, model and test, by host and GPU."""
    found: dict[tuple[object, ...], Record] = {}
    for record in records:
        key = (*comparable.place(record), *comparable.key(record, comparable.MEASURED))
        if key not in found or record.test_time >= found[key].test_time:
            found[key] = record
    yield from sorted(found.values(), key=lambda r: (r.host, r.gpu_uuid, r.test))
