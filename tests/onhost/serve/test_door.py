"""Who is let in, with what, and what each is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llamafleet.onhost.serve import body
from llamafleet.onhost.serve.ask import ASKED
from llamafleet.onhost.serve.errors import Receive, Refusal, Send
from llamafleet.onhost.serve.house import Model
from llamafleet.protocol.serve import GENERATED, Limits, State
from tests.onhost.serve.asgi import ALIAS, KEY, Client, Stub, door, get, post, said


def asked(client: Client, stub: Stub | None = None, **options: Any) -> Client:
    return asyncio.run(client.ask(door(stub, **options)[0]))


BODY = {"prompt": "hello"}
SHORT: Any = 0.2
"""Settings are whole seconds."""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": "Bearer "},
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/metrics", "/nothing"])
def test_a_wrong_key_opens_nothing(path: str, headers: dict[str, str]) -> None:
    stub = Stub()
    client = asked(post(BODY, path, headers=headers), stub)
    assert (client.status, client.error["code"]) == (401, "invalid_api_key")
    assert client.error["type"] == "invalid_request_error"
    assert client.header("www-authenticate") == "Bearer"
    assert stub.asked == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_key_opens(scheme: str) -> None:
    client = asked(post(BODY, headers={"authorization": f"{scheme} {KEY}"}))
    assert (client.status, client.json) == (200, {"answer": "hello"})


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_and_readiness_need_no_key_and_tell_one_word(path: str) -> None:
    client = asked(get(path, headers={}))
    assert (client.status, client.json) == (200, {"state": "ready"})


@pytest.mark.parametrize("state", ["loading", "draining", "failed"])
def test_who_is_not_ready_says_so_and_computes_nothing(state: State) -> None:
    stub = Stub()
    app, house = door(stub)
    house.state = state

    async def all_of_it() -> tuple[Client, Client, Client]:
        return (
            await get("/health").ask(app),
            await get("/ready").ask(app),
            await post(BODY).ask(app),
        )

    health, ready, computed = asyncio.run(all_of_it())
    assert (health.status, ready.status, computed.status) == (200, 503, 503)
    assert ready.json == {"state": state}
    assert int(computed.header("retry-after")) > 0
    assert state in computed.error["message"]
    assert stub.asked == []


@pytest.mark.parametrize(
    "path",
    [
        *("/docs", "/redoc", "/openapi.json", "/extras/tokenize", "/v1/embeddings", "/", "/v1"),
        *("/v1/engines/copilot-codex/completions", "/v1/completions/", "//health", "/V1/models"),
    ],
)
def test_there_is_no_other_route(path: str) -> None:
    for client in (get(path), post(BODY, path)):
        assert asked(client).status == 404
        assert client.error["message"].startswith("Invalid URL")


@pytest.mark.parametrize(("path", "allowed"), [("/v1/completions", "POST"), ("/health", "GET")])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_another_method_is_told_which_one(path: str, allowed: str, method: str) -> None:
    client = asked(Client(path, method=method))
    assert (client.status, client.header("allow")) == (405, allowed)


def test_a_model_is_found_by_its_name_and_by_none_else() -> None:
    assert [one["id"] for one in asked(get("/v1/models")).json["data"]] == [ALIAS]
    assert asked(get(f"/v1/models/{ALIAS}")).json["id"] == ALIAS
    for client in (get("/v1/models/gpt-4"), post({**BODY, "model": "gpt-4"})):
        assert asked(client).status == 404
        assert client.error["code"] == "model_not_found"


def test_the_server_gets_the_checked_body_and_no_header_of_the_client() -> None:
    stub = Stub()
    headers = {"authorization": f"Bearer {KEY}", "content-encoding": "gzip", "x-request-id": "1"}
    asked(post({**BODY, "user": "u", "store": True, "seed": -1}, headers=headers), stub)
    assert stub.asked == [{"prompt": "hello", "user": "u", "seed": 2**32 - 1, "model": ALIAS}]
    assert {name for name, _ in stub.scopes[0]["headers"]} == {b"content-type", b"content-length"}


def test_newer_names_of_openai_are_understood() -> None:
    stub = Stub()
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_completion_tokens": 7, "response_format": wanted}
    assert asked(post(body, "/v1/chat/completions"), stub).status == 200
    assert stub.asked[0]["max_tokens"] == 7
    assert stub.asked[0]["response_format"] == {"type": "json_object", "schema": schema}


DEEP = b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
WRONG: dict[str, tuple[object, str]] = {
    "broken": (b'{"prompt": "a', ""),
    "no text": (b"\xff\xfe\x00", ""),
    "no object": (b"[1]", ""),
    "nothing": (b"", ""),
    "deep": (DEEP, ""),
    "a little too deep": ({"prompt": "a", "metadata": json.loads("[" * 70 + "]" * 70)}, ""),
    "a number of 5000 digits": (b'{"prompt":"a","seed":' + b"1" * 5000 + b"}", ""),
    "NaN": (b'{"prompt":"a","temperature":NaN}', ""),
    "infinity": (b'{"prompt":"a","temperature":1e999}', "temperature"),
    "half a surrogate": (b'{"prompt":"\\ud800"}', ""),
    "no prompt": ({"max_tokens": 3}, "prompt"),
    "a number for a text": ({"prompt": 1}, "prompt"),
    "two prompts": ({"prompt": ["a", "b"]}, "prompt"),
    "tokens": ({"prompt": [1, 2]}, "prompt"),
    "no tokens wanted": ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    "too many wanted": ({"prompt": "a", "max_tokens": 10**30}, "max_tokens"),
    "true for a number": ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    "text for a number": ({"prompt": "a", "temperature": "1"}, "temperature"),
    "100k stop words": ({"prompt": "a", "stop": [f"x{n}" for n in range(100_000)]}, "stop"),
    "an empty stop word": ({"prompt": "a", "stop": ""}, "stop"),
    "a long stop word": ({"prompt": "a", "stop": "x" * 1000}, "stop"),
    "two answers": ({"prompt": "a", "n": 2}, "n"),
    "best of two": ({"prompt": "a", "best_of": 2}, "best_of"),
    "logprobs": ({"prompt": "a", "logprobs": 1}, "logprobs"),
    "suffix": ({"prompt": "a", "suffix": "b"}, "suffix"),
    "grammar": ({"prompt": "a", "grammar": 'root ::= "a"'}, "grammar"),
    "bias of no token": ({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias"),
    "bias of many digits": ({"prompt": "a", "logit_bias": {"1" * 5000: 1}}, "logit_bias"),
    "bias too large": ({"prompt": "a", "logit_bias": {"1": 1e30}}, "logit_bias"),
    "bias and min_tokens": ({"prompt": "a", "logit_bias": {"1": 1}, "min_tokens": 1}, "min_tokens"),
    "unknown": ({"prompt": "a", "foo": 1}, "foo"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_is_told_what_is_wrong_with_it(name: str) -> None:
    body, param = WRONG[name]
    stub = Stub()
    client = asked(post(body), stub)
    assert (client.status, client.error["type"]) == (400, "invalid_request_error")
    assert client.error["param"] == (param or None)
    assert len(client.error["message"]) < 400
    assert stub.asked == []


def chat(**fields: Any) -> Client:
    messages = [{"role": "user", "content": "hi"}]
    return asked(post({"messages": messages, **fields}, "/v1/chat/completions"))


def formatted(schema: object) -> Client:
    return chat(response_format={"type": "json_schema", "json_schema": {"schema": schema}})


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


SCHEMAS: dict[str, object] = {
    "no object": [1],
    "a reference that would be fetched": {"$ref": "https://169.254.169.254/latest"},
    "a file": {"$ref": "file:///etc/passwd"},
    "a reference within": {"type": "object", "properties": {"a": {"$ref": "http://x"}}},
    "a regular expression": {"type": "string", "pattern": "^(a+)+$"},
    "nothing to choose from": {"enum": []},
    "no alternative": {"anyOf": []},
    "many values": {"enum": list(range(2000))},
    "many repetitions": {"type": "array", "minItems": 100_000},
    "a long text": {"type": "string", "maxLength": 10**9},
    "a repetition below 0": {"type": "array", "maxItems": -1},
    "large": {"type": "object", "description": "x" * 100_000},
    "many nodes": {"allOf": [{"type": "string"}] * 3000},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_could_end_or_hold_the_process_is_refused(name: str) -> None:
    client = formatted(SCHEMAS[name])
    assert (client.status, client.error["param"]) == (400, "response_format.schema"), name
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMAS[name]}}
    assert chat(tools=[tool]).error["param"] == "tools[0].function.parameters"


def test_schemas_as_pydantic_makes_them_are_taken() -> None:
    schema = {
        "$defs": {"B": {"type": "object", "properties": {"pattern": {"type": "string"}}}},
        "type": "object",
        "properties": {
            "a": {"type": "string", "format": "date", "maxLength": 20},
            "b": {"$ref": "#/$defs/B"},
            "c": {"enum": ["x", "y"]},
            "d": nested(5),
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    assert formatted(schema).status == 200


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ([{"role": "user", "content": "hi"}] * 5000, "messages"),
        ([1], "messages[0]"),
        (["user"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://x"}}],
                }
            ],
            "messages[0].content",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": ["text"]}], "messages[0].content"),
    ],
)
def test_messages_that_are_none_are_refused(messages: object, param: str) -> None:
    client = chat(messages=messages)
    assert (client.status, client.error["param"]) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [
        *({"logprobs": True}, {"top_logprobs": 2}, {"n": 3}, {"response_format": {"type": "xml"}}),
        *({"tools": "x"}, {"tools": [{}]}, {"modalities": ["audio"]}, {"prompt": "x"}),
    ],
)
def test_what_a_chat_can_not_have_is_refused(fields: dict[str, Any]) -> None:
    client = chat(**fields)
    (name,) = fields
    assert client.status == 400
    assert client.error["param"].startswith(name)


def test_a_body_beyond_the_limit_is_read_to_its_end_and_refused() -> None:
    large = b'{"prompt": "' + b"a" * (2 << 20) + b'"}'
    client = asked(post(large), limits=Limits(body_mib=1))
    assert (client.status, client.error["code"]) == (413, "request_too_large")
    assert client.header("connection") == "close"


def test_a_body_that_is_only_said_to_be_too_large_is_refused_too() -> None:
    client = post(BODY)
    client.headers = {**client.headers, "content-length": str(2 << 20)}
    assert asked(client, limits=Limits(body_mib=1)).status == 413


def test_nothing_is_kept_of_what_a_stranger_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who send megabytes without a key take no memory."""
    kept: list[bytes] = []
    parts = body._parts

    async def counted(*args: Any) -> Any:
        told, size = await parts(*args)
        kept.extend(told)
        return told, size

    monkeypatch.setattr(body, "_parts", counted)
    client = asked(post(BODY, headers={}))
    assert (client.status, kept) == (401, [])


