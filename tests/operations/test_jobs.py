"""Starting a job, and telling how it failed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BuildConfig, JobError
from llamafleet.settings import Settings
from operations import jobs
from operations.build import report_failure
from operations.run import HostRun
from tests.operations.test_watch import BROKEN, OK, Watched
from tests.plans.hosts import GPU_HOST, build_of


def carried_out(monkeypatch: pytest.MonkeyPatch, job: JobPlan, **run: Any) -> list[Any]:
    """The commands for that job, and last the watch."""
    watched = Watched(monkeypatch, [OK])
    host = replace(GPU_HOST, init=run.pop("init", "systemd"))
    watched.run.settings, watched.run.snapshot = Settings(**run), lambda: host
    config = build_of(GPU_HOST).config
    told = jobs.carry_out(cast(HostRun, watched.run), job, config, lambda stamp: True)
    commands: list[Any] = list(told)
    assert commands.pop().function(None, watched.host)
    return commands


JOB = JobPlan("build", "0123", "/j/0123", "/usr/bin/python3", minutes=1, start=True)


def test_a_job_is_told_and_started(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config, mode, stale, begun = carried_out(monkeypatch, JOB)
    assert str(folder) == "install -d -m 755 -o llamafleet -g llamafleet /j/0123"
    assert config.dest == "/j/0123/config.json"
    assert decode(BuildConfig, json.load(config.src)) == build_of(GPU_HOST).config
    assert str(mode) == "chmod 644 /j/0123/config.json"
    assert str(stale) == "rm -f /j/0123/stamp.json /j/0123/progress.json"
    assert "--unit=llamafleet-build-0123 " in str(begun) and "User=llamafleet" in str(begun)
    assert str(begun).endswith("llamafleet-host.pyz job --kind build --dir /j/0123")


def test_a_job_of_root_keeps_its_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, *_, begun = carried_out(monkeypatch, replace(JOB, root=True))
    assert str(folder).split() == ["install", "-d", "-m", "755", "/j/0123"]
    assert "KillMode=mixed" in str(begun) and "User=" not in str(begun)
    *_, detached = carried_out(monkeypatch, replace(JOB, root=True), init="none")
    assert " start --log " in str(detached) and "--user" not in str(detached)


def test_without_systemd_a_job_is_detached_and_gives_root_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, begun = carried_out(monkeypatch, JOB, init="none")
    assert " start --log /j/0123/start.log --user llamafleet -- job --kind build " in str(begun)
    *_, own = carried_out(monkeypatch, JOB, scope="user")
    assert " start --log " in str(own) and "--user" not in str(own)


def test_a_job_that_runs_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert carried_out(monkeypatch, replace(JOB, start=False)) == []


def test_a_failure_is_told_with_lines_cause_fix_and_log(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [OK])
    error = JobError(
        phase="configure",
        lines=("CMake Error: no nvcc",),
        cause="no toolkit",
        fix="install one",
        log="/j/0123/build.log",
    )
    failed = replace(BROKEN, error=error)
    assert not report_failure(cast(HostRun, watched.run), "build", failed)
    assert watched.said == ["  CMake Error: no nvcc"]
    told = watched.failures[0]
    assert all(word in told for word in ("configure", "no toolkit", "install one", "build.log"))
