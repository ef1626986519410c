"""Watching a job: each way in which it, or the connection to it, can end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamafleet.layout import Layout
from operations import jobs
from operations.build import report_failure
from operations.run import HostRun

RUNNING = {"state": "running", "progress": {"phase": "compile", "step": 7, "steps": 135}}
OK = {"state": "ok", "progress": None, "stamp": {"ok": True}}
FAILED = {"state": "failed", "progress": None, "stamp": {"ok": False}}
DEAD = {"state": "dead", "progress": {"phase": "compile"}, "stamp": None}
LOST: dict[str, Any] = {}


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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, Any]]) -> None:
        monkeypatch.setattr(jobs, "time", Clock())
        self.answers = answers
        self.failures: list[str] = []
        self.said: list[str] = []
        self.stamps: list[dict[str, Any]] = []
        self.reconnects = 0
        self.run = SimpleNamespace(
            name="gpu-a",
            layout=Layout.system,
            fail=lambda text: self.failures.append(str(text)),
            say=lambda text, fg=None: self.said.append(text),
            reread=lambda: None,
        )
        self.host = SimpleNamespace(
            get_fact=self._answer, disconnect=lambda: None, connect=self._connect, connected=True
        )

    def _answer(self, *_: object, **__: object) -> dict[str, Any]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _connect(self, **_: object) -> None:
        self.reconnects += 1

    def poll(self, minutes: int = 60) -> bool:
        def done(stamp: dict[str, Any]) -> bool:
            self.stamps.append(stamp)
            return bool(stamp["ok"])

        command = jobs.watch(
            cast(HostRun, self.run), "build", "/j/0123", "python3", minutes=minutes, done=done
        )
        return bool(command.function(None, self.host))


def test_a_job_that_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, RUNNING, OK])
    assert watched.poll()
    assert watched.stamps == [{"ok": True}] and not watched.failures
    assert watched.said == ["build [7/135] compile, 0m00s"]


def test_a_failed_job_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, FAILED])
    assert not watched.poll()
    assert watched.stamps == [{"ok": False}]


def test_a_job_that_is_gone_is_named_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, DEAD])
    assert not watched.poll()
    assert "gone without a stamp" in watched.failures[0]
    assert "/j/0123/build.log" in watched.failures[0]


def test_a_job_that_never_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [{"state": "absent", "progress": None, "stamp": None}])
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


def test_a_failure_is_told_with_lines_cause_fix_and_log(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [OK])
    error = {
        "phase": "configure",
        "lines": ["CMake Error: no nvcc"],
        "cause": "no toolkit",
        "fix": "install one",
        "log": "/j/0123/build.log",
    }
    assert not report_failure(cast(HostRun, watched.run), "build", {"ok": False, "error": error})
    assert watched.said == ["  CMake Error: no nvcc"]
    told = watched.failures[0]
    assert all(word in told for word in ("configure", "no toolkit", "install one", "build.log"))
