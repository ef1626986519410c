"""GPUs that are slower than others of their model, with the same build and the same model.

A GPU is its newest runs, by their median; it is judged by the median of its peers and the median of
their distances from that (MAD). It is flagged only where it is apart both as statistics go
(z_limit) and as people feel it (LEAST). Figures of BUSY runs are no peers, but they are judged:
most that makes a GPU slow makes it BUSY.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import NormalDist, median

from llamafleet.history import comparable
from llamafleet.history.comparable import BUILD, CARD, MEASURED
from llamafleet.history.reasons import Slow, reasons
from llamafleet.history.record import Record, Test

LEAST = 0.05
"""Below the peers' median, at least."""
PEERS = 4
"""Free and healthy ones beside the judged GPU, at least."""
NEWEST = 5
"""Runs of a GPU that count: its state now, and no single hiccup."""
AGE = timedelta(days=90)
"""Of runs that count, before the newest of all: a GPU that was replaced is slow no more."""
NARROWEST = 0.005
"""The least spread, as a share of the median, that peers are taken to have: of four H200s of two
hosts it is 0.4 % (2026-11-26), and equal peers would make a trifle infinite."""
MAD_TO_SIGMA = 1 / NormalDist().inv_cdf(0.75)
"""1.4826: so many MADs are a standard deviation of normal figures."""

SAME = (*MEASURED, *CARD, BUILD)
"""Neither the driver nor the power limit: they are reasons."""


