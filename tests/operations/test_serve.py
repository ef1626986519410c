"""Services come to a host, by the commands it gets: started, asked, gone back from, removed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import Unit
from llamafleet.history.report import render
from llamafleet.layout import SERVE_TARGET, Layout, serve_unit
from llamafleet.plans.plan import ServePlan
from llamafleet.protocol.serve import State
from operations import serve
from operations.run import HostRun
from tests.hosts.recorded import load
from tests.operations.fake import CPU, FakeHost, answer, fleet
from tests.plans.hosts import there

pytestmark = pytest.mark.usefixtures("frozen_tables")
LAYOUT = Layout.system()
UNIT = serve_unit("chat")
ASK = " serve-check "
SHOW = "journalctl"
CONFIG = LAYOUT.serve_config("chat")
KEY = getattr(load(CPU).plan.build, "fingerprint", "")
BACK = f"mv -T {LAYOUT.previous} {LAYOUT.current}"


def host(**settings: Any) -> FakeHost:
    made = FakeHost(CPU, serve={"chat": {"model": "/srv/a.gguf"}}, **settings)
    made.found("systemctl=0", "systemd=257")
    made.answers[ASK] = answer()
    return made


def switched() -> FakeHost:
    """Its `current` is a build that no run has seen serve; the one of before is there."""
    build = load(CPU).plan.build
    assert build is not None
    made = host()
    for name, finished in ((KEY, 50.0), (f"{KEY}-2", 100.0)):
        made.build(there(build, name, finished=finished))
    return made.found(f"current={KEY}-2", f"previous={KEY}")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operations.serve.time.sleep", lambda seconds: None)
    # What is left to do is the plan's to say, tests/plans/test_serve.py.
    monkeypatch.setattr(serve, "_left", lambda run: None)


def test_a_service_is_told_started_and_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = host()
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == [], run.runs["a"].failures
        (line,) = run.runs["a"].served
        assert (line.profile, line.state, line.port) == ("chat", "ready", 8000)
        assert "chat started (found inactive)" in run.runs["a"].changes
    told = json.loads(made.uploads[CONFIG])
    assert told["profile"] == "chat" and made.access[CONFIG] == "root:root 644"
    folder = "/var/lib/llamafleet/serve/chat"
    order = (
        f"PUT {CONFIG}",
        "systemctl daemon-reload",
        f"systemctl enable --quiet {UNIT} {SERVE_TARGET}",
        f"systemctl stop {UNIT}",
        f"mkdir -p -- {folder}",
        f"rm -f -- {folder}/status.json",
        f"systemctl restart --no-block {UNIT}",
        ASK,
    )
    sent = "\n".join(made.sent)
    places = [sent.index(part) for part in order]
    assert places == sorted(places), made.sent
    for part in (f"mkdir -p -- {folder}", "rm -f -- ", ASK):
        before = sent[: sent.index(part)].splitlines()[-1].rpartition("; ")[2]
        assert before.startswith("setsid -w setpriv --reuid=llamafleet "), "root enters no folder"
    assert made.sent[-1].endswith(f"--config {CONFIG} < /dev/null")


def test_its_key_is_handed_on_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "api.key"
    key.write_text("sk-0123456789-abcdefghij\n")
    key.chmod(0o600)
    made = host()
    made.data["serve"]["chat"] |= {"api_key_file": str(key)}
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == [], run.runs["a"].failures
    path = LAYOUT.serve_key("chat")
    assert made.uploads[path] == b"sk-0123456789-abcdefghij\n"
    assert made.access[path] == "root:root 600"
    assert not any("sk-0123" in one for one in made.sent)
    assert any(f"< {path}" in one for one in made.sent if ASK in one)
    assert "sk-0123" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("state", "problem"),
    [("failed", "it is failed: found no GGUF"), ("held", "it is held: found no proof"),
     ("ready", "POST /v1/completions: found 500 oops; expected 200")],
)  # fmt: skip
def test_one_that_does_not_serve_fails_the_host(
    monkeypatch: pytest.MonkeyPatch, state: State, problem: str
) -> None:
    made = host()
    made.answers[ASK] = answer(state, problem)
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == ["@fake/a"]
        (failure,) = run.runs["a"].failures
        assert failure.startswith(f"serve.chat: found {problem}")
        assert f"next: journalctl -u {UNIT} -n 50" in failure
        assert run.runs["a"].served[0].state == "FAILED"
    assert not any("ln -sfn" in one for one in made.sent), "nothing was switched"


def test_one_that_loads_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = host()
    loads, busy = answer("loading", "it is loading"), answer("ready", "found 503; expected 200")
    made.answers[ASK] = [loads, False, "{broken", loads, busy, busy, answer()]
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == [], run.runs["a"].failures


def test_one_whose_process_ended_without_a_word_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = host()
    made.answers[ASK] = answer(None, "it tells nothing of itself")
    made.answers[SHOW] = "unit Result=signal\nunit LoadState=loaded\nlog CUDA error: oops\n"
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == ["@fake/a"]
        (failure,) = run.runs["a"].failures
        assert "its process ended and left no word; its log: CUDA error: oops" in failure


def test_after_a_switch_that_serves_no_more_the_host_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = switched()
    made.answers[ASK] = [answer("failed", "it is failed: found CUDA error"), answer()]
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == ["@fake/a"]
        failures = "\n".join(run.runs["a"].failures)
        assert f"went back to {KEY}, they serve again" in failures
        assert "serve.chat: found it is failed: found CUDA error" in failures
        assert f"current -> {KEY} (gone back)" in run.runs["a"].changes
    after = made.sent[made.sent.index(BACK) :]
    assert any(f"restart --no-block {UNIT}" in one for one in after)


def test_one_that_serves_on_the_new_build_leaves_nothing_to_go_back_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = switched()
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == [], run.runs["a"].failures
    assert BACK not in made.sent
    asked = next(at for at, one in enumerate(made.sent) if ASK in one)
    assert made.sent.index(f"rm -f -- {LAYOUT.previous}") > asked


def test_no_interruption_leaves_a_service_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has drained is started by the very command, which hears of none."""
    made = host()
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == []
    (command,) = (one for one in made.sent if f"systemctl stop {UNIT}" in one)
    (script,) = shlex.split(command)[2:]
    assert script.startswith("trap '' HUP INT PIPE TERM; ")
    assert script.endswith(f"; systemctl restart --no-block {UNIT}")


