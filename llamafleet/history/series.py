"""Records of one GPU that may stand on one line: the same test of the same model, in time's order;
and what changed between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from llamafleet.history.record import Record, Test


class Same(NamedTuple):
    """What two figures must share to be compared, beside their GPU's model."""

    test: Test
    tokens: int
    depth: int
    model: str
    flash_attn: bool | None
    gpus: int
    cache: tuple[str, str]
    """Types of keys and values; "": not told."""


class GpuKey(NamedTuple):
    """A GPU by its UUID; where there is none, what works in a host's stead: all of its GPUs
    together, or its CPU."""

    uuid: str
    host: str
    gpus: int


@dataclass(frozen=True)
class Change:
    """Between two records that follow each other."""

    at: int
    """Index of the first record after it."""
    what: tuple[str, ...]
    """As "driver 570.86 -> 580.95"."""


@dataclass(frozen=True)
class Series:
    """Never empty; the oldest record first."""

    gpu: GpuKey
    same: Same
    records: tuple[Record, ...]

    @property
    def last(self) -> Record:
        return self.records[-1]


def gpu_key(record: Record) -> GpuKey:
    """Of whom the record is; a GPU that moved to another host is the same GPU."""
    if record.gpu_uuid:
        return GpuKey(record.gpu_uuid, "", 1)
    return GpuKey("", record.host, record.gpus)


def same(record: Record) -> Same:
    """The settings under which it was measured."""
    return Same(
        test=record.test,
        tokens=record.n_prompt if record.test == "pp" else record.n_gen,
        depth=record.n_depth,
        model=record.model_filename,
        flash_attn=record.flash_attn,
        gpus=record.gpus,
        cache=(record.type_k, record.type_v),
    )


def series(records: Iterable[Record]) -> tuple[Series, ...]:
    """All of them; those measured last come first, of these pp before tg."""
    found: dict[tuple[GpuKey, Same], list[Record]] = defaultdict(list)
    for record in records:
        found[gpu_key(record), same(record)].append(record)
    made = [
        Series(gpu, settings, tuple(sorted(some, key=lambda one: one.test_time)))
        for (gpu, settings), some in found.items()
    ]
    return tuple(sorted(made, key=lambda one: (-one.last.test_time.timestamp(), one.same.test)))


def changes(records: tuple[Record, ...]) -> tuple[Change, ...]:
    """Where driver, toolkit or build are not those of the record before; what is not told in one
    of both has not changed."""
    found = []
    for at in range(1, len(records)):
        if what := _changed(records[at - 1], records[at]):
            found.append(Change(at, what))
    return tuple(found)


def _changed(before: Record, after: Record) -> tuple[str, ...]:
    pairs = (
        ("driver", before.driver, after.driver),
        ("toolkit", _toolkit(before), _toolkit(after)),
        ("llama-cpp-python", before.llama_cpp_python, after.llama_cpp_python),
        ("build", before.fingerprint[:8], after.fingerprint[:8]),
    )
    return tuple(f"{name} {old} -> {new}" for name, old, new in pairs if old and new and old != new)


def _toolkit(record: Record) -> str:
    return record.nvcc or record.toolkit


def around(records: tuple[Record, ...], at: int) -> tuple[list[Record], list[Record]]:
    """The records between the change at `at` and the one before it, and between it and the next
    one; those of a GPU that was not free are in neither."""
    edges = [0, *(one.at for one in changes(records)), len(records)]
    place = edges.index(at, 1)
    before, after = records[edges[place - 1] : at], records[at : edges[place + 1]]
    return [one for one in before if not one.busy], [one for one in after if not one.busy]


def middle(records: Iterable[Record]) -> float | None:
    """Median of their medians; None: there are none."""
    figures = [record.median_ts for record in records]
    return median(figures) if figures else None
