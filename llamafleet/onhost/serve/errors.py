"""What the service answers instead of a model's words: OpenAI's error object, and small pages."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Message = Mapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Scope = Mapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RETRY_S = 5
"""What a client is told to wait where the service takes no request just now."""


class Refusal(Exception):
    """An answer of another status than 200. The text goes to the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI words it: https://platform.openai.com/docs/guides/error-codes."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": said}


class Left(Exception):
    """The client has gone, or is cut off: there is nobody to answer."""


def wrong(param: str, found: str, expected: str) -> Refusal:
    """A value of a request that is not taken."""
    return Refusal(400, f"{param}: found {found}; expected {expected}", param=param)


def later(message: str, code: str) -> Refusal:
    """It may be asked again soon."""
    return Refusal(503, message, code=code, headers=(("retry-after", str(RETRY_S)),))


def unauthorised(given: bool) -> Refusal:
    message = (
        "Incorrect API key provided."
        if given
        else "You didn't provide an API key. Send it as: Authorization: Bearer YOUR_KEY"
    )
    challenge = (("www-authenticate", "Bearer"),)
    return Refusal(401, message, code="invalid_api_key", headers=challenge)


def no_model(name: str, alias: str) -> Refusal:
    message = f"The model `{name[:80]}` does not exist; this service has `{alias}`"
    return Refusal(404, message, code="model_not_found", param="model")


async def say(
    send: Send,
    status: int,
    data: object,
    headers: tuple[tuple[str, str], ...] = (),
    *,
    kind: str = "application/json",
) -> None:
    """A whole answer: `data` as JSON, or bytes of another `kind`."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    fixed = (("content-type", kind), ("content-length", str(len(body))))
    encoded = [(name.encode(), value.encode()) for name, value in (*fixed, *headers)]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def refuse(send: Send, refusal: Refusal) -> None:
    await say(send, refusal.status, refusal.body, refusal.headers)
