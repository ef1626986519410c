"""uvicorn's HTTP protocol with what it lacks: a limit of time for a request's head, a limit of
connections, and a way to see and to end one whose client reads nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamafleet.onhost.serve.errors import RETRY_S
from llamafleet.onhost.serve.reply import CONNECTION

_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: %d\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n" % RETRY_S
)


class Wire(H11Protocol):
    """One connection. `receive_s` and `most` are set on the subclass that a server uses."""

    receive_s = 30.0
    most = 512
    """Connections. uvicorn's own limit is of requests: who sends none takes a descriptor all the
    same."""
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_FULL)
            transport.close()
            return
        # The scope of each request has a copy of it.
        self.app_state: dict[str, Any] = {**self.app_state, CONNECTION: self}
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """A head that began must end in time; between two requests uvicorn's own limit holds."""
        if not self._awaits_head():
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(self.receive_s, self._too_late)

    def _awaits_head(self) -> bool:
        if self.transport.is_closing():
            return False
        if self.cycle is None:
            return True
        begun = bool(self.conn.trailing_data[0])
        return self.conn.their_state is h11.IDLE and begun

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()

    def unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        self.transport.abort()
