"""Records of one GPU that may stand on one line: the same test of the same model, in time's order;
and what changed between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
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
        ("toolkit", toolkit(before), toolkit(after)),
        ("llama-cpp-python", before.llama_cpp_python, after.llama_cpp_python),
        ("build", before.fingerprint[:8], after.fingerprint[:8]),
    )
    return tuple(f"{name} {old} -> {new}" for name, old, new in pairs if old and new and old != new)


def toolkit(record: Record) -> str:
    """nvcc's own build, where it is told."""
    return record.nvcc or record.toolkit


def around(records: tuple[Record, ...], at: int) -> tuple[list[Record], list[Record]]:
    """The records between the change at `at` and the one before it, and between it and the next
    one; what is no baseline is in neither."""
    edges = [0, *(one.at for one in changes(records)), len(records)]
    place = edges.index(at, 1)
    before, after = records[edges[place - 1] : at], records[at : edges[place + 1]]
    a, b = ([r for r in side if comparable.is_baseline(r)] for side in (before, after))
    return a, b


def middle(records: Iterable[Record]) -> float | None:
    """Median of their medians; None: there are none."""
    figures = [record.median_ts for record in records]
    return median(figures) if figures else None
