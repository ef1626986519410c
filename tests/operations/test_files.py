"""Units that a host has by its backend and settings: written, enabled, and removed again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet import render
from llamafleet.layout import DRIVER_CHECK_PATH, DRIVER_CHECK_UNIT, VERIFY_TIMER, Layout
from llamafleet.plans.plan import Plan
from llamafleet.settings import Settings
from operations import files
from tests.test_render import PLAN

LAYOUT = Layout.system()
GPU, CPU = PLAN, replace(PLAN, backend="cpu")


def there(plan: Plan, settings: Settings) -> dict[str, str]:
    """A host's files after a deploy of this plan."""
    made = render.settings_files(plan, settings, LAYOUT, systemd=True)
    return {file.path: file.sha256 for file in made}


def commands(
    monkeypatch: pytest.MonkeyPatch,
    plan: Plan,
    on_host: dict[str, str],
    settings: Settings | None = None,
    init: str = "systemd",
) -> list[str]:
    """What the operation would run, uploads left out."""
    run = SimpleNamespace(
        settings=settings or Settings(),
        plan=lambda: plan,
        layout=lambda: LAYOUT,
        snapshot=lambda: SimpleNamespace(init=init, files=on_host),
        changed=lambda what: None,
    )
    monkeypatch.setattr(files, "here", lambda: run)
    monkeypatch.setattr(files, "host", SimpleNamespace(noop=lambda text: None))
    made: Any = files.settings._inner  # type: ignore[attr-defined]
    said = [str(c) for c in made()]
    return [c for c in said if c.startswith(("systemctl", "rm"))]


def test_a_first_deploy_enables_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands(monkeypatch, GPU, {}) == [
        "systemctl daemon-reload",
        f"systemctl enable --now --quiet {VERIFY_TIMER}",
        f"systemctl enable --quiet {DRIVER_CHECK_UNIT}",
        f"systemctl enable --now --quiet {DRIVER_CHECK_PATH}",
    ]


def test_the_second_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands(monkeypatch, GPU, there(GPU, Settings())) == []


def test_without_a_gpu_the_driver_check_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands(monkeypatch, CPU, there(GPU, Settings())) == [
        f"systemctl disable --now --quiet {DRIVER_CHECK_UNIT}",
        f"rm -f /etc/systemd/system/{DRIVER_CHECK_UNIT}",
        f"systemctl disable --now --quiet {DRIVER_CHECK_PATH}",
        f"rm -f /etc/systemd/system/{DRIVER_CHECK_PATH}",
        "systemctl daemon-reload",
    ]


def test_without_a_schedule_the_timer_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(verify_schedule=None)
    assert commands(monkeypatch, GPU, there(GPU, Settings()), settings) == [
        f"systemctl disable --now --quiet {VERIFY_TIMER}",
        f"rm -f /etc/systemd/system/{VERIFY_TIMER}",
        "systemctl daemon-reload",
    ]


def test_without_systemd_no_systemctl_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host = there(GPU, Settings())
    assert commands(monkeypatch, GPU, on_host, init="openrc") == []


def test_a_plan_with_problems_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Plan("gpu-a", "cpu")
    assert commands(monkeypatch, broken, there(GPU, Settings())) == []
