"""Plots as SVG: text, so that they need no script, print sharply and stay small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from markupsafe import Markup, escape

from llamafleet.history.comparison import Comparison
from llamafleet.terminal import printable

WIDTH, HEIGHT = 480, 190
"""Of a plot's own coordinates; shown at 340 to 620 pixels, so that text stays legible."""
LEFT, RIGHT, TOP, BOTTOM = 70, 10, 24, 26
LEAST_RANGE = 0.10
"""Of the median: an axis that is narrower would blow up noise to drama."""
STACK = 120.0
"""The most height of dots over each other."""
RADII = (4.0, 3.0, 2.0, 1.5, 1.0)
"""Of a dot, the largest that fits."""
COLOURS = 6
"""Of the parts of a bar; the page's style has them."""
LEAST_SCALE = 0.05
"""Of a difference, to either side: so that a trifle looks like one."""
MOST_POINTS = 400
"""More than the plot has room for; of a longer history the newest are drawn."""


class Point(NamedTuple):
    """One figure of a series."""

    time: datetime
    value: float
    busy: bool
    """Not that of a free and healthy GPU."""


class Dot(NamedTuple):
    """One GPU in a distribution."""

    value: float
    label: str
    slow: bool


class Axis(NamedTuple):
    """Linear: `low` stands at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within [low, high], `most` at most; steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)][:most]


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """From below the lowest to above the highest; at least LEAST_RANGE of the median wide."""
    low, high = min(values), max(values)
    least = abs(median(values)) * LEAST_RANGE or 1.0
    room = max(least - (high - low), (high - low) * 0.12) / 2
    return max(0.0, low - room) if low >= 0 else low - room, high + room


class Axes(NamedTuple):
    """Of a history: seconds since 1970 across, tokens per second upwards."""

    across: Axis
    vertical: Axis

    def at(self, point: Point) -> tuple[float, float]:
        return self.across.at(point.time.timestamp()), self.vertical.at(point.value)


def axes(points: Sequence[Point]) -> Axes:
    """For points in time's order, one at least."""
    low, high = value_range([point.value for point in points])
    first, last = points[0].time, points[-1].time
    if first == last:
        first, last = first - timedelta(hours=12), last + timedelta(hours=12)
    across = Axis(first.timestamp(), last.timestamp(), LEFT + 6, WIDTH - RIGHT - 6)
    return Axes(across, Axis(low, high, HEIGHT - BOTTOM, TOP))


def history(points: Sequence[Point], marks: Sequence[tuple[datetime, int]], title: str) -> Markup:
    """Figures over time: a line with dots (the page's style has them), rings for those that are no
    baseline, and a numbered line for each change. `points` in time's order, one at least."""
    frame = axes(points)
    parts = [*_value_ticks(frame.vertical), *_time_ticks(frame.across)]
    parts += _marks(frame.across, marks)
    free = [frame.at(point) for point in points if not point.busy]
    busy = [frame.at(point) for point in points if point.busy]
    if free:
        parts.append(f'<path class="line" d="{_polyline(free)}"/>')
    parts += [f'<circle class="busy" cx="{x:g}" cy="{y:g}" r="3.5"/>' for x, y in busy]
    parts.append('<circle class="cursor" r="5"/>')
    return _svg("".join(parts), HEIGHT, title)


def sparkline(values: Sequence[float]) -> Markup:
    """A trend without axes, 80 by 20; nothing for fewer than two."""
    if len(values) < 2:
        return Markup("")
    low, high = value_range(values)
    across, vertical = Axis(0, len(values) - 1, 2, 78), Axis(low, high, 18, 2)
    places = [(across.at(i), vertical.at(value)) for i, value in enumerate(values)]
    line = _polyline(places, 10)
    return Markup(
        '<svg class="spark" viewBox="0 0 80 20" aria-hidden="true">'
        f'<path class="line" d="{line}"/></svg>'
    )


def difference(found: Comparison, scale: float) -> Markup:
    """A bar from end to end of its interval and a dot, 160 by 16, with no difference in the middle
    and `scale`, a share, or LEAST_SCALE on either side; nothing where it is not known."""
    if found.ratio is None:
        return Markup("")
    widest = max(scale, LEAST_SCALE)
    across = Axis(-widest, widest, 5, 155)
    low, at, high = (
        across.at((ratio if ratio is not None else found.ratio) - 1)
        for ratio in (found.low, found.ratio, found.high)
    )
    kind = found.answer if found.answer in ("slower", "faster") else "same"
    return Markup(
        '<svg class="difference" viewBox="0 0 160 16" aria-hidden="true">'
        f'<path class="grid" d="M0 8H160M80 1v14"/><g class="{kind}">'
        f'<path d="M{low:g} 5.5H{high:g}v5H{low:g}z"/><circle cx="{at:g}" cy="8" r="4"/></g></svg>'
    )


