"""Watching a job: each way in which it, or the connection to it, can end."""

from __future__ import annotations

import json
import shlex
from base64 import b64decode
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyinfra.api.exceptions import FactProcessError

from llamafleet.layout import Layout
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BuildConfig, JobError, JobStatus, Progress, Stamp
from llamafleet.settings import Settings
from operations import jobs
from operations.build import report_failure
from operations.run import HostRun
from operations.upload import END
from tests.plans.hosts import GPU_HOST, build_of

COMPILING = Progress(
    kind="build", key="0123", pid=1, start_ticks=1, phase="compile", step=7, steps=135
)
DONE = Stamp(kind="build", key="0123", ok=True)
BROKEN = replace(DONE, ok=False)
RUNNING = JobStatus(state="running", progress=COMPILING)
OK = JobStatus(state="ok", stamp=DONE)
FAILED = JobStatus(state="failed", stamp=BROKEN)
DEAD = JobStatus(state="dead", progress=COMPILING)
LOST = None


class Clock:
    """Time that passes only while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Watched:
    """A run and a host that answers each poll with the next of `answers`, the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[JobStatus | None]) -> None:
        monkeypatch.setattr(jobs, "time", Clock())
        self.answers = answers
        self.scope = "system"
        self.failures: list[str] = []
        self.said: list[str] = []
        self.stamps: list[Stamp] = []
        self.reconnects = 0
        self.run = SimpleNamespace(
            name="gpu-a",
            layout=lambda: Layout.user("/home/joe") if self.scope == "user" else Layout.system(),
            fail=lambda text: self.failures.append(str(text)),
            say=lambda text, fg=None: self.said.append(text),
            reread=lambda: None,
        )
        self.host = SimpleNamespace(
            get_fact=self._answer, disconnect=lambda: None, connect=self._connect, connected=True
        )

    def _answer(self, *_: object, **__: object) -> JobStatus | None:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _connect(self, **_: object) -> None:
        self.reconnects += 1

    def poll(self, minutes: int = 60) -> bool:
        def done(stamp: Stamp) -> bool:
            self.stamps.append(stamp)
            return stamp.ok

        job = JobPlan("build", "0123", "/j/0123", "python3", minutes=minutes, start=True)
        command = jobs.watch(cast(HostRun, self.run), job, done)
        return bool(command.function(None, self.host))


def test_a_job_that_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, RUNNING, OK])
    assert watched.poll()
    assert watched.stamps == [DONE] and not watched.failures
    assert watched.said == ["build [7/135] compile, 0m00s"]


def test_a_failed_job_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, FAILED])
    assert not watched.poll()
    assert watched.stamps == [BROKEN]


def test_a_job_that_is_gone_is_named_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, DEAD])
    assert not watched.poll()
    assert "gone without a stamp" in watched.failures[0]
    assert "/j/0123/build.log" in watched.failures[0]


def test_a_stamp_that_can_not_be_read_is_no_end_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = JobStatus(state="dead", unreadable="version: found {2}, expected 1")
    watched = Watched(monkeypatch, [RUNNING, odd])
    assert not watched.poll() and not watched.stamps
    assert "can't be read (version: found {2}, expected 1)" in watched.failures[0]
    assert "/j/0123/build.log" in watched.failures[0]


def test_clocks_that_are_none_do_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = [
        replace(RUNNING, progress=replace(COMPILING, started=started, updated=updated))
        for started, updated in ((-1e308, 1e308), (1e308, -1e308), (5.0, 70.0))
    ]
    for status, said in zip(odd, ("m", " 0m00s", " 1m05s"), strict=True):
        watched = Watched(monkeypatch, [status, OK])
        assert watched.poll() and said in watched.said[0]


def test_the_answer_of_a_host_is_typed_or_refused() -> None:
    text = json.dumps(asdict(RUNNING), indent=1)
    assert jobs.StatusOfJob().process(text.split("\n")) == RUNNING
    for odd in ("Welcome!", "[]", '{"state": "well"}', "[" * 100_000, "NaN"):
        with pytest.raises(FactProcessError, match="status of a job: "):
            jobs.StatusOfJob().process([odd])


def test_a_job_that_never_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [JobStatus(state="absent")])
    assert not watched.poll()
    assert "gone without a stamp" in watched.failures[0]


def test_a_lost_connection_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, LOST, LOST, RUNNING, OK])
    assert watched.poll()
    assert watched.reconnects == 2 and not watched.failures


def test_a_connection_lost_for_good_says_that_the_job_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, [RUNNING, LOST])
    assert not watched.poll()
    assert watched.reconnects == jobs.LOST_LIMIT
    assert "attaches" in watched.failures[0] and "gpu-a" in watched.failures[0]


def test_a_job_over_its_time_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING])
    assert not watched.poll(minutes=2)
    assert "still running after 2 minutes" in watched.failures[0]


def carried_out(monkeypatch: pytest.MonkeyPatch, job: JobPlan, **run: Any) -> list[Any]:
    """The commands for that job, and last the watch."""
    watched = Watched(monkeypatch, [OK])
    host = replace(GPU_HOST, init=run.pop("init", "systemd"))
    watched.scope = str(run.get("scope", "system"))
    watched.run.settings, watched.run.snapshot = Settings(**run), lambda: host
    config = build_of(GPU_HOST).config
    told = jobs.carry_out(cast(HostRun, watched.run), job, config, lambda stamp: True)
    commands: list[Any] = list(told)
    assert commands.pop().function(None, watched.host)
    return commands


JOB = JobPlan("build", "0123", "/j/0123", "/usr/bin/python3", minutes=1, start=True)


ACCOUNT = (
    "setsid -w setpriv --reuid=llamafleet --regid=llamafleet --init-groups --inh-caps=-all "
    f"--no-new-privs env -i PATH={jobs.PATH} HOME=/var/lib/llamafleet LC_ALL=C.UTF-8 "
)
CLEAN = f"env -i PATH={jobs.PATH} HOME=/root LC_ALL=C.UTF-8 "
CONFIG = "/etc/llamafleet/jobs/build-0123.json"
ARGV = f"job --kind build --config {CONFIG} --dir /j/0123"
ZIPAPP = "/usr/bin/python3 -I /opt/llamafleet/llamafleet-host.pyz"


def content(command: Any) -> bytes:
    """What an upload carries."""
    return b64decode("".join(line for line in command.connector_arguments["_stdin"] if line != END))


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
            outside = text.split(" --", 1)[0] if text.startswith("systemd-run") else text
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
