"""Watching a job: each way in which it, or the connection to it, can end."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import cast

import pytest
from pyinfra.api.exceptions import FactProcessError

from llamafleet.layout import Layout
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import JobStatus, Progress, Stamp
from operations import watch
from operations.run import HostRun

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
        monkeypatch.setattr(watch, "time", Clock())
        self.answers = answers
        self.failures: list[str] = []
        self.said: list[str] = []
        self.stamps: list[Stamp] = []
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

    def _answer(self, *_: object, **__: object) -> JobStatus | None:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _connect(self, **_: object) -> None:
        self.reconnects += 1

    def poll(self, minutes: int = 60) -> bool:
        def done(stamp: Stamp) -> bool:
            self.stamps.append(stamp)
            return stamp.ok

        job = JobPlan("build", "0123", "/j/0123", "python3", minutes=minutes, start=True)
        command = watch.watch(cast(HostRun, self.run), job, done)
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
    assert watch.StatusOfJob().process(text.split("\n")) == RUNNING
    for odd in ("Welcome!", "[]", '{"state": "well"}', "[" * 100_000, "NaN"):
        with pytest.raises(FactProcessError, match="status of a job: "):
            watch.StatusOfJob().process([odd])


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
    assert watched.reconnects == watch.LOST_LIMIT
    assert "attaches" in watched.failures[0] and "gpu-a" in watched.failures[0]


def test_a_job_over_its_time_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING])
    assert not watched.poll(minutes=2)
    assert "still running after 2 minutes" in watched.failures[0]
