"""Does a service answer? What it tells of itself, then its list of models, then one real token.

`serve-check --config FILE --wait SECONDS`, its API key on standard input where it wants one: one
line of JSON, a protocol.serve.Answer. Exit 0 whatever it says, 2 for bad settings.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import read_json
from llamafleet.protocol.serve import (
    GENERATED,
    OVERLOADED,
    Answer,
    ServeConfig,
    State,
    Status,
    status_file,
    told_now,
)

FINAL: tuple[State, ...] = ("held", "failed")
"""States in which it does not become ready by being waited for."""
POLL_S = 0.5
ANSWER_S = 50.0
"""For one token: a long prompt of somebody else may be computed first."""
LONGEST_KEY = 4096
GROWTH_S = 20.0
"""For a token of others, where there is no room for one more request."""
MOST = 1 << 20
"""Bytes of an answer that are read."""
FAILURES = (OSError, http.client.HTTPException, ValueError, AttributeError, TypeError)
"""Whatever an answer may bring."""


class Full(ValueError):
    """It has as many requests as it takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Wait and ask; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="serve-check", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args(argv)
    try:
        config = decode(ServeConfig, read_json(options.config))
    except DecodeError as error:
        print(f"{options.config}: {error}", file=sys.stderr)
        return 2
    key = sys.stdin.readline(LONGEST_KEY).strip() if config.key else ""
    print(json.dumps(asdict(asked(config, key, options.wait))))
    return 0


def asked(config: ServeConfig, key: str, wait_s: float) -> Answer:
    """What it answers once it says that it is ready, or what keeps it from that."""
    deadline = time.monotonic() + wait_s
    while True:
        status = read_status(config)
        state = status.state if status and status.state != "stopped" else None
        if state == "ready":
            problem = _ask(config, key)
            return Answer(1, state, not problem, problem, status)
        if state in FINAL or time.monotonic() >= deadline:
            return Answer(1, state, False, _why(status), status)
        time.sleep(POLL_S)


def read_status(config: ServeConfig) -> Status | None:
    """None: it tells nothing that can be read, or what it told is of a process that has ended."""
    try:
        status = decode(Status, read_json(status_file(config)))
    except DecodeError:
        return None
    return status if told_now(status) else None


def _why(status: Status | None) -> str:
    if status is None:
        return "it tells nothing of itself"
    return f"it is {status.state}{f': {status.reason}' if status.reason else ''}"


def _ask(config: ServeConfig, key: str) -> str:
    """Why it does not serve; "": it named its model and made a token."""
    try:
        models = _json(_request(config, key, "GET", "/v1/models"))
        names = [str(one.get("id")) for one in models.get("data", [])]
        if config.alias not in names:
            return f"GET /v1/models: found {', '.join(names) or 'none'}; expected {config.alias}"
        before = _made(config, key)
        try:
            return _token(config, key)
        except (Full, TimeoutError):
            # Others are served: their tokens prove as much, and a long queue is no fault.
            if _grows(config, key, before):
                return ""
            raise
    except FAILURES as error:
        return f"{type(error).__name__}: {error}"


def _token(config: ServeConfig, key: str) -> str:
    """Why it made none. Raises FAILURES."""
    wish = {"model": config.alias, "prompt": "1", "max_tokens": 1, "temperature": 0}
    made = _json(_request(config, key, "POST", "/v1/completions", wish))
    tokens = (made.get("usage") or {}).get("completion_tokens")
    if not made.get("choices") or tokens != 1:
        return f"POST /v1/completions: found {tokens} tokens; expected 1"
    return ""


def _grows(config: ServeConfig, key: str, before: float) -> bool:
    """It makes tokens for anybody. Raises FAILURES."""
    end = time.monotonic() + GROWTH_S
    while (made := _made(config, key)) <= before and time.monotonic() < end:
        time.sleep(POLL_S)
    return made > before


def _made(config: ServeConfig, key: str) -> float:
    """Tokens so far, by its metrics. Raises FAILURES."""
    page = _request(config, key, "GET", "/metrics").decode(errors="replace")
    found = re.search(rf"^{GENERATED} ([0-9.e+]+)$", page, re.MULTILINE)
    if not found:
        raise ValueError(f"GET /metrics: found no {GENERATED}; expected its figure")
    return float(found[1])


def _json(answer: bytes) -> dict[str, Any]:
    return dict(json.loads(answer))


def _request(config: ServeConfig, key: str, method: str, path: str, body: object = None) -> bytes:
    """The answer. Raises Full, OSError, HTTPException and ValueError."""
    connection = http.client.HTTPConnection(reached(config.address), config.port, timeout=ANSWER_S)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, headers)
        response = connection.getresponse()
        answer = response.read(MOST)
    finally:
        connection.close()
    if response.status != http.client.OK:
        said = " ".join(answer[:300].decode(errors="replace").split())
        full = response.status == http.client.SERVICE_UNAVAILABLE and OVERLOADED in said
        kind = Full if full else ValueError
        raise kind(f"{method} {path}: found {response.status} {said}; expected 200")
    return answer


def reached(address: str) -> str:
    """Where this very host reaches a service that listens there."""
    listens = ipaddress.ip_address(address)
    if listens.is_unspecified:
        return "127.0.0.1" if listens.version == 4 else "::1"
    return address
