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
from llamafleet.protocol.conditions import is_capped

Answer = Literal["within", "above", "below", "not comparable"]
Met = Literal["met", "not met", "not applicable"]
Tier = Literal["measured here", "reported", "recalled"]

SPREADS = 2.0
"""Above a reference by more of its spreads, and by ABOVE: said, as it is no mistake."""
ABOVE = 1.05
ROUNDED_GIB = 0.6
"""What is sold as 12 GB is 11.99, as 96 GB 95.6."""
LARGE = 1e9
"""Bytes of weights from which reading them is what generation takes; below it is launching."""
LAYERS = 33
"""Of the references' model, the output's with them."""
USUAL: dict[str, tuple[tuple[object, ...], ...]] = {
    "KV type": (("", "f16"), ("", "f16")),
    "batch": ((None, 2048), (None, 512)),
}
"""What llama-bench takes where it is told nothing, as of the references; or not told."""
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
        untold = "" if record.power_limit_w else f"; its power limit: {comparable.UNTOLD}"
        why = f"expected at least {low:.0%} of it{untold}"
        return Band("below", reference, trusted, ratio, why)
    above = ratio > ABOVE and record.median_ts > reference.ts + SPREADS * reference.spread
    return Band("above" if above else "within", reference, trusted, ratio)


def _unlike(record: Record, reference: Reference) -> Iterator[str]:
    yield from _flaw(record)
    if record.flash_attn != reference.flash_attention:
        own, other = map(_attention, (record.flash_attn, reference.flash_attention))
        yield f"flash attention: {own}, the reference {other}"
    limit, made = record.power_limit_w, record.power_default_w
    if limit and made and is_capped(limit, made):
        yield f"the power limit is {limit:g} W, the default {made:g} W"
    for name, told in (("KV type", (record.type_k, record.type_v)), ("batch", _batch(record))):
        if any(one not in usual for one, usual in zip(told, USUAL[name], strict=True)):
            yield f"{name}: {comparable.said(told)}, the reference as usual"
    yield from _offload(record, LAYERS)


def _batch(record: Record) -> tuple[int | None, int | None]:
    return record.n_batch, record.n_ubatch


def _offload(record: Record, layers: int) -> Iterator[str]:
    """Whether anything but the GPU's own CUDA was at work."""
    told = record.n_gpu_layers
    if told is not None and 0 <= told < layers:
        yield f"n_gpu_layers: {told}, so the CPU may have had a part of it"
    if (odd := comparable.options(record)) != comparable.AS_USUAL:
        yield f"llama-bench's options: {odd}"


def _flaw(record: Record) -> Iterator[str]:
    if why := comparable.flaw(record):
        yield f"the figure is no baseline: {why}"


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
    share = record.median_ts / most
    if why := next(_unread(record, most, share, bands), ""):
        return Roofline(share, most, row, "not comparable", why)
    if share < bands.roofline_low:
        return Roofline(share, most, row, "below", f"expected {bands.roofline_low:.0%} or more")
    return Roofline(share, most, row, "within")


def _unread(record: Record, most: float, share: float, bands: Bands) -> Iterator[str]:
    """Why reading all weights from the GPU's memory is not what the figure tells of."""
    low = share < bands.roofline_low
    yield from _flaw(record)
    if (record.model_size or 0) < LARGE:
        yield "so small a model is launched, not read"
    if share > 1:
        yield "not all weights are read for a token, as in a mixture of experts"
    # How many layers the model has is not known: what is in place is not doubted.
    yield from _offload(record, comparable.ALL_LAYERS if low else 0)
    if low and record.n_depth:
        yield f"at a depth of {record.n_depth} tokens the KV cache is read as well"
    if low and most > comparable.HIGH["tg"]:
        yield "where so many are allowed it is the launching of kernels that is measured"


# -- the guide's claims ----------------------------------------------------------------------------


def claims(record: Record, bands: Bands) -> tuple[Claim, ...]:
    """Of one figure of generation: each promise met, not met, or why it does not apply."""
    told = bands.claims
    other = ""
    if comparable.card(record).lower() != told.gpu.lower():
        other = f"it speaks of the {told.gpu}"
    elif not comparable.is_baseline(record):
        other = "the GPU was not free and healthy"
    else:
        other = next(_offload(record, LAYERS), "")
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
        size = f"{record.model_size / GB:.1f} GB" if record.model_size else "an untold size"
        why = f"it depends on the model: this one has {size} of weights"
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
