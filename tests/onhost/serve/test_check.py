"""What a service is asked on its own host, and each way in which it does not serve."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import pytest

from llamafleet.onhost.serve import check
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import start_ticks
from llamafleet.protocol.serve import (
    GENERATED,
    OVERLOADED,
    Answer,
    Placement,
    ServeConfig,
    State,
    Status,
)
from tests.ports import free_port

KEY = "sk-0123456789-abcdefghij"


class Api(HTTPServer):
    """A service that answers as it is told; by default as a sound one does."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.models: object = {"data": [{"id": "chat"}]}
        self.made: object = {"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}
        self.code = self.post = 200
        self.counts = iter(range(100))
        self.server_port = port
        self.asked: list[tuple[str, str | None, Any]] = []

    def metrics(self) -> bytes:
        return f"# TYPE\n{GENERATED} {next(self.counts)}.0\n".encode()

    def server_bind(self) -> None:
        """Without asking for the name of its address."""
        TCPServer.server_bind(self)


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        metrics = self.path == "/metrics"
        self.reply(self.server.metrics() if metrics else self.server.models, None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.code = self.server.post
        self.reply(self.server.made, body)
        self.server.code = 200

    def reply(self, answer: object, body: Any) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        code = 401 if self.headers["Authorization"] != f"Bearer {KEY}" else self.server.code
        text = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Not on the test's own output."""


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api(free_port())
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def config(folder: Path, port: int, **change: Any) -> ServeConfig:
    data = {
        "version": 1,
        "profile": "chat",
        "host": "a",
        "verify": "/v",
        "folder": str(folder),
        "libraries": "/l",
        "model": "/m",
        "alias": "chat",
        "placement": asdict(Placement(-1, 512)),
        "address": "127.0.0.1",
        "port": port,
        "key": True,
    }
    return decode(ServeConfig, data | change)


OWN = start_ticks(os.getpid())


def tell(
    folder: Path,
    state: State,
    reason: str = "",
    pid: int | None = None,
    ticks: int | None = OWN,
) -> None:
    status = Status(1, "chat", state, 1.0, pid or os.getpid(), reason, start_ticks=ticks)
    (folder / "status.json").write_text(json.dumps(asdict(status)))


def test_one_that_is_ready_is_asked_for_its_model_and_a_token(api: Api, tmp_path: Path) -> None:
    tell(tmp_path, "ready")
    made = check.asked(config(tmp_path, api.server_port), KEY, 0)
    assert made.ok and made.problem == "" and made.state == "ready"
    assert [one[0] for one in api.asked] == ["/v1/models", "/metrics", "/v1/completions"]
    assert api.asked[-1][2] == {"model": "chat", "prompt": "1", "max_tokens": 1, "temperature": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": 500}, "GET /v1/models: found 500"),
        ({"models": {"data": []}}, "GET /v1/models: found none; expected chat"),
        ({"models": {"data": [{"id": "other"}]}}, "found other; expected chat"),
        ({"models": b"<html>"}, "JSONDecodeError"),
        ({"models": [1]}, "Error"),
        ({"models": {"data": [3]}}, "AttributeError"),
        ({"made": {"choices": []}}, "POST /v1/completions: found None tokens; expected 1"),
        ({"made": {"choices": [1], "usage": {"completion_tokens": 0}}}, "found 0 tokens"),
        ({"made": {"choices": [1], "usage": None}}, "found None tokens"),
    ],
)
def test_an_answer_that_is_none_is_told(
    api: Api, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    tell(tmp_path, "ready")
    for name, value in change.items():
        setattr(api, name, value)
    made = check.asked(config(tmp_path, api.server_port), KEY, 0)
    assert not made.ok and said in made.problem, made


def test_a_wrong_key_is_told(api: Api, tmp_path: Path) -> None:
    tell(tmp_path, "ready")
    made = check.asked(config(tmp_path, api.server_port), "other", 0)
    assert not made.ok and "found 401" in made.problem


def test_nobody_listens(tmp_path: Path) -> None:
    tell(tmp_path, "ready")
    made = check.asked(config(tmp_path, free_port()), KEY, 0)
    assert not made.ok and "ConnectionRefusedError" in made.problem


@pytest.mark.parametrize("state", ["held", "failed"])
def test_its_own_word_is_told_at_once(tmp_path: Path, state: State) -> None:
    """Whose process has ended by then."""
    tell(tmp_path, state, "found x; expected y; next: z", pid=2**22 + 1)
    made = check.asked(config(tmp_path, 1), KEY, 60)
    assert (made.ok, made.state) == (False, state)
    assert made.problem == f"it is {state}: found x; expected y; next: z"


def test_one_that_loads_is_waited_for_as_long_as_was_asked(tmp_path: Path) -> None:
    tell(tmp_path, "loading")
    made = check.asked(config(tmp_path, 1), KEY, 0.1)
    assert (made.state, made.problem) == ("loading", "it is loading")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}'])
def test_a_word_that_is_none_is_not_believed(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    made = check.asked(config(tmp_path, 1), KEY, 0)
    assert (made.state, made.problem) == (None, "it tells nothing of itself")


@pytest.mark.parametrize("state", ["ready", "draining", "loading"])
def test_the_word_of_a_process_that_is_gone_is_none(tmp_path: Path, state: State) -> None:
    """Also where another one has its number by now, or nobody knows when it started."""
    tell(tmp_path, state, pid=2**22 + 1)
    assert check.asked(config(tmp_path, 1), KEY, 0).state is None
    assert OWN is not None
    for ticks in (OWN - 1, None):
        tell(tmp_path, state, ticks=ticks)
        assert check.asked(config(tmp_path, 1), KEY, 0).state is None


def test_nor_is_that_of_one_whose_parent_has_not_asked_for_its_end(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as ended:
        tell(tmp_path, "ready", pid=ended.pid, ticks=start_ticks(ended.pid))
        assert check.read_status(config(tmp_path, 1)) is not None
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert check.read_status(config(tmp_path, 1)) is None


def test_one_that_stopped_says_nothing_of_the_next_one(tmp_path: Path) -> None:
    tell(tmp_path, "stopped", pid=2**22 + 1)
    made = check.asked(config(tmp_path, 1), KEY, 0)
    assert (made.ok, made.state, made.problem) == (False, None, "it is stopped")


FULL = {"error": {"message": "64 requests are under way", "code": OVERLOADED}}


def test_one_that_serves_as_many_as_it_can_is_proven_by_their_tokens(
    api: Api, tmp_path: Path
) -> None:
    tell(tmp_path, "ready")
    api.made, api.post = FULL, 503
    assert check.asked(config(tmp_path, api.server_port), KEY, 0).ok


@pytest.mark.parametrize("counts", [[0] * 100, [5, 0, *[5] * 100]])
def test_and_not_by_a_queue_that_does_not_move(
    api: Api, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "GROWTH_S", 0.1)
    monkeypatch.setattr(check, "POLL_S", 0.01)
    tell(tmp_path, "ready")
    api.made, api.post, api.counts = FULL, 503, iter(counts)
    made = check.asked(config(tmp_path, api.server_port), KEY, 0)
    assert not made.ok and "found 503" in made.problem and OVERLOADED in made.problem


def test_another_503_is_none_of_that(api: Api, tmp_path: Path) -> None:
    tell(tmp_path, "ready")
    api.made, api.post = {"error": {"code": "loading"}}, 503
    assert not check.asked(config(tmp_path, api.server_port), KEY, 0).ok


def test_metrics_without_the_figure_are_told(api: Api, tmp_path: Path) -> None:
    tell(tmp_path, "ready")
    api.metrics = lambda: b"# nothing\n"  # type: ignore[method-assign]
    made = check.asked(config(tmp_path, api.server_port), KEY, 0)
    assert not made.ok and f"found no {GENERATED}" in made.problem


@pytest.mark.parametrize(
    ("address", "at"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.1", "10.0.0.1")]
)
def test_where_this_host_reaches_it(address: str, at: str) -> None:
    assert check.reached(address) == at


def test_the_command_takes_the_key_on_its_input(
    api: Api,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell(tmp_path, "ready")
    file = tmp_path / "serve-chat.json"
    file.write_text(json.dumps(asdict(config(tmp_path, api.server_port))))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    assert check.main(["--config", str(file)]) == 0
    assert decode(Answer, json.loads(capsys.readouterr().out)).ok
    file.write_text("{}")
    assert check.main(["--config", str(file)]) == 2