def z_limit(peers: int) -> float:
    """Modified z at or below which a GPU is apart from that many peers, PEERS or more.

    The MAD of few peers is often near nothing: of normal figures one in 500 lies beyond -25 of 4
    peers, one in 13,000 beyond -4.2 of 127. So far out, in 2 of 100 healthy fleets some GPU is
    beyond in either test. The curve is fitted to what tests/bench/zlimit.py counted, to 4 %.
    """
    limit: float = -4 - 51 / (peers // 2 * 2 - 2) ** 1.26
    return limit


@dataclass(frozen=True)
class Outlier:
    """One GPU in one test. Rates in tokens per second."""

    host: str
    gpu_uuid: str
    test: str
    kind: Test
    median_ts: float
    runs: int
    peers: int
    peers_median_ts: float
    apart: float
    """As a share of the peers' median; negative: slower."""
    z: float
    """Modified z; at most z_limit(peers)."""
    likely: tuple[str, ...]
    """The likely reasons, the strongest first; empty: nothing in the records tells."""
    busy: bool
    """Its newest run is BUSY: its verdict says so too."""


@dataclass(frozen=True)
class Group:
    """GPUs that are peers in one test."""

    card: str
    model: str
    build: str
    test: str
    gpus: int
    median_ts: float
    outliers: tuple[Outlier, ...] = ()
    judged: bool = True
    """False: there are too few."""


@dataclass(frozen=True)
class _Gpu:
    records: list[Record] = field(default_factory=list)
    """The newest, oldest first."""
    free: list[Record] = field(default_factory=list)
    """The newest that are baselines."""

    def add(self, record: Record) -> None:
        """All others are dropped as they come: a history may be longer than the memory."""
        both = (self.records, self.free)
        for kept in both if comparable.is_baseline(record) else both[:1]:
            insort(kept, record, key=lambda one: one.test_time)
            del kept[:-NEWEST]

    @property
    def newest(self) -> Record:
        return self.records[-1]

    @property
    def value(self) -> float:
        return median(r.median_ts for r in self.records)

    @property
    def as_peer(self) -> float:
        return median(r.median_ts for r in self.free)


def find_outliers(records: Iterable[Record], age: timedelta | None = None) -> list[Group]:
    """Every group of peers, with those of its GPUs that are slow.

    `age`: of what counts, before the newest of all, which may be of a host whose clock is wrong;
    None: all count.
    """
    groups = _groups(_recent(records, age))
    slow = {key: _slow(groups[key], places) for key, places in _current(groups).items()}
    found = [_group(key, groups[key], slow) for key in slow]
    return sorted(found, key=lambda one: (one.card, one.model, one.build, one.test))


def _recent(records: Iterable[Record], age: timedelta | None) -> Iterable[Record]:
    """As they come; with an `age`, all at once."""
    if age is None:
        return records
    ordered = sorted(records, key=lambda one: one.test_time)
    return [one for one in ordered if ordered[-1].test_time - one.test_time <= age]


Key = tuple[object, ...]
Place = tuple[object, ...]


def _groups(records: Iterable[Record]) -> dict[Key, dict[Place, _Gpu]]:
    """By what makes GPUs peers; single GPUs alone."""
    found: dict[Key, dict[Place, _Gpu]] = {}
    for r in records:
        if r.gpus == 1 and comparable.has_figure(r):
            group = found.setdefault((r.test, *comparable.key(r, SAME)), {})
            # One that moved to another host is no peer of itself.
            place = (r.gpu_uuid,) if r.gpu_uuid else comparable.place(r)
            group.setdefault(place, _Gpu()).add(r)
    return found


def _current(groups: dict[Key, dict[Place, _Gpu]]) -> dict[Key, set[Place]]:
    """Which GPUs are judged in which group: each where it was measured last, as it may have been
    slow under the build before and be repaired; where that has too few peers, the one before."""
    several: dict[tuple[Place, Key], list[Key]] = {}
    peers: dict[Key, int] = {}
    for key, gpus in groups.items():
        peers[key] = sum(bool(one.free) for one in gpus.values())
        for place in gpus:
            several.setdefault((place, key[: 1 + len(MEASURED)]), []).append(key)
    found: dict[Key, set[Place]] = {}
    for (place, _), keys in several.items():
        keys.sort(key=lambda one: groups[one][place].newest.test_time, reverse=True)
        enough = (one for one in keys if peers[one] - bool(groups[one][place].free) >= PEERS)
        found.setdefault(next(enough, keys[0]), set()).add(place)
    return found


def _peers(gpus: dict[Place, _Gpu], place: Place) -> tuple[_Gpu, ...]:
    return tuple(one for other, one in gpus.items() if other != place and one.free)


@dataclass(frozen=True)
class _Judged:
    """Of one GPU against its peers."""

    peers: tuple[_Gpu, ...]
    middle: float
    z: float
    apart: float

    @property
    def flagged(self) -> bool:
        kind = self.peers[0].newest.test
        return self.z <= z_limit(len(self.peers)) and self.apart <= -comparable.least(
            kind, self.middle, LEAST
        )


def _slow(gpus: dict[Place, _Gpu], places: Iterable[Place]) -> dict[Place, _Judged]:
    """How each of `places` stands; empty where there are too few peers."""
    found = {place: _peers(gpus, place) for place in gpus if place in places}
    return {p: _judged(gpus[p], peers) for p, peers in found.items() if len(peers) >= PEERS}


def _judged(gpu: _Gpu, peers: tuple[_Gpu, ...]) -> _Judged:
    values = [peer.as_peer for peer in peers]
    middle = median(values)
    sigma = MAD_TO_SIGMA * median(abs(value - middle) for value in values)
    sigma = max(sigma, NARROWEST * middle)
    return _Judged(peers, middle, (gpu.value - middle) / sigma, gpu.value / middle - 1)


def _group(key: Key, gpus: dict[Place, _Gpu], slow: dict[Key, dict[Place, _Judged]]) -> Group:
    one = next(iter(gpus.values())).newest
    judged = slow[key]
    return Group(
        card=comparable.card(one),
        model=comparable.model(one),
        build=one.fingerprint,
        test=comparable.test_name(one),
        gpus=len(gpus),
        median_ts=median(gpu.value for gpu in gpus.values()),
        outliers=tuple(
            _outlier(gpus[place], found, _by_test(place, key, slow))
            for place, found in judged.items()
            if found.flagged
        ),
        judged=bool(judged),
    )


def _by_test(place: Place, key: Key, slow: dict[Key, dict[Place, _Judged]]) -> Slow:
    """How far below its peers this GPU is, in each test of the same model and build."""
    found: Slow = {}
    for other, judged in slow.items():
        if other[2:] == key[2:] and (one := judged.get(place)):
            kind = one.peers[0].newest.test
            found[kind] = max(found.get(kind, -one.apart), -one.apart)
    return found


def _outlier(gpu: _Gpu, found: _Judged, slow: Slow) -> Outlier:
    newest, likely = gpu.newest, _typical(gpu)
    return Outlier(
        host=newest.host,
        gpu_uuid=newest.gpu_uuid,
        test=comparable.test_name(newest),
        kind=newest.test,
        median_ts=gpu.value,
        runs=len(gpu.records),
        peers=len(found.peers),
        peers_median_ts=found.middle,
        apart=found.apart,
        z=found.z,
        likely=reasons(likely, [peer.free[-1] for peer in found.peers], slow),
        busy=bool(newest.busy),
    )


def _typical(gpu: _Gpu) -> Record:
    """The newest run that is no faster than the median: the one whose conditions explain it."""
    return [r for r in gpu.records if r.median_ts <= gpu.value][-1]
