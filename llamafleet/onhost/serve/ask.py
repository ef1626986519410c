"""One request for a model's words: what it costs, and whether anybody still waits for them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from llamafleet.onhost.serve.errors import Left


class Ask:
    """Of one request. The thread that computes writes into it, the event loop reads it.

    All times are of time.monotonic(), in seconds.
    """

    def __init__(self) -> None:
        self.usage = False
        """What it cost is told in the last piece of its stream."""
        self.came = time.monotonic()
        self.begun: float | None = None
        """The model began with it."""
        self.first: float | None = None
        """Its first token was there."""
        self.last: float | None = None
        self.prompt = 0
        """Tokens of it."""
        self.made = 0
        """Tokens of the answer; the one that ends it is not counted."""
        self.counted = (0, 0)
        """Of `prompt` and `made`: what the metrics have."""
        self.failure: Exception | None = None
        """What the model raised."""
        self.gone = asyncio.Event()
        """The client left, or was cut off."""
        self.left = False
        """The same for the thread that computes."""

    def leave(self) -> None:
        self.left = True
        self.gone.set()

    def check(self) -> None:
        """Raises Left where nobody waits any more."""
        if self.left:
            raise Left

    def begin(self, prompt: int) -> None:
        self.prompt = prompt
        self.begun = time.monotonic()

    def token(self, *, ends: bool) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.made += not ends

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first one; None: there were too few."""
        if self.first is None or self.last is None or self.made < 2 or self.last <= self.first:
            return None
        return (self.made - 1) / (self.last - self.first)


ASKED: ContextVar[Ask] = ContextVar("asked")
"""The request that the model computes for, in the event loop's task and in the thread."""


class Line:
    """Requests wait for the model one behind the other, in the order in which they came."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        return not self._busy

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, ask: Ask, *, first: bool = False) -> AsyncIterator[None]:
        """The model is this one's within; `first`: before all who wait. Raises Left where its
        client leaves before."""
        if self._busy:
            await self._wait(ask, first)
        self._busy = True
        try:
            ask.check()
            yield
        finally:
            self._next()

    async def _wait(self, ask: Ask, first: bool) -> None:
        called = asyncio.get_running_loop().create_future()
        leaving = asyncio.ensure_future(ask.gone.wait())
        if first:
            self._waiting.appendleft(called)
        else:
            self._waiting.append(called)
        try:
            await asyncio.wait({called, leaving}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._drop(called)
            raise
        finally:
            leaving.cancel()
        if not called.done():
            self._drop(called)
            raise Left

    def _drop(self, called: asyncio.Future[None]) -> None:
        """It leaves the line; where it was called just now, the next one is."""
        if called.done():
            self._next()
        else:
            self._waiting.remove(called)

    def _next(self) -> None:
        if self._waiting:
            # Stays busy: nobody who comes now goes before the one that is called.
            self._waiting.popleft().set_result(None)
        else:
            self._busy = False
