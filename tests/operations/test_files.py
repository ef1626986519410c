"""Files and units as commands: in which order, what is recorded, and how it is judged."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Unit
from llamafleet.layout import DRIVER_CHECK_PATH, DRIVER_CHECK_UNIT, VERIFY_TIMER, VERIFY_UNIT
from llamafleet.managed import rows
from llamafleet.plans.files import plan_files
from llamafleet.plans.plan import Plan, Problem
from llamafleet.render import content_sha256
from llamafleet.settings import Settings
from operations import files
from tests.plans.hosts import CPU_HOST, GPU_HOST, LAYOUT
from tests.plans.test_files import UNITS
from tests.test_render import PLAN

GPU, CPU = PLAN, replace(PLAN, backend="cpu")


def sha256(row: Any, plan: Plan) -> str:
    return content_sha256(row, plan, Settings(), LAYOUT)


def there() -> HostSnapshot:
    """A GPU host after a deploy."""
    made = {row.path(LAYOUT): sha256(row, GPU) for row in rows(LAYOUT, "settings")}
    return replace(GPU_HOST, files=made, units=UNITS)


def run_of(plan: Plan, snapshot: HostSnapshot, settings: Settings) -> Any:
    if plan.build:
        made = plan_files("settings", plan, settings, snapshot, LAYOUT, sha256=sha256)
        plan = replace(plan, files=made)
    failures: list[str] = []
    changes: list[str] = []
    return SimpleNamespace(
        noop=lambda text: None,
        settings=settings,
        plan=lambda: plan,
        layout=lambda: LAYOUT,
        changed=changes.append,
        changes=changes,
        fail=lambda problem: failures.append(str(problem)),
        failures=failures,
    )


def carry_out(
    monkeypatch: pytest.MonkeyPatch,
    plan: Plan,
    snapshot: HostSnapshot,
    settings: Settings | None = None,
) -> tuple[list[str], list[str]]:
    """What the operation runs, uploads left out, and the changes that it records."""
    run = run_of(plan, snapshot, settings or Settings())
    monkeypatch.setattr(files, "here", lambda: run)
    operation: Any = files.settings._inner  # type: ignore[attr-defined]
    made = list(operation())
    assert not made or made[-1].function is files.check, "whatever was done is judged"
    said = [str(c) for c in made]
    return [c for c in said if c.startswith(("systemctl", "rm"))], run.changes


def test_a_first_deploy_enables_and_starts_what_is_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, changes = carry_out(monkeypatch, GPU, GPU_HOST)
    assert commands == [
        "systemctl daemon-reload",
        f"systemctl enable --quiet {VERIFY_TIMER} {DRIVER_CHECK_UNIT} {DRIVER_CHECK_PATH} || true",
        f"systemctl restart {VERIFY_TIMER} {DRIVER_CHECK_PATH} || true",
    ]
    assert changes == [f"settings llamafleet.env verify.json {' '.join(UNITS)}"]


def test_the_second_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert carry_out(monkeypatch, GPU, there()) == ([], [])


def test_what_somebody_disabled_and_stopped_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    disabled = Unit("loaded", "inactive", "dead", "disabled")
    stopped = replace(UNITS[DRIVER_CHECK_PATH], active="inactive", sub="dead")
    units = {**UNITS, VERIFY_TIMER: disabled, DRIVER_CHECK_PATH: stopped}
    commands, changes = carry_out(monkeypatch, GPU, replace(there(), units=units))
    assert commands == [
        f"systemctl enable --quiet {VERIFY_TIMER} || true",
        f"systemctl restart {VERIFY_TIMER} {DRIVER_CHECK_PATH} || true",
    ]
    assert changes == [
        f"{VERIFY_TIMER} enabled",
        f"{VERIFY_TIMER} started",
        f"{DRIVER_CHECK_PATH} started",
    ]


def test_units_that_are_merely_read_again_are_a_change_too(monkeypatch: pytest.MonkeyPatch) -> None:
    units = {**UNITS, VERIFY_UNIT: replace(UNITS[VERIFY_UNIT], stale=True)}
    commands, changes = carry_out(monkeypatch, GPU, replace(there(), units=units))
    assert (commands, changes) == (["systemctl daemon-reload"], ["units read again"])


def test_without_a_gpu_the_driver_check_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host = replace(CPU_HOST, files=there().files, units=UNITS)
    on_host.files[LAYOUT.verify_config] = ""
    commands, changes = carry_out(monkeypatch, CPU, on_host)
    both = f"{DRIVER_CHECK_UNIT} {DRIVER_CHECK_PATH}"
    paths = " ".join(f"/etc/systemd/system/{unit}" for unit in both.split())
    assert commands == [
        f"systemctl stop {DRIVER_CHECK_PATH} || true",
        f"systemctl disable --quiet {both} || true",
        f"rm -f {paths}",
        "systemctl daemon-reload",
    ]
    assert changes == ["settings verify.json", *(f"{unit} removed" for unit in both.split())]


def test_without_a_schedule_the_timer_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, changes = carry_out(monkeypatch, GPU, there(), Settings(verify_schedule=None))
    assert commands == [
        f"systemctl stop {VERIFY_TIMER} || true",
        f"systemctl disable --quiet {VERIFY_TIMER} || true",
        f"rm -f /etc/systemd/system/{VERIFY_TIMER}",
        "systemctl daemon-reload",
    ]
    assert changes == [f"{VERIFY_TIMER} removed"]


def test_a_plan_with_problems_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert carry_out(monkeypatch, Plan("gpu-a", "cpu"), there()) == ([], [])


def judged(plan: Plan, snapshot: HostSnapshot) -> tuple[bool, list[str]]:
    run = run_of(plan, snapshot, Settings())
    host: Any = None
    return files.check(host, host, run), run.failures


def test_a_host_whose_units_run_after_all_of_it_goes_on() -> None:
    assert judged(GPU, there()) == (True, [])


def test_one_whose_units_do_not_fails_and_says_which() -> None:
    """systemctl may fail, or succeed and the unit ends at once."""
    failed = Unit("loaded", "failed", "failed", "enabled")
    units = {**UNITS, DRIVER_CHECK_PATH: failed}
    goes_on, failures = judged(GPU, replace(there(), units=units))
    assert not goes_on
    assert failures == [
        f"units: found still to do: start {DRIVER_CHECK_PATH} (found failed); expected files and "
        "units as planned, now that they were written and started; "
        f"next: systemctl status {DRIVER_CHECK_PATH}"
    ]


def test_a_unit_that_can_t_be_loaded_fails_the_host_too() -> None:
    bad = Unit("bad-setting", "inactive", "dead", "static")
    goes_on, failures = judged(GPU, replace(there(), units={**UNITS, VERIFY_UNIT: bad}))
    assert not goes_on and len(failures) == 1
    assert f"reload {VERIFY_UNIT} (found bad-setting)" in failures[0]
    assert failures[0].endswith("next: systemctl status 'llamafleet-*'")


def test_one_that_has_a_problem_by_now_fails_with_that() -> None:
    problem = Problem("units", "x is masked", "one that is active", "y")
    assert judged(Plan("gpu-a", "cuda", (problem,)), there()) == (False, [str(problem)])


def test_a_user_s_systemd_is_found_without_a_login_session(tmp_path: Path) -> None:
    system, user = (
        files.systemctl(SimpleNamespace(settings=Settings.model_validate({"scope": scope})))  # type: ignore[arg-type]
        for scope in ("system", "user")
    )
    assert system == "systemctl"
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\necho "$XDG_RUNTIME_DIR $*"\n')
    program.chmod(0o755)
    said = []
    for environment in ({}, {"XDG_RUNTIME_DIR": "/run/other"}):
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        command = ["sh", "-c", f"{user} restart a.timer; id -u"]
        done = subprocess.run(
            command, env={**path, **environment}, capture_output=True, text=True, check=True
        )
        said.append(done.stdout.split("\n"))
    uid = said[0][1]
    assert said[0][0] == f"/run/user/{uid} --user restart a.timer"
    assert said[1][0] == "/run/other --user restart a.timer"
