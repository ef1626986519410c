"""A request's body: read within limits, parsed, never deeper than what is read of it later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from llamafleet.onhost.serve.errors import Left, Receive, Refusal
from llamafleet.protocol.serve import Limits

DEEPEST = 64
"""Lists and objects within each other. A tool's parameters are some ten deep."""
MIB = 1 << 20
READ_ON = 64 * MIB
"""Of a body that is too large: so much is thrown away, as a client that still sends reads no
answer."""


class Sent:
    """What a client sends with one request."""

    def __init__(self, receive: Receive, told: int | None) -> None:
        """`told`: its Content-Length."""
        self.receive, self.told = receive, told
        self.whole = False
        """Nothing more of it comes."""

    async def part(self) -> bytes:
        """Raises Left."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Left
        self.whole = not message.get("more_body")
        body: bytes = message.get("body", b"")
        return body


async def read(sent: Sent, limits: Limits, *, keep: bool = True) -> bytes:
    """All of it; `keep` False: nothing of it is kept. Raises Refusal and Left."""
    most, told = limits.body_mib * MIB, sent.told
    kept = most if keep else 0
    try:
        parts, size = await _parts(sent, kept, time.monotonic() + limits.receive_s)
    except asyncio.TimeoutError:
        raise Refusal(
            408,
            f"the body did not arrive within {limits.receive_s} s",
            code="request_timeout",
            headers=(("connection", "close"),),
        ) from None
    if size > most or (told or 0) > most:
        raise Refusal(
            413,
            f"the body has {max(size, told or 0)} bytes or more; expected at most {most}",
            code="request_too_large",
            headers=(("connection", "close"),),
        )
    return b"".join(parts)


async def _parts(sent: Sent, kept: int, end: float) -> tuple[list[bytes], int]:
    parts: list[bytes] = []
    size = 0
    while not sent.whole and size <= READ_ON:
        part = await asyncio.wait_for(sent.part(), max(0.0, end - time.monotonic()))
        size += len(part)
        if size <= kept:
            parts.append(part)
        else:
            parts.clear()
    return parts, size


async def skip(sent: Sent, limits: Limits) -> None:
    """Read what a refused client still sends, so that it reads the answer. Raises Left."""
    with contextlib.suppress(Refusal):
        await read(sent, limits, keep=False)


def parse(body: bytes) -> dict[str, Any]:
    """The object. Raises Refusal."""
    try:
        data = json.loads(body, parse_constant=_constant)
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, UnicodeDecodeError) as error:
        raise Refusal(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Refusal(400, "the body is no JSON object", code="invalid_json")
    if _depth(data) > DEEPEST:
        raise _too_deep()
    return data


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _too_deep() -> Refusal:
    text = f"the body has values within values; expected at most {DEEPEST} levels"
    return Refusal(400, text, code="invalid_json")


def _depth(data: object) -> int:
    """Level by level: nothing here calls itself."""
    level: list[object] = [data]
    depth = 0
    while level and depth <= DEEPEST:
        within: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                within += one.values()
            elif isinstance(one, list):
                within += one
        level = [one for one in within if isinstance(one, Mapping | list)]
        depth += 1
    return depth
