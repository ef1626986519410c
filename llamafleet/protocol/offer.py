"""What of a model fits beside a reserve, and what else would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llamafleet.protocol.fit import (
    KV_TYPES,
    Count,
    Need,
    Room,
    most_context,
    most_layers,
    n_gpu_layers,
    over,
)
from llamafleet.protocol.serve import KvType, Placement
from llamafleet.protocol.shape import Shape

UNTRAINED_CTX = 4096
"""Tokens, where a model does not state what it was trained for."""


@dataclass(frozen=True)
class Wish:
    """What is asked for; None: the largest that fits."""

    n_ctx: int | None = None
    """Of each request."""
    kv_type: KvType | None = None
    n_gpu_layers: int | None = None


By = Literal["header", "llama.cpp"]
"""Who counted: this code from the file's header, or the build of a host for its own GPUs."""


@dataclass(frozen=True)
class Row:
    """One placement, with what it takes of each GPU."""

    placement: Placement
    needed: tuple[Need, ...]
    missing_mib: int
    """On the GPU that lacks the most; 0 or less: it fits."""


@dataclass(frozen=True)
class Offer:
    asked: Row
    """What was asked for, at its largest."""
    best: Row | None
    """What fits and is nearest to it; None: nothing does."""
    others: tuple[Row, ...]
    """What fits too, each with one thing given up."""


@dataclass(frozen=True)
class Told:
    """All that is said of one model and some GPUs."""

    version: Literal[1]
    shape: Shape
    room: Room
    offer: Offer
    by: By
    note: str = ""
    """Why llama.cpp did not count, where it was asked."""


def wished(shape: Shape, wish: Wish, room: Room) -> Placement:
    """The whole of what is asked for: all layers, and all tokens that the model was trained for."""
    asked = Placement(-1 if wish.n_gpu_layers is None else wish.n_gpu_layers, 1)
    each = wish.n_ctx or shape.context or UNTRAINED_CTX
    return Placement(
        n_gpu_layers(shape, asked), each * max(room.use.parallel, 1), wish.kv_type or KV_TYPES[0]
    )


def offer(asked: Placement, wish: Wish, room: Room, count: Count) -> Offer:
    row = _row(asked, room, count)
    if row.missing_mib <= 0:
        return Offer(row, row, ())
    fitting = tuple(_fitting(asked, wish, room, count))
    return Offer(row, fitting[0] if fitting else None, fitting[1:])


def _fitting(asked: Placement, wish: Wish, room: Room, count: Count) -> Iterator[Row]:
    """Placements that fit, the nearest first: what was not named is given up before what was."""
    kinds = KV_TYPES if wish.kv_type is None else (wish.kv_type,)
    wanted = [replace(asked, kv_type=kind) for kind in kinds]
    shorter = [most_context(count, one, room) for one in wanted]
    fewer = [most_layers(count, one, room) for one in wanted]
    whole = [one for one in shorter if one is not None and one.n_ctx == asked.n_ctx]
    ordered = [*fewer, *shorter] if wish.n_ctx is not None else [*shorter, *fewer]
    for one in dict.fromkeys((*whole, *ordered)):
        if one is not None:
            yield _row(one, room, count)


def _row(placement: Placement, room: Room, count: Count) -> Row:
    needed = count(placement)
    return Row(placement, needed, max(over(needed, room)))
