"""uvicorn with what it lacks, through real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llamafleet.onhost.serve import server
from llamafleet.onhost.serve.ask import ASKED
from llamafleet.onhost.serve.errors import Receive, Send
from llamafleet.onhost.serve.house import House
from llamafleet.protocol.serve import Limits
from tests.onhost.serve.asgi import KEY, Stub, door

PIECE = b"data: " + b"x" * 4096 + b"\n\n"


async def answer(body: dict[str, Any], receive: Receive, send: Send) -> None:
    """As many pieces as the prompt says; for "forever" until the client has left."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while body["prompt"] == "forever" and not ASKED.get().left:
        await asyncio.sleep(0.01)
    for _ in range(int(body["prompt"]) if body["prompt"].isdigit() else 0):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"end", "more_body": False})


class Running:
    """A server in a thread."""

    def __init__(self, limits: Limits) -> None:
        app, self.house = door(Stub(answer), limits=limits)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.server = server._uvicorn(app, limits.receive_s)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        await self.server.serve(sockets=[self.socket])

    def __enter__(self) -> Running:
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(20)

    def connect(self, buffer: int = 0) -> socket.socket:
        client = socket.socket()
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(10)
        client.connect(("127.0.0.1", self.port))
        return client


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    # Settings are whole seconds.
    short: Any = 0.4
    with Running(Limits(receive_s=short, send_s=short)) as made:
        yield made


def request(prompt: str, *, head: str = "", length: int | None = None) -> bytes:
    body = json.dumps({"prompt": prompt}).encode()
    lines = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{head}"
    return f"{lines}content-length: {length or len(body)}\r\n\r\n".encode() + body


def until_closed(client: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def wait(condition: Any, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def idle(house: House) -> bool:
    return house.line.idle and not house.asks


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nhost:"])
def test_a_head_that_does_not_end_is_not_waited_for(running: Running, sent: bytes) -> None:
    with running.connect() as client:
        client.sendall(sent)
        assert until_closed(client).startswith(b"HTTP/1.1 408 ")


def test_nor_is_the_second_head_of_a_connection(running: Running) -> None:
    with running.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea")
        said = until_closed(client)
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in said


def test_a_connection_between_two_requests_is_kept(running: Running) -> None:
    with running.connect() as client:
        for _ in range(2):
            client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            said = b""
            while not said.endswith(b"}"):
                said += client.recv(65536)
            assert said.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.6)


def test_a_body_that_comes_too_slowly_is_refused(running: Running) -> None:
    with running.connect() as client:
        client.sendall(request("1", length=1000))
        assert until_closed(client).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("how", ["closed", "half closed", "reset"])
def test_a_client_that_leaves_frees_the_model(running: Running, how: str) -> None:
    with running.connect() as client:
        client.sendall(request("forever"))
        wait(lambda: not running.house.line.idle)
        if how == "half closed":
            client.shutdown(socket.SHUT_WR)
            assert until_closed(client) == b""
        elif how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait(lambda: idle(running.house))


@pytest.mark.parametrize("head", ["", "connection: close\r\n"])
def test_who_reads_nothing_is_cut_off_and_the_model_is_free_long_before(
    running: Running, head: str
) -> None:
    with running.connect(buffer=4096) as slow:
        slow.sendall(request("2000", head=head))
        wait(lambda: bool(running.house.asks))
        wait(lambda: running.house.line.idle, 3)
        assert running.house.asks
        with running.connect() as quick:
            quick.sendall(request("2", head="connection: close\r\n"))
            assert until_closed(quick).endswith(b"end\r\n0\r\n\r\n")
        wait(lambda: not running.house.asks, 6)
        wait(lambda: not running.server.server_state.connections, 3)


def test_who_reads_slowly_but_reads_gets_all_of_it(running: Running) -> None:
    with running.connect(buffer=4096) as client:
        client.sendall(request("400", head="connection: close\r\n"))
        got = 0
        for _ in range(8):
            time.sleep(0.15)
            got += len(client.recv(32768))
        assert got + len(until_closed(client)) > 400 * 4096


def test_nonsense_is_no_request(running: Running) -> None:
    with running.connect() as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert until_closed(client).startswith(b"HTTP/1.1 400 ")


def test_a_head_that_does_not_stop_growing_is_refused(running: Running) -> None:
    with running.connect() as client, contextlib.suppress(OSError):
        client.sendall(b"GET /health HTTP/1.1\r\n" + b"x: " + b"a" * 200_000)
        assert until_closed(client).startswith(b"HTTP/1.1 4")


def test_connections_beyond_the_limit_are_sent_away_and_the_others_served(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a descriptor, also of one that sends nothing."""
    monkeypatch.setattr(running.server.config.http_protocol_class, "most", 3)
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(running.connect()) for _ in range(8)]
        wait(lambda: len(running.server.server_state.connections) == 3)
        told = [until_closed(one) for one in clients[3:]]
        assert all(one.startswith(b"HTTP/1.1 503 ") and b"retry-after" in one for one in told)
        clients[0].sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert clients[0].recv(65536).startswith(b"HTTP/1.1 200 ")


def test_two_words_of_a_bodys_length_are_one_too_many(running: Running) -> None:
    with running.connect() as client:
        client.sendall(request("1", head="transfer-encoding: chunked\r\n"))
        told = until_closed(client)
    assert told.startswith(b"HTTP/1.1 400 ") and told.count(b"HTTP/1.1") == 1


def test_requests_behind_each_other_get_their_answers_in_order(running: Running) -> None:
    with running.connect() as client:
        client.sendall(request("1") * 3 + request("2", head="connection: close\r\n"))
        assert until_closed(client).count(b"HTTP/1.1 200 ") == 4


def test_what_strangers_send_is_nothing_for_the_journal(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for sent in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nupgrade: x\r\n\r\n"):
        with running.connect() as client:
            client.sendall(sent)
            client.recv(65536)
    assert not caplog.records


def test_no_websocket_is_made(running: Running) -> None:
    head = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    with running.connect() as client:
        client.sendall(head.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
