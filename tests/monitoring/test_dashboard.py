"""The dashboard: it is what its maker makes, and asks for figures that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llamafleet.onhost.verify.metrics import Families
from tests.monitoring import DASHBOARD, promtool, questions


def test_it_is_as_its_maker_makes_it() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from tests.monitoring import dashboard

    assert DASHBOARD.read_text(encoding="utf-8") == dashboard.text()


def test_it_asks_for_figures_that_there_are() -> None:
    asked = {name for text in questions().values() for name in re.findall(r"llamafleet_\w+", text)}
    assert asked <= {family.name for family in Families()}
    assert len(questions()) == 14


def test_no_two_panels_lie_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells


def test_a_change_is_marked_where_the_driver_changed_and_nowhere_else(tmp_path: Path) -> None:
    """Three hours without a verdict lie between, or half an hour for one that changes nothing."""
    info = "llamafleet_verification_info{{instance='{}', driver='{}'}}"
    series = [
        {"series": info.format("changed", "570"), "values": "1x144 stale"},
        {"series": info.format("changed", "580"), "values": "_x163 1x288"},
        {"series": info.format("same", "570"), "values": "1x144 stale _x2 1x300"},
        {"series": info.format("new", "580"), "values": "_x163 1x288"},
    ]
    marked = [{"labels": '{instance="changed", driver="580"}', "value": 1}]
    expr = questions()["driver changes"]
    asked = [
        {"expr": expr, "eval_time": when, "exp_samples": wanted}
        for when, wanted in (("24h", []), ("25h30m", []), ("27h20m", marked), ("28h40m", []))
    ]
    unit = {"interval": "10m", "input_series": series, "promql_expr_test": asked}
    file = tmp_path / "test.json"  # JSON is YAML too.
    file.write_text(json.dumps({"rule_files": [], "tests": [unit]}))
    promtool("test", "rules", file)
