"""Plots: every point is drawn, where it belongs, and nothing outside."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from llamafleet.history.comparison import Answer, Comparison
from llamafleet.history.html import plot

START = datetime(2026, 3, 1, tzinfo=timezone.utc)


def points(*values: float) -> list[plot.Point]:
    return [plot.Point(START + timedelta(days=n), value, False) for n, value in enumerate(values)]


def walked(path: str) -> list[tuple[float, float]]:
    """The places of a path of relative moves."""
    numbers = [float(text) for text in re.findall(r"-?\d+\.?\d*", path)]
    places, x, y = [], 0.0, 0.0
    for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
        x, y = x + dx, y + dy
        places.append((round(x, 1), round(y, 1)))
    return places


@pytest.mark.parametrize(
    "values",
    [(150.0,), (150.0, 150.0), (150.0, 90.0, 151.2), (0.0, 0.0), (1e-3, 2e9), (0.25, 0.26)],
)
def test_every_point_is_where_the_axes_put_it_and_inside(values: tuple[float, ...]) -> None:
    drawn = points(*values)
    svg = ElementTree.fromstring(plot.history(drawn, [], "t"))
    paths = {one.get("class"): one.get("d") or "" for one in svg.iter("path")}
    expected = [plot.axes(drawn).at(point) for point in drawn]
    for place, wanted in zip(walked(paths["line"]), expected, strict=True):
        assert place == pytest.approx(wanted, abs=0.51)
    assert all(plot.LEFT <= x <= plot.WIDTH and plot.TOP <= y <= plot.HEIGHT for x, y in expected)


def test_more_is_higher_and_later_is_further_right() -> None:
    (x1, y1), (x2, y2) = map(plot.axes(points(1.0, 2.0)).at, points(1.0, 2.0))
    assert x1 < x2
    assert y1 > y2


def test_noise_of_one_per_cent_does_not_fill_the_plot() -> None:
    low, high = plot.value_range([99.5, 100.0, 100.5])
    assert high - low == pytest.approx(10.0)


def test_a_busy_figure_is_a_ring_and_on_no_line() -> None:
    drawn = [*points(150.0, 151.0), plot.Point(START + timedelta(days=2), 60.0, True)]
    svg = ElementTree.fromstring(plot.history(drawn, [], "t"))
    rings = [one for one in svg.iter("circle") if one.get("class") == "busy"]
    assert [(float(r.get("cx", "")), float(r.get("cy", ""))) for r in rings] == [
        plot.axes(drawn).at(drawn[2])
    ]
    (line,) = (one.get("d") for one in svg.iter("path") if one.get("class") == "line")
    assert len(walked(line or "")) == 2


def test_numbers_of_changes_never_cover_each_other_and_each_has_its_line() -> None:
    drawn = points(*[150.0] * 100)
    marks = [(point.time, number) for number, point in enumerate(drawn)]
    svg = ElementTree.fromstring(plot.history(drawn, marks, "t"))
    assert sum(one.get("class") == "mark" for one in svg.iter("path")) == 100
    at = [float(one.get("x", "")) for one in svg.iter("text") if "marked" in one.get("class", "")]
    assert len(at) > 10
    assert all(b - a >= 18 for a, b in pairwise(at))


@pytest.mark.parametrize("span", [(0.0, 1.0), (142.9, 157.3), (0.0012, 0.0013), (9000, 130000.0)])
def test_ticks_are_round_few_and_inside(span: tuple[float, float]) -> None:
    low, high = span
    found = plot.ticks(low, high, 5)
    assert 1 <= len(found) <= 5
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)
    steps = {f"{b - a:.3g}" for a, b in pairwise(found)}
    assert len(steps) <= 1


def test_a_distribution_has_a_dot_for_each_gpu_none_over_another() -> None:
    dots = [plot.Dot(100.0, f"gpu-{n}", False) for n in range(40)] + [plot.Dot(80.0, "slow", True)]
    svg = ElementTree.fromstring(plot.distribution(dots, "t"))
    drawn = [
        (float(one.get("cx", "")), float(one.get("cy", "")))
        for one in svg.iter("circle")
        if one.get("class") == "dot"
    ]
    assert len(drawn) == len({*drawn}) == 40
    slow = [one for one in svg.iter("path") if one.get("class") == "slow"]
    assert len(slow) == 1
    assert "◆ slow" in "".join(svg.itertext())


@pytest.mark.parametrize(("gpus", "radius"), [(4, 4.0), (40, 1.0), (500, 1.0)])
def test_dots_of_many_gpus_are_smaller_so_that_the_plot_stays_low(gpus: int, radius: float) -> None:
    svg = ElementTree.fromstring(
        plot.distribution([plot.Dot(100.0, f"gpu-{n}", False) for n in range(gpus)], "t")
    )
    dots = [one for one in svg.iter("circle")]
    assert {float(one.get("r", "")) for one in dots} == {radius}
    at = sorted(float(one.get("cy", "")) for one in dots)
    assert at[-1] - at[0] <= plot.STACK
    assert gpus > 40 or all(b - a >= 2 * radius for a, b in pairwise(at))


def test_no_number_below_a_distribution_is_cut_by_the_edge() -> None:
    """As 12,000 was below these: its tick is the plot's first unit."""
    dots = [plot.Dot(value, "g", False) for value in (12_610.0, 12_640.0)]
    svg = ElementTree.fromstring(plot.distribution(dots, "t"))
    at = {one.text: float(one.get("x", "")) for one in svg.iter("text")}
    assert "12,000" in at
    assert all(30 <= x <= plot.WIDTH - 30 for x in at.values())


def test_a_difference_is_drawn_to_its_scale_and_a_trifle_is_small() -> None:
    def drawn(ratio: float, scale: float, answer: Answer = "slower") -> tuple[float, str]:
        found = Comparison("tg128", "tg", "H100", "m", answer, None, None, ratio, ratio, 1.0)
        svg = ElementTree.fromstring(plot.difference(found, scale))
        (dot,), (group,) = svg.iter("circle"), svg.iter("g")
        (bar,) = group.iter("path")
        assert (bar.get("d") or "").startswith(f"M{dot.get('cx')} 5.5H80v")
        return float(dot.get("cx", "")), group.get("class", "")

    assert drawn(0.9, 0.1) == (5.0, "slower")
    assert drawn(1.1, 0.1, "faster") == (155.0, "faster")
    assert drawn(0.999, 0.001, "no difference shown") == (78.5, "same")
    none = Comparison("tg128", "tg", "H100", "m", "not comparable")
    assert plot.difference(none, 0.1) == ""


def test_a_name_from_a_host_stays_a_text() -> None:
    hostile = "</title><script>alert(1)</script>\u202e\x1b[31m"
    svg = plot.distribution([plot.Dot(1.0, hostile, True), plot.Dot(2.0, "b", False)], hostile)
    svg += plot.history(points(1.0), [], hostile)
    assert "<script" not in svg
    assert svg.isprintable()
    ElementTree.fromstring(f"<all>{svg}</all>")


def test_phases_fill_the_bar_by_their_share() -> None:
    svg = ElementTree.fromstring(plot.phases([(0, 90.0), (2, 10.0), (7, 0.0)]))
    widths = [float((one.get("d") or "").split("h")[1].split("v")[0]) for one in svg.iter("path")]
    assert [one.get("class") for one in svg.iter("path")] == ["p0", "p2", "p1"]
    assert widths == pytest.approx([plot.WIDTH * 0.9, plot.WIDTH * 0.1, 0.0])
    assert plot.phases([(0, 0.0)])
