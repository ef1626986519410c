"""ASGI without a server: a client in memory, and applications in llama_cpp.server's place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamafleet.onhost.serve.ask import ASKED
from llamafleet.onhost.serve.door import Door
from llamafleet.onhost.serve.errors import App, Message, Receive, Scope, Send
from llamafleet.onhost.serve.house import House, Model
from llamafleet.onhost.serve.metrics import Metrics
from llamafleet.onhost.serve.reply import CONNECTION
from llamafleet.protocol.serve import Limits

ALIAS, KEY = "chat-model", "sk-0123456789abcdef"


@dataclass
class Client:
    """One request and what came back."""

    path: str
    body: bytes = b""
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {KEY}"})
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    silent: bool = False
    """It sends no more than half of its body."""
    connection: Any = None
    stuck: asyncio.Event | None = None
    """While it is not set, nothing that is sent is taken."""
    last: bytes | None = None
    """It leaves when it has got this piece."""
    sent: list[Message] = field(default_factory=list)

    async def ask(self, app: App) -> Client:
        half = len(self.body) // 2
        parts = [self.body[:half]] if self.silent else [self.body[:half], self.body[half:]]

        async def receive() -> Message:
            if parts:
                part = parts.pop(0)
                more = bool(parts) or self.silent
                return {"type": "http.request", "body": part, "more_body": more}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if self.stuck:
                await self.stuck.wait()
            self.sent.append(message)
            if self.last is not None and message.get("body", b"").startswith(self.last):
                self.gone.set()
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.gone.set()  # uvicorn says "disconnect" from here on

        await app(self._scope(), receive, send)
        return self

    def _scope(self) -> dict[str, Any]:
        headers = {"content-length": str(len(self.body)), **self.headers}
        return {
            "type": "http",
            "method": self.method,
            "path": self.path,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
            "state": {CONNECTION: self.connection},
        }

    @property
    def status(self) -> int:
        found: int = self.sent[0]["status"]
        return found

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def json(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.text)
        return told

    @property
    def error(self) -> dict[str, Any]:
        told: dict[str, Any] = self.json["error"]
        return told

    def header(self, name: str) -> str:
        found = dict(self.sent[0]["headers"])
        return str(found[name.encode()].decode())


def post(body: object, path: str = "/v1/completions", **options: Any) -> Client:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Client(path, data, **options)


def get(path: str, **options: Any) -> Client:
    return Client(path, method="GET", **options)


async def said(send: Send, status: int, *parts: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    for number, part in enumerate(parts, 1):
        more = number < len(parts)
        await send({"type": "http.response.body", "body": part, "more_body": more})


@dataclass
class Stub:
    """Answers as llama_cpp.server does; keeps what it was asked."""

    answer: Callable[[dict[str, Any], Receive, Send], Awaitable[None]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        self.asked.append(body)
        self.scopes.append(scope)
        ask = ASKED.get()
        ask.begin(3)
        ask.token(ends=False)
        if self.answer:
            await self.answer(body, receive, send)
        else:
            await said(send, 200, json.dumps({"answer": body.get("prompt")}).encode())


def door(
    stub: Stub | None = None, *, key: str | None = KEY, limits: Limits | None = None
) -> tuple[Door, House]:
    """A door that is ready, and its house."""
    app = stub or Stub()
    house = House(state="ready", model=Model(app, lambda route, body: None))
    return Door(ALIAS, key, limits or Limits(), house, Metrics()), house
