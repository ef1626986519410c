"""The alert rules: Prometheus reads them, and each fires in the state that it is for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from llamafleet.onhost.verify.metrics import Families
from tests.monitoring import ALERTS, promtool

UNITS = Path(__file__).with_name("alerts-test.yaml")
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def test_the_rules_ask_for_figures_that_there_are() -> None:
    asked = {name for rule in RULES for name in re.findall(r"llamafleet_\w+", rule["expr"])}
    assert asked <= {family.name for family in Families()}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    text = " ".join(rule["expr"] for rule in RULES)
    assert set(re.findall(r"\w+:llamafleet_\w+", text)) == recorded


def test_each_alert_is_seen_to_fire_and_to_be_silent() -> None:
    """By promtool, below."""
    fires: dict[str, set[bool]] = {}
    for test in yaml.safe_load(UNITS.read_text())["tests"]:
        for wanted in test["alert_rule_test"]:
            fires.setdefault(wanted["alertname"], set()).add(bool(wanted["exp_alerts"]))
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    # Of BUSY another host is silent, as settings allow it there.
    assert fires == {name: {True, False} for name in alerts} | {"LlamafleetBusy": {True}}


def test_promtool_runs_the_unit_tests(tmp_path: Path) -> None:
    for file in (ALERTS, UNITS):
        shutil.copy(file, tmp_path)
    promtool("test", "rules", tmp_path / UNITS.name)
