"""What docs/monitoring/ gives to Prometheus and Grafana."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs/monitoring"
ALERTS, DASHBOARD = FOLDER / "alerts.yaml", FOLDER / "dashboard.json"


def questions() -> dict[str, str]:
    """What the dashboard asks Prometheus, of all hosts, by the title of each panel."""
    told = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = {one["name"]: one["expr"] for one in told["annotations"]["list"]}
    found |= {one["title"]: one["targets"][0]["expr"] for one in told["panels"]}
    return {title: text.replace("$instance", ".*") for title, text in found.items()}


def promtool(*arguments: str | Path) -> None:
    """Run it: https://prometheus.io/docs/prometheus/latest/command-line/promtool/."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