def test_one_that_says_it_is_ready_is_asked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process may have been stopped since, or hang: the word lies there as it was."""
    made = host()
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == []
    planned = run.runs["a"].plan()
    assert planned.serve is not None
    service = replace(planned.serve.services[0], action="leave", reason="", ready=True)
    planned = replace(planned, serve=ServePlan((service,)))
    assert not planned.serve.needed
    monkeypatch.setattr(HostRun, "plan", lambda self: planned)
    for said, failed in ((answer(), []), (answer("ready", "TimeoutError"), ["@fake/a"])):
        made = host()
        made.answers[ASK] = said
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(serve.serve) == failed
            assert [one.state for one in run.runs["a"].served] == ["FAILED" if failed else "ready"]
        assert made.sent and all(ASK in one or SHOW in one for one in made.sent), made.sent


def test_one_that_fails_on_both_builds_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = switched()
    made.answers[ASK] = answer("failed", "it is failed: found no GGUF")
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == ["@fake/a"]
        failures = "\n".join(run.runs["a"].failures)
        assert f"went back to {KEY}, it is failed: found no GGUF" in failures


def test_a_profile_that_is_not_wanted_goes_with_its_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = host().units({serve_unit("old"): Unit("loaded", "active", "running", "enabled")})
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.serve) == [], run.runs["a"].failures
        assert "old no longer served" in run.runs["a"].changes
    text = "\n".join(made.sent)
    assert f"systemctl stop {serve_unit('old')}" in text
    assert f"systemctl disable --quiet {serve_unit('old')}" in text
    assert "rm -rf --one-file-system -- /var/lib/llamafleet/serve/old" in text


def test_a_service_to_which_a_run_did_not_come_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = host()
    made.data["serve"]["web"] = {"model": "https://lab/b.gguf", "port": 8001, "sha256": "a" * 64}
    with fleet(monkeypatch, {"a": made}) as run:
        run.runs["a"].fail("verification: found a red check")
        told = render([run.runs["a"].row("complete", failed=True)])
    assert "serves chat: not asked, http://127.0.0.1:8000/v1, model chat (/srv/a.gguf)" in told
    assert told.rstrip().endswith(" serves web: not asked, http://127.0.0.1:8001/v1, model web")


def test_a_dry_run_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = host()
    with fleet(monkeypatch, {"a": made}, dry=True) as run:
        run.run(serve.libraries, serve.serve)
    assert made.sent == [] and made.uploads == {}


def test_without_profiles_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FakeHost(CPU).found("systemctl=0")
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(serve.libraries, serve.serve) == []
    assert made.sent == []
