"""The lines of the fleet: each GPU with its verdict, its history and its evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import NamedTuple

from markupsafe import Markup

from llamafleet.history import comparable
from llamafleet.history.bands import Bands, roofline
from llamafleet.history.html import plot
from llamafleet.history.html.lines import line_of
from llamafleet.history.html.view import ORDER, WRITTEN, GpuView, Material
from llamafleet.history.outliers import Outlier, find_outliers
from llamafleet.history.record import Record, Test
from llamafleet.history.series import GpuKey, Series, series
from llamafleet.history.store import Row
from llamafleet.history.words import beside
from llamafleet.protocol.result import CPU_ONLY, Check, Result

TREND = 30
"""Figures, the newest ones."""


class _Place(NamedTuple):
    """A line of the fleet's table, before its history is known."""

    key: GpuKey
    host: str
    name: str
    verdict: str
    row: Row | None
    checks: tuple[Check, ...]
    proven: datetime | None


def gpus_of(material: Material, bands: Bands) -> tuple[GpuView, ...]:
    by_gpu: dict[GpuKey, list[Series]] = defaultdict(list)
    for one in series(material.records):
        by_gpu[one.gpu].append(one)
    slow = _slow(material.records)
    places = [place for row in material.rows for place in _places(row, material.results)]
    told = {place.key for place in places}
    places += [_gone(key, some) for key, some in by_gpu.items() if key not in told]
    places.sort(
        key=lambda one: (
            ORDER.index(one.verdict),
            not slow.get(one.key),
            one.host,
            one.key,
        )
    )
    return tuple(
        _gpu(number, place, by_gpu.get(place.key, []), slow.get(place.key, []), bands)
        for number, place in enumerate(places, 1)
    )


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
    proven = _time(result.finished) if result else None
    found = [
        _Place(
            key=GpuKey(gpu.uuid, "", 1),
            host=row.host,
            name=comparable.plain(gpu.name),
            verdict=gpu.verdict,
            row=row,
            checks=checks.get(gpu.uuid, ()) + (own if len(row.gpus) == 1 else ()),
            proven=proven,
        )
        for gpu in row.gpus
    ]
    if len(found) == 1:
        return found
    unknown = "no GPU" if row.verdict == CPU_ONLY else "GPUs not known"
    name = f"{len(found)} GPUs together" if found else comparable.plain(row.gpu) or unknown
    key = GpuKey("", row.host, len(found))
    return [*found, _Place(key, row.host, name, row.verdict, row, own, proven)]


def _time(seconds: float) -> datetime | None:
    """None: no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return None


def _gone(key: GpuKey, some: list[Series]) -> _Place:
    """Of a GPU that has a history and that no host's newest row speaks of."""
    last = some[0].last
    name = comparable.card(last) or ("CPU" if not last.gpus else "GPU")
    return _Place(key, last.host, name, "", None, (), None)


def _gpu(
    number: int, place: _Place, some: list[Series], slow: list[Outlier], bands: Bands
) -> GpuView:
    id = f"gpu-{number}"
    newest: dict[Test, Record] = {}
    for one in some:
        newest.setdefault(one.last.test, one.last)
    pp, tg = newest.get("pp"), newest.get("tg")
    last = pp or tg
    found = roofline(tg, bands) if tg else None
    row = place.row
    return GpuView(
        id=id,
        key=place.key,
        host=place.host,
        name=place.name,
        verdict=place.verdict,
        driver=(row.driver if row else "") or (last.driver if last else ""),
        toolkit=(row.toolkit if row else "") or (last.toolkit if last else ""),
        build=(row.build if row else "") or (last.fingerprint if last else ""),
        pp=pp,
        tg=tg,
        series=tuple(line_of(f"{id}-{n}", one) for n, one in enumerate(some, 1)),
        checks=place.checks,
        proven=place.proven,
        slow=tuple(slow),
        roofline=found.share if found and found.answer != "not comparable" else None,
        bands=tuple(line for one in (pp, tg) if one for line in beside([one], bands)),
        spark=_trend(some),
        written=number <= WRITTEN,
    )


def _trend(some: list[Series]) -> Markup:
    """Of the newest generation."""
    main = next((one for one in some if one.last.test == "tg"), None)
    free = [r.median_ts for r in main.records if comparable.is_baseline(r)] if main else []
    return plot.sparkline(free[-TREND:])