def distribution(dots: Sequence[Dot], title: str) -> Markup:
    """A dot for each GPU along one axis, with the median; slow ones are diamonds with a name."""
    low, high = value_range([dot.value for dot in dots])
    across = Axis(low, high, 14, WIDTH - 14)
    middle = across.at(median(dot.value for dot in dots))
    radius, placed = _fitted([(across.at(dot.value), dot) for dot in dots])
    rows = max(row for _, row, _ in placed) + 1
    step = min(2 * radius + 1, STACK / rows)
    named = [dot for dot in dots if dot.slow]
    base = 30 + 14 * len(named) + step * rows
    parts = [f'<path class="middle" d="M{middle:g} 16V{base:g}"/>']
    parts.append(f'<text class="label" x="{_inside(middle)}" y="12">median</text>')
    for tick in ticks(low, high, 5):
        x = across.at(tick)
        parts.append(f'<path class="grid" d="M{x:g} {base:g}v4"/>')
        parts.append(f'<text x="{_inside(x)}" y="{base + 17:g}" class="mid">{_number(tick)}</text>')
    parts.append(f'<path class="grid" d="M8 {base:g}H{WIDTH - 8}"/>')
    for x, row, dot in placed:
        parts.append(_dot(x, base - 6 - row * step, radius, dot))
    for number, dot in enumerate(sorted(named, key=lambda one: one.value)):
        y = 28 + 14 * number
        parts.append(f'<text class="slow" x="8" y="{y}">◆ {_text(dot.label)}</text>')
    return _svg("".join(parts), round(base + 24), title)


def _dot(x: float, y: float, radius: float, dot: Dot) -> str:
    told = f"<title>{_text(dot.label)}: {_number(dot.value)} t/s</title>"
    if dot.slow:
        return f'<path class="slow" d="M{x:g} {y - 6:g}l6 6-6 6-6-6z">{told}</path>'
    return f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="{radius:g}">{told}</circle>'


def _fitted(dots: list[tuple[float, Dot]]) -> tuple[float, list[tuple[float, int, Dot]]]:
    """The largest radius with which they are no higher than STACK, and each with its row; of the
    smallest they may cover each other."""
    for radius in RADII:
        placed = _stacked(dots, 2 * radius + 1)
        if (max(row for _, row, _ in placed) + 1) * (2 * radius + 1) <= STACK:
            break
    return radius, placed


def _stacked(dots: list[tuple[float, Dot]], apart: float) -> list[tuple[float, int, Dot]]:
    """Each dot in the lowest row where it covers no other."""
    ends: list[float] = []
    placed = []
    for x, dot in sorted(dots, key=lambda one: one[0]):
        row = next((n for n, end in enumerate(ends) if x - end >= apart), len(ends))
        ends[row : row + 1] = [x]
        placed.append((x, row, dot))
    return placed


def phases(parts: Sequence[tuple[int, float]]) -> Markup:
    """A bar of what took how long, in seconds; the number of a part is its colour. The text beside
    it says the same."""
    total = sum(seconds for _, seconds in parts) or 1.0
    drawn, at = [], 0.0
    for number, seconds in parts:
        width = round(WIDTH * seconds / total, 1)
        drawn.append(f'<path class="p{number % COLOURS}" d="M{at:g} 0h{width:g}v14h-{width:g}z"/>')
        at += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 {WIDTH} 14" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(drawn)}</svg>"
    )


# -- parts -----------------------------------------------------------------------------------------


def _text(value: str) -> Markup:
    """What a host may have said."""
    return escape(printable(value))


def _svg(inside: str, height: int, title: str) -> Markup:
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{_text(title)}">{inside}</svg>'
    )


def _polyline(points: Sequence[tuple[float, float]], parts: int = 1) -> str:
    """A path through `points`, each to 1/`parts` of a unit; steps are relative, as that is half
    the size."""
    grid = [(round(x * parts), round(y * parts)) for x, y in points]
    head = f"M{grid[0][0] / parts:g} {grid[0][1] / parts:g}"
    steps = [f"{(x - u) / parts:g} {(y - v) / parts:g}" for (u, v), (x, y) in pairwise(grid)]
    return (head + "l" + " ".join(steps) if steps else head).replace(" -", "-")


def _value_ticks(axis: Axis) -> list[str]:
    parts = []
    for tick in ticks(axis.low, axis.high, 5):
        y = axis.at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:g}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:g}">{_number(tick)}</text>')
    return parts


def _time_ticks(axis: Axis) -> list[str]:
    """Where the history begins and where it ends: what lies between is told by the changes."""
    y = HEIGHT - 8
    form = "%Y-%m-%d" if axis.high - axis.low > 2 * 86400 else "%m-%d %H:%M"
    begin, end = (
        f"{datetime.fromtimestamp(at, timezone.utc):{form}}" for at in (axis.low, axis.high)
    )
    return [
        f'<text x="{axis.start - 6:g}" y="{y}">{begin}</text>',
        f'<text class="end" x="{WIDTH - RIGHT}" y="{y}">{end}</text>',
    ]


def _marks(axis: Axis, marks: Sequence[tuple[datetime, int]]) -> list[str]:
    """Numbers that would cover each other are left out, their lines are not."""
    parts, taken = [], -math.inf
    for time, number in marks:
        x = axis.at(time.timestamp())
        parts.append(f'<path class="mark" d="M{x:g} {TOP - 4}V{HEIGHT - BOTTOM}"/>')
        if x - taken >= 18:
            parts.append(f'<text class="marked mid" x="{x:g}" y="{TOP - 8}">{number}</text>')
            taken = x
    return parts


def _inside(x: float) -> str:
    """So that a short word about it, or a number of six digits, is not cut by the edge."""
    return f"{min(max(x, 30), WIDTH - 30):g}"


def _number(value: float) -> str:
    """With as many decimals as it takes to tell ticks apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value == round(value) else f"{value:.4g}"
