"""Services come to a host, by the commands it gets: started, asked, gone back from, removed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from llamafleet.facts.host import Unit
from llamafleet.layout import SERVE_TARGET, Layout, serve_unit
from llamafleet.protocol.serve import Answer, State, Status
from operations import serve
from tests.operations.fake import CPU, FakeHost, fleet

pytestmark = pytest.mark.usefixtures("frozen_tables")
LAYOUT = Layout.system()
UNIT = serve_unit("chat")
ASK = " serve-check "
SHOW = "journalctl"
CONFIG = LAYOUT.serve_config("chat")


def answer(state: State | None = "ready", problem: str = "") -> str:
    status = Status(1, "chat", state, 1.0, 7) if state else None
    made = Answer(1, state, state == "ready" and not problem, problem, status)
    return json.dumps(asdict(made))


def host(**settings: Any) -> FakeHost:
    made = FakeHost(CPU, serve={"chat": {"model": "/srv/a.gguf"}}, **settings)
    made.found("systemctl=0", "systemd=257")
    made.answers[ASK] = answer()
    return made


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
        f"systemctl stop {UNIT}",
        f"mkdir -p -- {folder}",
        f"rm -f -- {folder}/status.json",
        "systemctl daemon-reload",
        f"systemctl enable --quiet {UNIT} {SERVE_TARGET}",
        f"systemctl restart --no-block {UNIT}",
        ASK,
    )
    sent = [next(at for at, one in enumerate(made.sent) if part in one) for part in order]
    assert sent == sorted(sent), made.sent
    for part in (f"mkdir -p -- {folder}", "rm -f -- ", ASK):
        (command,) = (one for one in made.sent if part in one)
        assert "setpriv --reuid=llamafleet " in command, "root enters no folder of the account"
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
    loads = answer("loading", "it is loading")
    made.answers[ASK] = [loads, False, "{broken", loads, answer()]
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
    made = host()
    made.answers[ASK] = [answer("failed", "it is failed: found CUDA error"), answer()]
    with fleet(monkeypatch, {"a": made}) as run:
        run.runs["a"].before = "old0123456789abc"
        assert run.run(serve.serve) == ["@fake/a"]
        failures = "\n".join(run.runs["a"].failures)
        assert "went back to old0123456789abc, they serve again" in failures
        assert "serve.chat: found it is failed: found CUDA error" in failures
        assert "current -> old0123456789abc (gone back)" in run.runs["a"].changes
    back = [one for one in made.sent if "/versions/old0123456789abc" in one]
    assert len(back) == 1 and "ln -sfn" in back[0]
    after = made.sent[made.sent.index(back[0]) :]
    assert any("mv -T" in one for one in after)
    assert any(f"restart --no-block {UNIT}" in one for one in after)


def test_one_that_fails_on_both_builds_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = host()
    made.answers[ASK] = answer("failed", "it is failed: found no GGUF")
    with fleet(monkeypatch, {"a": made}) as run:
        run.runs["a"].before = "old0123456789abc"
        assert run.run(serve.serve) == ["@fake/a"]
        failures = "\n".join(run.runs["a"].failures)
        assert "went back to old0123456789abc, it is failed: found no GGUF" in failures


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
