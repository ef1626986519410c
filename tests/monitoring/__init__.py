"""What docs/monitoring/ gives to Prometheus and Grafana."""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs/monitoring"
ALERTS, DASHBOARD = FOLDER / "alerts.yaml", FOLDER / "dashboard.json"
