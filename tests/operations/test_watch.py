"""Watching a job: each way in which it, or the connection to it, can end."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Literal, cast

import pytest
from pyinfra.api.exceptions import FactProcessError

from llamafleet.connection import PATIENCE_S
from llamafleet.layout import Layout
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import JobStatus, Kind, Progress, Stamp
from llamafleet.settings import Settings
from operations import watch
from operations.run import HostRun
from operations.watch import End, EndOfJob
from tests.plans.hosts import GPU_HOST

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

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        answers: list[JobStatus | None],
        end: End | None = None,
        lost: str = "",
    ) -> None:
        monkeypatch.setattr(watch, "time", Clock())
        monkeypatch.setattr(watch.lock, "keep", lambda run: None)
        self.scope: Literal["system", "user"] = "system"
        self.answers, self.end = answers, end
        self.failures: list[str] = []
        self.said: list[str] = []
        self.stamps: list[Stamp] = []
        self.run = SimpleNamespace(
            name="gpu-a",
            layout=lambda: Layout.user("/home/joe") if self.scope == "user" else Layout.system(),
            settings=Settings(),
            snapshot=lambda: GPU_HOST,
            guard=SimpleNamespace(cause=lost, words=""),
            fail=self._fail,
            say=lambda text, fg=None: self.said.append(text),
            reread=lambda: None,
        )
        self.asked: list[dict[str, object]] = []
        self.known: list[bool] = []
        self.host = SimpleNamespace(get_fact=self._answer)

    def _fail(self, text: object, known: bool = True) -> None:
        self.failures.append(str(text))
        self.known.append(known)

    def _answer(self, fact: type, **asked: object) -> JobStatus | End | None:
        self.asked.append(asked)
        if fact is EndOfJob:
            return self.end
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def poll(self, minutes: int = 60, kind: Kind = "build") -> bool:
        def done(stamp: Stamp) -> bool:
            self.stamps.append(stamp)
            return stamp.ok

        job = JobPlan(kind, "0123", "/j/0123", "/c.json", "python3", minutes=minutes, start=True)
        command = watch.watch(cast(HostRun, self.run), job, done)
        return bool(command.function(None, self.host))


def test_a_job_that_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, RUNNING, OK])
    assert watched.poll()
    assert watched.stamps == [DONE] and not watched.failures
    assert watched.said == ["build [7/135] compile, 0m00s"]


@pytest.mark.parametrize(
    ("kind", "init", "scope", "stop"),
    [
        ("build", "systemd", "system", "sudo systemctl stop llamafleet-build-0123.service"),
        ("verify", "systemd", "user", "systemctl --user stop llamafleet-verify.service"),
        ("build", "systemd", "user", "kill 1"),
        # Its pid is the account's word, and may be anybody's.
        ("build", "none", "system", "sudo -u llamafleet kill 1"),
    ],
)
def test_while_it_is_waited_for_it_is_known_how_to_stop_it(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, init: str, scope: str, stop: str
) -> None:
    watched = Watched(monkeypatch, [RUNNING, LOST])
    watched.run.snapshot = lambda: replace(GPU_HOST, init=init)
    watched.run.settings = Settings.model_validate({"scope": scope})
    assert not watched.poll(kind=kind)
    assert watched.run.waits_for.kind == kind and watched.run.stop == stop
    watched.answers = [OK]
    assert watched.poll(kind=kind) and watched.run.waits_for is None


def test_what_its_start_said_is_read_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs as the account can be steered by it, and would type into the administrator's."""
    watched = Watched(monkeypatch, [DEAD])
    assert not watched.poll()
    asked = watched.asked[-1]
    assert str(asked["rights"]).startswith("setsid -w setpriv --reuid=llamafleet ")
    text = EndOfJob().command("u", "systemctl", "/l", str(asked["rights"]), 5)
    assert "timeout 5 setsid -w setpriv --reuid=llamafleet " in text


