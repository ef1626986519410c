"""The lines of the fleet: each GPU with its verdict, its history and its evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from llamafleet.history import comparable
from llamafleet.history.bands import Bands, roofline
from llamafleet.history.html import plot
from llamafleet.history.html.lines import line_of
from llamafleet.history.html.view import WORST_FIRST, GpuView, Material
from llamafleet.history.outliers import Outlier, find_outliers
from llamafleet.history.record import Record, Test
from llamafleet.history.series import GpuKey, Series, series
from llamafleet.history.store import Row
from llamafleet.history.words import beside
from llamafleet.protocol.result import Check, Result


class _Place(NamedTuple):
    """A line of the fleet's table, before its history is known."""

    key: GpuKey
    host: str
    name: str
    verdict: str
    row: Row | None
    checks: tuple[Check, ...]


def gpus_of(material: Material, bands: Bands) -> tuple[GpuView, ...]:
    by_gpu: dict[GpuKey, list[Series]] = defaultdict(list)
    for one in series(material.records):
        by_gpu[one.gpu].append(one)
    slow = _slow(_recent(material))
    places = [place for row in material.rows for place in _places(row, material.results)]
    told = {place.key for place in places}
    places += [_gone(key, some) for key, some in by_gpu.items() if key not in told]
    places.sort(
        key=lambda one: (
            WORST_FIRST.index(one.verdict),
            not slow.get(one.key),
            one.host,
            one.key,
        )
    )
    return tuple(
        _gpu(f"gpu-{number}", place, by_gpu.get(place.key, []), slow.get(place.key, []), bands)
        for number, place in enumerate(places, 1)
    )


def _recent(material: Material) -> list[Record]:
    since = material.judged_since
    return [r for r in material.records if since is None or r.test_time >= since]


def _slow(records: Iterable[Record]) -> Mapping[GpuKey, list[Outlier]]:
    """Those that are slower than their peers, with the tests in which they are."""
    found = defaultdict(list)
    for group in find_outliers(records):
        for one in group.outliers:
            found[GpuKey(one.gpu_uuid, "" if one.gpu_uuid else one.host, 1)].append(one)
    return found


def _places(row: Row, results: Mapping[str, Result]) -> list[_Place]:
    """The host's GPUs; where several were measured together, or it has none, a line for that."""
    result = results.get(row.host)
    checks = {gpu.uuid: gpu.checks for gpu in result.gpus} if result else {}
    own = result.checks if result else ()
    found = [
        _Place(
            key=GpuKey(gpu.uuid, "", 1),
            host=row.host,
            name=gpu.name,
            verdict=gpu.verdict,
            row=row,
            checks=checks.get(gpu.uuid, ()) + (own if len(row.gpus) == 1 else ()),
        )
        for gpu in row.gpus
    ]
    if len(found) == 1:
        return found
    name = f"all {len(found)} GPUs together" if found else row.gpu or "no GPU"
    together = _Place(GpuKey("", row.host, len(found)), row.host, name, row.verdict, row, own)
    return [*found, together]


def _gone(key: GpuKey, some: list[Series]) -> _Place:
    """Of a GPU that has a history and that no host's newest row speaks of."""
    last = some[0].last
    name = last.gpu_info or ("CPU" if not last.gpus else "GPU")
    return _Place(key, last.host, name, "", None, ())


def _gpu(id: str, place: _Place, some: list[Series], slow: list[Outlier], bands: Bands) -> GpuView:
    newest: dict[Test, Record] = {}
    for one in some:
        newest.setdefault(one.last.test, one.last)
    pp, tg = newest.get("pp"), newest.get("tg")
    last = pp or tg
    found = roofline(tg, bands) if tg else None
    row = place.row
    main = next((one for one in some if one.last.test == "tg"), None)
    free = [r.median_ts for r in main.records if comparable.is_baseline(r)] if main else []
    return GpuView(
        id=id,
        host=place.host,
        name=place.name,
        uuid=place.key.uuid,
        verdict=place.verdict,
        driver=(row.driver if row else "") or (last.driver if last else ""),
        toolkit=(row.toolkit if row else "") or (last.toolkit if last else ""),
        build=(row.build if row else "") or (last.fingerprint if last else ""),
        pp=pp.median_ts if pp else None,
        tg=tg.median_ts if tg else None,
        busy=bool(last and last.busy),
        series=tuple(line_of(f"{id}-{n}", one) for n, one in enumerate(some, 1)),
        checks=place.checks,
        slow=tuple(slow),
        roofline=found.share if found and found.answer != "not comparable" else None,
        bands=tuple(line for one in (pp, tg) if one for line in beside([one], bands)),
        spark=plot.sparkline(free[-30:]),
        single=place.key.gpus == 1,
    )
