"""The way of an answer to its client: the model never waits for whoever reads it."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from typing import Any, Protocol

from llamafleet.onhost.serve.ask import Ask
from llamafleet.onhost.serve.errors import Message, Send

CONNECTION = "llamafleet.connection"
"""Key of a scope's "state": the Connection that a request came by."""
LOOK_S = 0.2
"""Between two looks at what a client has not taken yet, once all is written."""
DONE = b"data: [DONE]"
_EVENT = re.compile(rb"data: (\{.*\})\s*", re.DOTALL)


class Connection(Protocol):
    """What the server tells of a client's connection; wire.py has it."""

    def unsent(self) -> int:
        """Bytes that the client's side has not taken."""

    def abort(self) -> None:
        """Close it, whatever is unsent."""


class Reply:
    """Takes what the application sends as fast as it comes, and passes it on as it is read.

    What waits here is at most one answer, which the model's context bounds. The status line waits
    for the first piece of the body: until then another status may still be said.
    """

    def __init__(self, send: Send, connection: Connection | None, send_s: float, ask: Ask) -> None:
        self._send, self._connection, self._send_s = send, connection, send_s
        self._ask = ask
        self._start: Message | None = None
        self._queue: deque[Message] = deque()
        self._more = asyncio.Event()
        self._end: Message | None = None
        """The empty last piece of a stream. It waits until the application has returned, which is
        when an error of the model is known."""
        self._ended = False
        self._taken_whole = False
        self.ending = False
        """The last message, or what ends a stream, is on its way: a client that goes now has left
        nothing. OpenAI's own one goes as soon as it reads that a stream is done."""
        self._last = b""
        self._pump: asyncio.Task[None] | None = None
        self.refused: int | None = None
        """The status that the application answered with in place of 200."""

    @property
    def committed(self) -> bool:
        """The client has got a 200."""
        return self._pump is not None

    async def put(self, message: Message) -> None:
        """What the application sends; it never waits."""
        if message["type"] == "http.response.start":
            if message["status"] == 200:
                self._start = message
            else:
                self.refused = message["status"]
            return
        if self.refused is None:
            self._body(message)

    def _body(self, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if not body:
            # One that is not the last is a ping.
            self._end = None if more else message
            return
        if body.startswith(DONE) and self._ask.usage:
            self._enqueue({**message, "body": self._usage(), "more_body": True})
        if _EVENT.fullmatch(body):
            self._last = body
        self._enqueue(message)
        self._ended = not more

    def _usage(self) -> bytes:
        """The piece of a stream that tells what it cost, as OpenAI has it."""
        found = _EVENT.fullmatch(self._last)
        piece: dict[str, Any] = json.loads(found[1]) if found else {}
        prompt, made = self._ask.prompt, self._ask.made
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        }
        return event({**piece, "choices": [], "usage": usage})

    def _enqueue(self, message: Message) -> None:
        if self._start is not None:
            self._queue.append(self._start)
            self._start = None
            self._pump = asyncio.ensure_future(self._deliver())
        self._queue.append(message)
        self._more.set()

    def end_with(self, error: dict[str, Any]) -> None:
        """End a stream that has begun with an error in place of the rest."""
        if not self._ended:
            self._enqueue({"type": "http.response.body", "body": event(error), "more_body": True})
            self._end = {"type": "http.response.body", "body": b"", "more_body": False}

    async def finish(self) -> bool:
        """Wait until the client has taken all, or was cut off; whether it has."""
        if not self._ended and self._end is not None:
            self._enqueue(self._end)
        elif not self._ended:
            self._ask.leave()
            self.cut()
        if self._pump is not None:
            await self._pump
        return self._taken_whole

    async def _deliver(self) -> None:
        """Pass on message after message; a client that takes nothing for too long is cut off."""
        while not self._ask.left:
            while not self._queue:
                self._more.clear()
                await _first(self._more, self._ask.gone)
                if self._ask.left:
                    return
            message = self._queue.popleft()
            if not await self._taken(message):
                self._ask.leave()
                self.cut()
                return
            if _last(message):
                self._taken_whole = True
                return

    async def _taken(self, message: Message) -> bool:
        """Written, and of the last one also taken; False: nothing moved for `send_s`."""
        last = _last(message)
        self.ending = last or message.get("body", b"").startswith(DONE)
        sending = asyncio.ensure_future(self._send(message))
        unsent = self._unsent()
        while not sending.done():
            await asyncio.wait({sending}, timeout=self._send_s)
            if not sending.done() and self._unsent() >= unsent:
                sending.cancel()
                return False
            unsent = self._unsent()
        sending.result()
        return await self._empty() if last else True

    async def _empty(self) -> bool:
        """The client has taken the last byte."""
        unsent, waited = self._unsent(), 0.0
        while unsent:
            await asyncio.sleep(LOOK_S)
            waited = waited + LOOK_S if self._unsent() >= unsent else 0.0
            unsent = self._unsent()
            if waited >= self._send_s:
                return False
        return True

    def _unsent(self) -> int:
        return self._connection.unsent() if self._connection else 0

    def cut(self) -> None:
        """Close the connection: nobody is to take this answer for a whole one."""
        if self._connection:
            self._connection.abort()


def _last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body")


def event(data: object) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.ensure_future(one.wait()) for one in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
