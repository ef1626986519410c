"""Comparisons, slow GPUs and bands as lines of text; what hosts said is printable in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from llamafleet.history import comparable
from llamafleet.history.bands import Band, Bands, Roofline, band, claims, roofline, tier
from llamafleet.history.comparison import ENOUGH, Comparison, Side
from llamafleet.history.lastupdate import Updated
from llamafleet.history.outliers import LEAST, PEERS, Group, Outlier, z_limit
from llamafleet.history.record import Record
from llamafleet.history.table import short
from llamafleet.terminal import printable

WARNING = "WARN"
WIDTH = 100
"""Columns."""


def _fitted(lines: Iterable[str]) -> Iterator[str]:
    """Printable, and what is longer than a line goes on below it, further in."""
    for line in lines:
        told = printable(line)
        indent = " " * (len(told) - len(told.lstrip()) + 8)
        yield from wrap(told, WIDTH, subsequent_indent=indent) or [""]


def of_comparisons(found: Sequence[Comparison]) -> Iterator[str]:
    """One headline for each model of GPU, below it a line or two for each test."""
    by_title: dict[str, list[Comparison]] = {}
    for one in found:
        by_title.setdefault(one.title, []).append(one)
    for title, several in by_title.items():
        yield from _fitted([title])
        for one in sorted(several, key=lambda one: one.kind):
            yield from _fitted(_of_comparison(one))


def _of_comparison(one: Comparison) -> Iterator[str]:
    told = f"  {one.test:<6} {_rates(one)}"
    if one.ratio is not None:
        told += f"  {difference(one)}"
    loud = one.answer in ("slower", "faster")
    yield f"{told}  {one.answer.upper() if loud else one.answer}"
    yield f"{'':<9}{_counts(one)}"
    if one.answer == "too few runs":
        yield f"{'':<9}expected {ENOUGH}"
    for why in one.why:
        yield f"{'':<9}{why}"


def difference(one: Comparison) -> str:
    """As "-3.9 % (-4.1 to -3.8)", in brackets the interval of 95 % confidence; "": not known."""
    if one.ratio is None:
        return ""
    told = f"{_percent(one.ratio)} %"
    if one.low is not None and one.high is not None:
        told += f" ({_percent(one.low)} to {_percent(one.high)})"
    return told


def _percent(ratio: float) -> str:
    """Never as -0.0."""
    return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f}"


def _rates(one: Comparison) -> str:
    return " -> ".join(f"{side.median_ts:,.1f}" if side else "-" for side in (one.a, one.b))


def _counts(one: Comparison) -> str:
    sides = [_side(name, side) for name, side in (("A", one.a), ("B", one.b))]
    left = [f"{count} {reason}" for reason, count in one.left_out.items()]
    return ", ".join(sides) + (f"; left out: {', '.join(left)}" if left else "")


def _side(name: str, side: Side | None) -> str:
    if side is None:
        return f"{name}: none"
    gpus = "the CPU" if not side.gpus else "1 GPU" if side.gpus == 1 else f"{side.gpus} GPUs"
    runs = "run" if side.runs == 1 else "runs"
    return f"{name}: {side.runs} {runs} on {gpus}"


def of_updates(found: Sequence[Updated]) -> Iterator[str]:
    """The newest update first."""
    for one in found:
        since = f"{one.since:%Y-%m-%d %H:%M} UTC"
        yield printable(f"driver {one.before} -> {one.after}, first measured {since}")
        for also in one.also:
            yield from _fitted([f"with it changed the {also}"])
        yield from of_comparisons(one.comparisons)


# -- slow GPUs -------------------------------------------------------------------------------------


def of_groups(found: Sequence[Group]) -> Iterator[str]:
    """Slow GPUs first, then what was judged and what was not."""
    slow = sorted(
        (o for g in found for o in g.outliers), key=lambda o: (o.host, o.gpu_uuid, o.test)
    )
    for outlier in slow:
        yield from _fitted(_of_outlier(outlier))
    for group in found:
        if group.judged:
            slow_ones = len(group.outliers) or "none"
            yield printable(f"{_group(group)}, median {group.median_ts:,.1f} t/s: {slow_ones} slow")
    few = [group for group in found if not group.judged]
    for group in few:
        yield printable(f"{_group(group)}: not judged")
    if few:
        yield f"not judged is what has too few peers: expected {PEERS} free and healthy ones"
        yield "next: llamafleet compare --by gpu A B, or llamafleet bands"


def _group(group: Group) -> str:
    gpus = "GPU" if group.gpus == 1 else "GPUs"
    return (
        f"{group.gpus} {group.card} {gpus}, {group.model}, build {group.build[:8] or '-'}, "
        f"{group.test}"
    )


def _of_outlier(one: Outlier) -> Iterator[str]:
    first, *others = apart(one)
    yield f"SLOW {one.host} {short(one.gpu_uuid)} {first}"
    yield from (f"     {line}" for line in others)


def apart(one: Outlier) -> Iterator[str]:
    """How far a slow GPU is from its peers, by which limits, and why; a line each."""
    yield (
        f"{one.test}: {one.median_ts:,.1f} t/s, {-100 * one.apart:.1f} % below its {one.peers} "
        f"peers' {one.peers_median_ts:,.1f}"
    )
    least = comparable.least(one.kind, one.peers_median_ts, LEAST)
    yield (
        f"z {one.z:.1f}; expected above {z_limit(one.peers):.1f}, or within {least:.0%} of "
        f"their median{'; its newest run is BUSY' if one.busy else ''}"
    )
    yield from (f"likely: {reason}" for reason in one.likely)
    if not one.likely:
        yield "nothing in the records tells why"


# -- bands -----------------------------------------------------------------------------------------


def of_bands(records: Sequence[Record], bands: Bands) -> Iterator[str]:
    """Of each GPU and model: its figures beside what is expected, and the guide's claims."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        key = (*comparable.place(record), comparable.model(record))
        groups.setdefault(key, []).append(record)
    for group in groups.values():
        yield from _fitted(_of_gpu(group, bands))