def test_a_slow_sender_is_told_so() -> None:
    client = asked(post(BODY, silent=True), limits=Limits(receive_s=SHORT))
    assert (client.status, client.error["code"]) == (408, "request_timeout")


def test_a_client_that_leaves_while_it_sends_is_answered_nothing() -> None:
    client = post(BODY, silent=True)
    client.gone.set()
    assert asked(client).sent == []


def test_one_computes_at_a_time_in_the_order_of_coming_and_more_than_the_limit_wait_for_none() -> (
    None
):
    running, most, order = 0, 0, []

    async def slow(body: dict[str, Any], receive: Receive, send: Send) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(body["prompt"])
        await asyncio.sleep(0.01)
        running -= 1
        await said(send, 200, json.dumps({"answer": body["prompt"]}).encode())

    async def all_at_once() -> list[Client]:
        app, house = door(Stub(slow), limits=Limits(waiting=4))
        clients = [post({"prompt": f"p{number}"}) for number in range(6)]
        await asyncio.gather(*(client.ask(app) for client in clients))
        assert house.line.idle
        assert not house.asks
        return clients

    clients = asyncio.run(all_at_once())
    assert most == 1
    assert order == ["p0", "p1", "p2", "p3"]
    assert [client.status for client in clients] == [200] * 4 + [503] * 2
    assert [client.json["answer"] for client in clients[:4]] == order
    assert clients[-1].error["code"] == "overloaded"
    assert clients[-1].header("retry-after")