def test_a_failed_job_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, FAILED])
    assert not watched.poll()
    assert watched.stamps == [BROKEN]


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (None, "why is not known"),
        (End(), "why is not known"),
        (End(boot=200.5), "the host has rebooted since it began"),
        (End(boot=99.0, start=("Permission denied",)), "its start said: Permission denied"),
        (
            End(
                unit={"LoadState": "loaded", "Result": "exit-code", "ExecMainStatus": "203"},
                log=("Failed at step EXEC spawning /usr/bin/python3",),
            ),
            "its unit ended by exit-code, status 203; systemd says: Failed at step EXEC spawning "
            "/usr/bin/python3",
        ),
        (End(unit={"LoadState": "not-found", "Result": "success"}), "why is not known"),
        (End(unit={"LoadState": "loaded", "Result": "success"}), "why is not known"),
    ],
)
def test_a_job_that_is_gone_has_the_cause_that_is_known(
    monkeypatch: pytest.MonkeyPatch, end: End | None, cause: str
) -> None:
    began = replace(COMPILING, started=100.0)
    dead = JobStatus(state="dead", progress=began)
    watched = Watched(monkeypatch, [replace(RUNNING, progress=began), dead], end)
    assert not watched.poll()
    assert f"gone without a stamp ({cause})" in watched.failures[0]
    assert "/j/0123/build.log" in watched.failures[0] and watched.known == [True]
    assert watched.asked[-1]["unit"] == "llamafleet-build-0123.service"


def test_what_a_host_says_of_an_end_is_read_as_text_and_bounded() -> None:
    said = ["boot 1795564900", "unit LoadState=loaded", "unit Result=\x1b[2Joom-kill", "hi"]
    said += [f"log {line}" for line in ("x", "a", "b" * 5000, "c{}", "c{}", "d")] + [
        "start x",
        "start ",
    ]
    end = EndOfJob().process(said)
    assert end.boot == 1795564900.0 and end.unit["Result"] == "\\x1b[2Joom-kill"
    assert end.log == ("a", "b" * 200, "c{}", "d") and end.start == ("x",)
    for odd in ("boot", "boot x", "boot -1", f"boot {'9' * 40000}", "boot ٣"):
        assert EndOfJob().process([odd]).cause(1.0) in (
            "why is not known",
            "the host has rebooted since it began",
        )


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


def test_a_login_shell_that_prints_does_not_hide_the_status() -> None:
    text = ["hi", "there {", *json.dumps(asdict(RUNNING), indent=1).split("\n")]
    assert watch.StatusOfJob().process(text) == RUNNING


def test_a_job_that_never_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [JobStatus(state="absent")], End(log=("no such file {x}",)))
    assert not watched.poll()
    assert "not there, nor was it seen (systemd says: no such file {x})" in watched.failures[0]


def test_a_lost_connection_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING, LOST, LOST, RUNNING, OK])
    assert watched.poll() and not watched.failures
    assert watched.said[1:3] == [
        "no status of the build; it is asked again for 90 s",
        "it answers again",
    ]


@pytest.mark.parametrize(
    ("answers", "known"),
    [
        (
            [RUNNING, LOST],
            "the job ran when the host last answered (build [7/135] compile, 0m00s), and may go on",
        ),
        ([LOST], "whether the job began is not known"),
    ],
)
def test_a_host_that_stays_silent_is_given_up_with_what_is_known(
    monkeypatch: pytest.MonkeyPatch, answers: list[JobStatus | None], known: str
) -> None:
    watched = Watched(monkeypatch, answers, lost="no route {to} it")
    assert not watched.poll()
    (why,) = watched.failures
    assert known in why and "(no route {to} it)" in why and "attaches" in why
    assert watched.known == [False]
    clock = cast(Clock, watch.time)
    assert PATIENCE_S < clock.now < PATIENCE_S + 2 * watch.LONGEST_PAUSE_S


def test_a_status_that_fails_is_no_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [LOST])
    watched.run.guard.words = "python3: not found, of: python3 status"
    assert not watched.poll()
    assert "(python3: not found, of: python3 status)" in watched.failures[0]


def test_a_host_that_answers_now_and_then_ends_with_the_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[JobStatus | None] = [RUNNING, LOST, LOST] * 200
    watched = Watched(monkeypatch, answers)
    assert not watched.poll(minutes=3)
    assert "still running after 3 minutes" in watched.failures[0]


def test_a_job_over_its_time_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, [RUNNING])
    assert not watched.poll(minutes=2)
    assert "still running after 2 minutes" in watched.failures[0] and watched.known == [False]
