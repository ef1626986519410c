"""Starting a job, and telling how it failed."""

from __future__ import annotations

import json
import shlex
from base64 import b64decode
from dataclasses import replace
from typing import Any, cast

import pytest

from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import PATH, BuildConfig, JobError
from llamafleet.settings import Settings
from operations import jobs
from operations.build import report_failure
from operations.run import HostRun
from operations.upload import END
from tests.operations.test_watch import BROKEN, OK, Watched
from tests.plans.hosts import GPU_HOST, build_of


def carried_out(monkeypatch: pytest.MonkeyPatch, job: JobPlan, **run: Any) -> list[Any]:
    """The commands for that job, and last the watch."""
    watched = Watched(monkeypatch, [OK])
    host = replace(GPU_HOST, init=run.pop("init", "systemd"))
    watched.scope = run.get("scope", "system")
    watched.run.settings, watched.run.snapshot = Settings(**run), lambda: host
    config = build_of(GPU_HOST).config
    told = jobs.carry_out(cast(HostRun, watched.run), job, config, lambda stamp: True)
    commands: list[Any] = list(told)
    assert commands.pop().function(None, watched.host)
    return commands


ACCOUNT = (
    "setsid -w setpriv --reuid=llamafleet --regid=llamafleet --init-groups --inh-caps=-all "
    f"--no-new-privs env -i PATH={PATH} HOME=/var/lib/llamafleet LC_ALL=C.UTF-8 "
)
CLEAN = f"env -i PATH={PATH} HOME=/root LC_ALL=C.UTF-8 "
CONFIG = "/etc/llamafleet/jobs/build-0123.json"
JOB = JobPlan("build", "0123", "/j/0123", CONFIG, "/usr/bin/python3", minutes=1, start=True)
ARGV = f"job --kind build --config {CONFIG} --dir /j/0123"
ZIPAPP = "/usr/bin/python3 -I /opt/llamafleet/llamafleet-host.pyz"


def content(command: Any) -> bytes:
    """What an upload carries."""
    _, *lines = command.connector_arguments["_stdin"]
    return b64decode("".join(line for line in lines if line != END))


def test_a_job_is_told_and_started(monkeypatch: pytest.MonkeyPatch) -> None:
    config, stale, begun = carried_out(monkeypatch, JOB)
    told = shlex.split(str(config))
    assert f"to={CONFIG}" in told, "in a folder that root alone writes"
    assert {"mode=640", "owner=root:llamafleet"} <= set(told)
    assert decode(BuildConfig, json.loads(content(config))) == build_of(GPU_HOST).config
    assert str(stale) == f"{ACCOUNT}rm -f -- /j/0123/stamp.json /j/0123/progress.json"
    assert "--unit=llamafleet-build-0123.service " in str(begun)
    assert "User=llamafleet" in str(begun) and str(begun).endswith(f" {ZIPAPP} {ARGV}")


def test_a_job_of_root_keeps_its_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    root = replace(JOB, root=True)
    _, stale, begun = carried_out(monkeypatch, root)
    assert str(stale) == f"{CLEAN}rm -f -- /j/0123/stamp.json /j/0123/progress.json"
    assert "KillMode=mixed" in str(begun) and "User=" not in str(begun)
    *_, detached = carried_out(monkeypatch, root, init="none")
    assert str(detached).startswith(f"{CLEAN}sh -c ") and "setpriv" not in str(detached)


def test_without_systemd_a_job_is_detached_by_the_account_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No interpreter runs with root's rights on the way."""
    *_, begun = carried_out(monkeypatch, JOB, init="none")
    script = f"umask 022; mkdir -p -- /j/0123 && exec {ZIPAPP} start --log /j/0123/start.log -- "
    assert str(begun) == f"{ACCOUNT}sh -c {shlex.quote(script + ARGV)}"


def test_in_a_home_all_is_the_user_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config, stale, own = carried_out(monkeypatch, JOB, scope="user")
    assert {"mode=600", "owner="} <= set(shlex.split(str(config)))
    assert str(stale).startswith("rm -f -- ") and str(own).startswith("sh -c 'umask 022; ")
    assert " start --log " in str(own)


def test_no_command_of_root_touches_what_the_account_can_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for init in ("systemd", "none"):
        for command in carried_out(monkeypatch, JOB, init=init):
            text = str(command)
            outside = text.split(" --", 1)[0] if "systemd-run" in text else text
            assert "/j/0123" not in outside or text.startswith(ACCOUNT), text


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