def test_who_leaves_the_queue_is_not_computed_for() -> None:
    begun = asyncio.Event()
    go = asyncio.Event()
    stub = Stub()

    async def held(body: dict[str, Any], receive: Receive, send: Send) -> None:
        begun.set()
        await go.wait()
        await said(send, 200, b"{}")

    async def run() -> None:
        stub.answer = held
        app, house = door(stub)
        first, second, third = post({"prompt": "1"}), post({"prompt": "2"}), post({"prompt": "3"})
        tasks = [asyncio.ensure_future(first.ask(app))]
        await begun.wait()
        tasks += [asyncio.ensure_future(one.ask(app)) for one in (second, third)]
        while house.line.waiting < 2:
            await asyncio.sleep(0)
        second.gone.set()
        await tasks[1]
        go.set()
        await asyncio.gather(*tasks)
        assert (first.status, second.sent, third.status) == (200, [], 200)
        assert house.line.idle

    asyncio.run(run())
    assert [one["prompt"] for one in stub.asked] == ["1", "3"]


def test_a_client_that_leaves_stops_the_model() -> None:
    async def until_gone(body: dict[str, Any], receive: Receive, send: Send) -> None:
        while not ASKED.get().left:
            await asyncio.sleep(0.001)

    async def run() -> None:
        app, house = door(Stub(until_gone))
        client = post(BODY)
        task = asyncio.ensure_future(client.ask(app))
        await asyncio.sleep(0.02)
        client.gone.set()
        await asyncio.wait_for(task, 2)
        assert client.sent == []
        assert house.line.idle

    asyncio.run(run())