def _of_gpu(records: Sequence[Record], bands: Bands) -> Iterator[str]:
    one = records[0]
    place = (one.host, short(one.gpu_uuid), comparable.cards(one))
    yield f"{' '.join(filter(None, place))}, {comparable.model(one)}"
    yield from (f"  {line}" for line in beside(records, bands))


def beside(records: Sequence[Record], bands: Bands) -> Iterator[str]:
    """Of one GPU, a line each, however long."""
    for record in records:
        test, rate = comparable.test_name(record), record.median_ts
        yield f"{test} {rate:,.1f} t/s: {_band(record, bands)}"
        if found := roofline(record, bands):
            yield _roofline(found)
        elif record.test == "tg" and record.gpus == 1:
            of = "the model's size" if not record.model_size else "the bandwidth of such a GPU"
            yield f"roofline: {of} is not known"
    for record in records:
        if record.test == "tg" and record.gpus == 1:
            yield from _claims(record, bands)


def _band(record: Record, bands: Bands) -> str:
    found = band(record, bands)
    if found is None:
        return "no figure of such a GPU with this model is known"
    reference = found.reference
    build = f", {reference.build}" if reference.build else ", its build is not told"
    told = (
        f"{_marked(found)}{found.ratio:.0%} of {reference.ts:,.1f} ± {reference.spread:,.1f} "
        f"({found.tier}{build})"
    )
    return told + (f"; {found.why}" if found.why else "")


def _marked(found: Band | Roofline) -> str:
    return f"{WARNING} {found.answer}: " if found.answer == "below" else f"{found.answer}: "


def _roofline(found: Roofline) -> str:
    told = (
        f"roofline: {_marked(found)}{found.share:.0%} of the {found.most_ts:,.1f} t/s that "
        f"{found.bandwidth.gb_s:,g} GB/s allow ({tier(found.bandwidth.source)})"
    )
    return told + (f"; {found.why}" if found.why else "")


def _claims(record: Record, bands: Bands) -> Iterator[str]:
    found = claims(record, bands)
    if len({(one.answer, one.why) for one in found}) == 1 and found[0].why:
        yield f"guide: {found[0].answer}: {found[0].why}"
        return
    for one in found:
        why = f"; {one.why}" if one.why else ""
        yield f"guide: {one.name} {one.claimed}: {one.answer}: {one.found}{why}"
