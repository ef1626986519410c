"""Records of one GPU that may stand on one line: the same test of the same model, in time's order;
and what changed between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from llamafleet.history import comparable
from llamafleet.history.record import Record


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
    records: tuple[Record, ...]

    @property
    def last(self) -> Record:
        return self.records[-1]


def gpu_key(record: Record) -> GpuKey:
    """Of whom the record is; a GPU that moved to another host is the same GPU."""
    if record.gpu_uuid:
        return GpuKey(record.gpu_uuid, "", 1)
    return GpuKey("", record.host, record.gpus)


def series(records: Iterable[Record]) -> tuple[Series, ...]:
    """All of them; those measured last come first, of these pp before tg."""
    found: dict[tuple[GpuKey, object], list[Record]] = defaultdict(list)
    for record in records:
        found[gpu_key(record), comparable.key(record, comparable.MEASURED)].append(record)
    made = [
        Series(gpu, tuple(sorted(some, key=lambda one: one.test_time)))
        for (gpu, _), some in found.items()
    ]
    return tuple(sorted(made, key=lambda one: (-one.last.test_time.timestamp(), one.last.test)))


def changes(records: tuple[Record, ...]) -> tuple[Change, ...]:
    """Where driver, toolkit, build or power limit are not what was told last; a record that does
    not tell changes nothing."""
    found = []
    last: dict[str, str] = {}
    for at, record in enumerate(records):
        told = {name: value for name, value in _traits(record).items() if value}
        pairs = [(name, last.get(name), value) for name, value in told.items()]
        if what := tuple(
            f"{name} {old} -> {new}" for name, old, new in pairs if old and old != new
        ):
            found.append(Change(at, what))
        last |= told
    return tuple(found)


def _traits(record: Record) -> dict[str, str]:
    """By what may change along a line; empty: not told."""
    limit = comparable.POWER.of(record)
    return {
        "driver": record.driver,
        "toolkit": toolkit(record),
        "llama-cpp-python": record.llama_cpp_python,
        "build": comparable.build(record)[:8],
        comparable.POWER.name: str(limit or ""),
    }


def toolkit(record: Record) -> str:
    """nvcc's own build, where it is told."""
    return record.nvcc or record.toolkit


def around(
    records: tuple[Record, ...], found: Sequence[Change], at: int
) -> tuple[list[Record], list[Record]]:
    """The records between the change at `at` and the one before it, and between it and the next
    one of `found`, all changes; what is no baseline is in neither."""
    edges = [0, *(one.at for one in found), len(records)]
    place = edges.index(at, 1)
    before, after = records[edges[place - 1] : at], records[at : edges[place + 1]]
    a, b = ([r for r in side if comparable.is_baseline(r)] for side in (before, after))
    return a, b


def middle(records: Iterable[Record]) -> float | None:
    """Median of their medians; None: there are none."""
    figures = [record.median_ts for record in records]
    return median(figures) if figures else None
