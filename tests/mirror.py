"""A server of one large file on the loopback interface, as faulty as a test wants it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.onhost.site import Handler

Fault = Callable[["Mirror", Handler], None]


@dataclass
class Mirror:
    """Answers GET and HEAD as nginx does: ranges, If-Range, ETag."""

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    """Each answers one GET in the place of this one's own answer, the first one first."""
    sent: int = 0
    """Bytes of bodies."""
    gets: list[dict[str, str]] = field(default_factory=list)
    """Headers of each GET."""
    slow_s: float = 0.0
    """Pause between pieces of 64 KiB."""

    def __call__(self, handler: Handler) -> None:
        if handler.command == "HEAD":
            self.head(handler, 200, len(self.content))
            return
        self.gets.append({name.lower(): value for name, value in handler.headers.items()})
        if self.faults:
            self.faults.pop(0)(self, handler)
        else:
            self.answer(handler)

    def head(self, handler: Handler, status: int, length: int, **more: str) -> None:
        handler.send_response(status)
        headers = {"Content-Length": str(length), "Accept-Ranges": "bytes"}
        headers |= {"ETag": self.etag} if self.etag else {}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    def answer(self, handler: Handler, most: int | None = None) -> None:
        """`most`: the connection is cut after so many bytes."""
        wanted = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        begin = int(wanted[1]) if wanted and self.ranges and condition in (None, self.etag) else 0
        if begin > len(self.content):
            self.head(handler, 416, 0, Content_Range=f"bytes */{len(self.content)}")
            return
        body = self.content[begin:]
        if wanted and begin:
            size = len(self.content)
            self.head(handler, 206, len(body), Content_Range=f"bytes {begin}-{size - 1}/{size}")
        else:
            self.head(handler, 200, len(body))
        self.send(handler, body[:most])

    def send(self, handler: Handler, body: bytes) -> None:
        step = 64 << 10
        for at in range(0, len(body), step):
            handler.wfile.write(body[at : at + step])
            self.sent += len(body[at : at + step])
            if self.slow_s:
                time.sleep(self.slow_s)
        handler.wfile.flush()
        handler.close_connection = True


def cut(after: int) -> Fault:
    """The connection ends early."""
    return lambda mirror, handler: mirror.answer(handler, most=after)


def status(code: int, **headers: str) -> Fault:
    def answer(mirror: Mirror, handler: Handler) -> None:
        mirror.head(handler, code, 0, **headers)

    return answer


def page(text: bytes, **headers: str) -> Fault:
    """Something else, with all signs of success."""

    def answer(mirror: Mirror, handler: Handler) -> None:
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text)

    return answer
