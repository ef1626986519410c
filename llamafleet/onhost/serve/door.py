"""The door of the service: who comes in, with what, and what each is told.

A pure ASGI application around the one of llama_cpp.server, of which it lets through the two routes
that compute.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sys
import traceback
from typing import Any, cast

from llamafleet.onhost.serve import body as bodies
from llamafleet.onhost.serve import fields
from llamafleet.onhost.serve.ask import ASKED, Ask
from llamafleet.onhost.serve.errors import (
    Left,
    Message,
    Receive,
    Refusal,
    Scope,
    Send,
    later,
    no_model,
    refuse,
    say,
    too_long,
    unauthorised,
)
from llamafleet.onhost.serve.fields import Body, Route
from llamafleet.onhost.serve.house import House, Model
from llamafleet.onhost.serve.metrics import KIND, Metrics
from llamafleet.onhost.serve.reply import CONNECTION, Reply
from llamafleet.protocol.serve import OVERLOADED, Limits

COMPUTE: dict[str, Route] = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
HEALTH, READY, METRICS, MODELS = "/health", "/ready", "/metrics", "/v1/models"
OPEN = frozenset({HEALTH, READY})
"""Answered without a key: they tell a state in one word."""
LEFT = 499
"""The status by which a request is counted whose client left, as nginx has it."""
_TOO_LONG = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")


class Door:
    """`key` None: everybody may come in."""

    def __init__(
        self, alias: str, key: str | None, limits: Limits, house: House, metrics: Metrics
    ) -> None:
        self._alias, self._limits = alias, limits
        self._key = key.encode() if key is not None else None
        self._house, self._metrics = house, metrics
        metrics.of_line(
            lambda: house.line.waiting, lambda: not house.line.idle, lambda: tuple(house.asks)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            status = await self._answered(scope, bodies.Sent(receive, _length(scope)), send)
        except Left:
            status = LEFT
        known = path in COMPUTE or path in OPEN or path in (METRICS, MODELS)
        # Of what strangers type no label is made.
        self._metrics.answered(path if known else "other", status)

    async def _answered(self, scope: Scope, sent: bodies.Sent, send: Send) -> int:
        """The status of the answer. Raises Left."""
        try:
            self._let_in(scope)
            if (route := COMPUTE.get(scope["path"])) is None:
                return await self._get(scope, send)
            await self._post(route, scope, sent, send)
        except Refusal as refusal:
            # One whose body came too slowly is not waited for again.
            if refusal.status != 408:
                await bodies.skip(sent, self._limits)
            await refuse(send, refusal)
            return refusal.status
        return 200

    def _let_in(self, scope: Scope) -> None:
        """Raises Refusal."""
        _one_length(scope)
        if self._key is None or scope["path"] in OPEN:
            return
        given = _header(scope, b"authorization") or b""
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise unauthorised(bool(given))

    async def _get(self, scope: Scope, send: Send) -> int:
        """A page of our own; its status. Raises Refusal."""
        path, state = scope["path"], self._house.state
        if path not in (HEALTH, READY, METRICS, MODELS) and not path.startswith(f"{MODELS}/"):
            raise Refusal(404, f"Invalid URL ({scope['method'][:20]} {path[:80]})")
        if scope["method"] not in ("GET", "HEAD"):
            raise _no_method(scope, "GET")
        status = 200
        if path == METRICS:
            await say(send, 200, self._metrics.page(), kind=KIND)
        elif path == HEALTH:
            await say(send, 200, {"state": state})
        elif path == READY:
            status = 200 if state == "ready" else 503
            await say(send, status, {"state": state})
        else:
            await say(send, 200, self._models(path.removeprefix(MODELS).strip("/")))
        return status

    def _models(self, name: str) -> dict[str, Any]:
        """The list, or the one of that name. Raises Refusal."""
        model = {"id": self._alias, "object": "model", "created": 0, "owned_by": "llamafleet"}
        if not name:
            return {"object": "list", "data": [model]}
        if name != self._alias:
            raise no_model(name, self._alias)
        return model

    async def _post(self, route: Route, scope: Scope, sent: bodies.Sent, send: Send) -> None:
        """Raises Refusal and Left."""
        house = self._house
        if scope["method"] != "POST":
            raise _no_method(scope, "POST")
        if house.model is None or house.state != "ready":
            raise later(f"the service is {house.state}, not ready", house.state)
        if len(house.asks) >= self._limits.waiting:
            text = f"{len(house.asks)} requests are under way; expected fewer than that"
            raise later(text, OVERLOADED)
        ask = Ask()
        house.asks.add(ask)
        try:
            # In threads: who asks for health or metrics meanwhile is answered.
            data = await asyncio.to_thread(bodies.parse, await bodies.read(sent, self._limits))
            wanted = fields.checked(route, data, self._alias)
            ask.usage = fields.wants_usage(data)
            await asyncio.to_thread(house.model.validate, route, wanted)
            connection = scope.get("state", {}).get(CONNECTION)
            reply = Reply(send, connection, self._limits.send_s, ask)
            watching = asyncio.ensure_future(_watch(sent.receive, ask, reply))
            try:
                await self._answer(house.model, ask, scope, wanted, reply)
            except Left:
                if not house.draining or reply.committed:
                    reply.cut()
                    raise
                raise later("the service ends before this answer is whole", "draining") from None
            finally:
                watching.cancel()
        finally:
            house.asks.discard(ask)

    async def _answer(
        self, model: Model, ask: Ask, scope: Scope, wanted: Body, reply: Reply
    ) -> None:
        """Compute and send. Raises Refusal and Left."""
        try:
            async with self._house.line.turn(ask):
                failure = await _compute(model, ask, scope, wanted, reply)
        finally:
            self._metrics.asked(ask)
        if failure is not None:
            self._blame(failure)
        if (failure is not None or reply.refused) and not reply.committed:
            raise self._of(failure, reply.refused)
        if failure is not None:
            reply.end_with(self._of(failure, None).body)
        if not await reply.finish():
            raise Left

    def _of(self, failure: BaseException | None, status: int | None) -> Refusal:
        """What a client is told of it: nothing of this server's inside."""
        text = str(failure)
        if found := _TOO_LONG.search(text):
            return too_long(found[2], found[1])
        if isinstance(failure, ValueError):
            return Refusal(400, f"the model can't take this request: {text[:200]}")
        if failure is None and status is not None and 400 <= status < 500:
            return Refusal(status, "llama_cpp.server refused this request")
        return Refusal(500, "The server had an error while processing your request. Sorry!")

    def _blame(self, failure: BaseException) -> None:
        """What no request explains is a doubt about the model, and for the journal."""
        if not isinstance(failure, ValueError):
            traceback.print_exception(failure, file=sys.stderr)
            self._house.suspect(f"{type(failure).__name__}: {failure}")