def stream(*parts: bytes, failure: Exception | None = None, ends: bool = True) -> Stub:
    async def answer(body: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        ASKED.get().failure = failure
        if ends:  # as sse-starlette does, whatever was raised
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        if failure:
            raise failure

    return Stub(answer)


PIECE = b'data: {"id": "1", "choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"
TOO_LONG = ValueError("Requested tokens (900) exceed context window of 512")


def test_a_stream_that_fails_before_its_first_piece_has_a_status_of_its_own() -> None:
    client = asked(post({**BODY, "stream": True}), stream(b"", failure=TOO_LONG))
    assert (client.status, client.error["code"]) == (400, "context_length_exceeded")
    assert "512" in client.error["message"]
    assert "900" in client.error["message"]


@pytest.mark.parametrize("ends", [True, False])
def test_a_stream_that_fails_later_ends_with_an_error_and_not_as_if_all_were_well(
    ends: bool,
) -> None:
    app, house = door(stream(PIECE, failure=RuntimeError("llama_decode returned -3"), ends=ends))
    doubts: list[str] = []
    house.suspect = doubts.append
    client = asyncio.run(post({**BODY, "stream": True}).ask(app))
    first, last = client.text.split(b"\n\n")[:2]
    assert (client.status, first + b"\n\n") == (200, PIECE)
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert b"llama_decode" not in client.text
    assert b"DONE" not in client.text
    assert doubts == ["RuntimeError: llama_decode returned -3"]


def test_a_stream_tells_its_cost_where_it_is_asked_for() -> None:
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    stub = stream(PIECE, b"", DONE)
    client = asked(post(body), stub)
    usage = json.loads(client.text.split(b"\n\n")[1].removeprefix(b"data: "))
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    assert client.text.endswith(DONE)
    assert "stream_options" not in stub.asked[0]


def test_a_stream_without_that_is_passed_on_as_it_is() -> None:
    client = asked(post({**BODY, "stream": True}), stream(PIECE, b"", PIECE, DONE))
    assert client.text == PIECE + PIECE + DONE


def failing(failure: Exception) -> Stub:
    async def answer(body: dict[str, Any], receive: Receive, send: Send) -> None:
        ASKED.get().failure = failure
        await said(send, 500, b'{"error": {"message": "/srv/secret/path"}}')

    return Stub(answer)


def test_what_the_model_raises_is_told_without_the_inside_of_this_server() -> None:
    app, house = door(failing(RuntimeError("/srv/secret: llama_decode returned 1")))
    doubts: list[str] = []
    house.suspect = doubts.append
    client = asyncio.run(post(BODY).ask(app))
    assert (client.status, client.error["type"]) == (500, "server_error")
    assert b"secret" not in client.text
    assert len(doubts) == 1


def test_what_a_request_is_to_blame_for_is_no_doubt_about_the_model() -> None:
    app, house = door(failing(ValueError("its chat template says: roles must alternate")))
    doubts: list[str] = []
    house.suspect = doubts.append
    client = asyncio.run(post(BODY).ask(app))
    assert (client.status, doubts) == (400, [])
    assert "roles must alternate" in client.error["message"]


def test_what_the_server_would_not_take_is_refused_before_it_waits() -> None:
    app, house = door()

    def validate(route: str, body: dict[str, Any]) -> None:
        raise Refusal(400, "no", param="x")

    house.model = Model(Stub(), validate)
    assert asyncio.run(post(BODY).ask(app)).error["param"] == "x"


def test_tokens_are_counted_while_they_are_made() -> None:
    """An answer of minutes is no leap of its rate at its end."""
    made, go = asyncio.Event(), asyncio.Event()

    async def long(body: dict[str, Any], receive: Receive, send: Send) -> None:
        ASKED.get().made = 40
        made.set()
        await go.wait()
        await said(send, 200, b"{}")

    async def run() -> list[bool]:
        app, _ = door(Stub(long))
        asking = asyncio.ensure_future(post(BODY).ask(app))
        await made.wait()
        first = await get("/metrics").ask(app)
        go.set()
        await asking
        second = await get("/metrics").ask(app)
        line = f"{GENERATED} 40.0\n".encode()
        return [line in first.text, line in second.text]

    assert asyncio.run(run()) == [True, True]


def test_requests_are_counted_by_route_and_status_and_what_strangers_type_is_no_label() -> None:
    app, _ = door()

    async def run() -> str:
        await post(BODY).ask(app)
        await post({"x": 1}).ask(app)
        await get("/nothing-of-mine").ask(app)
        return (await get("/metrics").ask(app)).text.decode()

    page = asyncio.run(run())
    assert 'llamafleet_requests_total{route="/v1/completions",status="200"} 1.0' in page
    assert 'llamafleet_requests_total{route="/v1/completions",status="400"} 1.0' in page
    assert 'llamafleet_requests_total{route="other",status="404"} 1.0' in page
    assert "llamafleet_prompt_tokens_total 3.0" in page
    assert "llamafleet_generated_tokens_total 1.0" in page
    assert "llamafleet_time_to_first_token_seconds_count 1.0" in page
    assert "nothing-of-mine" not in page


class Wire:
    """A client's connection of which nothing is taken."""

    def __init__(self) -> None:
        self.aborted = False

    def unsent(self) -> int:
        return 0 if self.aborted else 100_000

    def abort(self) -> None:
        self.aborted = True


async def slow_to_return(body: dict[str, Any], receive: Receive, send: Send) -> None:
    await said(send, 200, b"{}")
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("stub", [stream(PIECE, DONE), Stub(slow_to_return)])
def test_a_connection_is_kept_for_the_next_request(stub: Stub) -> None:
    wire = Wire()
    wire.unsent = lambda: 0  # type: ignore[method-assign]

    async def run() -> str:
        app, _ = door(stub)
        for _ in range(3):
            await post({**BODY, "stream": True}, connection=wire).ask(app)
        return (await get("/metrics").ask(app)).text.decode()

    page = asyncio.run(run())
    assert not wire.aborted
    assert 'llamafleet_requests_total{route="/v1/completions",status="200"} 3.0' in page


async def stream_slow_to_return(body: dict[str, Any], receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in (PIECE, DONE):
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.mark.parametrize(("last", "status"), [(DONE, 200), (PIECE, 499)])
def test_who_goes_once_the_stream_says_that_it_is_done_has_left_nothing(
    last: bytes, status: int
) -> None:
    """As OpenAI's own client does."""

    async def run() -> str:
        app, _ = door(Stub(stream_slow_to_return))
        await post({**BODY, "stream": True}, last=last).ask(app)
        return (await get("/metrics").ask(app)).text.decode()

    line = f'llamafleet_requests_total{{route="/v1/completions",status="{status}"}} 1.0'
    assert line in asyncio.run(run())


def test_a_reader_that_takes_nothing_is_cut_off_and_holds_nobody_up() -> None:
    async def run() -> None:
        app, house = door(stream(*[PIECE] * 50, DONE), limits=Limits(send_s=SHORT))
        wire = Wire()
        slow = post({**BODY, "stream": True}, connection=wire, stuck=asyncio.Event())
        task = asyncio.ensure_future(slow.ask(app))
        await asyncio.sleep(0.05)
        assert house.line.idle  # the model is done with it
        quick = await asyncio.wait_for(post({**BODY, "stream": True}).ask(app), 1)
        assert quick.text.endswith(DONE)
        await asyncio.wait_for(task, 5)
        assert wire.aborted
        assert not house.asks

    asyncio.run(run())