async def _compute(
    model: Model, ask: Ask, scope: Scope, wanted: Body, reply: Reply
) -> BaseException | None:
    """Have llama_cpp.server answer; what the model raised. Raises Left."""
    text = _encoded(wanted)
    told = ASKED.set(ask)
    # A task of its own, which has the request in its context, and so have its threads.
    computing = asyncio.ensure_future(model.app(_inner(scope, text), _again(text, ask), reply.put))
    ASKED.reset(told)
    await asyncio.wait({computing})
    raised = computing.exception()
    ask.check()
    return ask.failure or _root(raised)


def _encoded(wanted: Body) -> bytes:
    try:
        return json.dumps(wanted, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refusal(400, "a text holds half of a surrogate pair", code="invalid_json") from None


def _inner(scope: Scope, text: bytes) -> dict[str, Any]:
    """The same request with the body that was checked, and no header that counts for anything."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(text)).encode()),
    ]
    return {**scope, "headers": headers, "query_string": b"", "state": {}}


def _again(text: bytes, ask: Ask) -> Receive:
    """Gives the body once, then nothing until the client leaves."""
    left = [text]

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        await ask.gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def _watch(receive: Receive, ask: Ask, reply: Reply) -> None:
    """Tell when the client leaves; a server says the same when the answer is whole."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not reply.ending:
        ask.leave()


def _root(raised: BaseException | None) -> BaseException | None:
    """The first that is no mere group of others."""
    while raised is not None and (within := getattr(raised, "exceptions", None)):
        raised = cast(BaseException, within[0])
    return raised


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _one_length(scope: Scope) -> None:
    """Who stands between may have read the other of the two: RFC 9112, section 6.1. Raises
    Refusal."""
    if None not in (_header(scope, b"content-length"), _header(scope, b"transfer-encoding")):
        text = "the request has both Content-Length and Transfer-Encoding; expected one of them"
        raise Refusal(400, text, headers=(("connection", "close"),))


def _length(scope: Scope) -> int | None:
    told = _header(scope, b"content-length") or b""
    return int(told) if re.fullmatch(rb"[0-9]{1,20}", told) else None


def _no_method(scope: Scope, allowed: str) -> Refusal:
    text = f"Not allowed to {scope['method'][:20]} on {scope['path'][:80]} (HINT: use {allowed})"
    return Refusal(405, text, headers=(("allow", allowed),))
