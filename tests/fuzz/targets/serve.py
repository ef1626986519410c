"""What a service reads: clients' requests, its settings, what the process that serves tells."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import os
from collections import deque
from contextlib import redirect_stderr
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

from llamafleet.facts import gauges, watch_services
from llamafleet.onhost.serve import body, fields, reduction, run, schema, settings
from llamafleet.onhost.serve.child import LAST_LINES, Child, Said
from llamafleet.onhost.serve.errors import Refusal
from llamafleet.onhost.serve.reply import DONE, event
from llamafleet.protocol.job import WHOLE, read_json
from llamafleet.protocol.serve import (
    CREDENTIAL,
    REDUCED,
    STATUS,
    Placement,
    Reduction,
    ServeConfig,
    Status,
)
from tests.fuzz import Target
from tests.fuzz.material import DEEP, ODD, documents, encoded, texts
from tests.fuzz.targets.controller import ESCAPE, plain
from tests.fuzz.targets.verify import LOGS, OOMS
from tests.onhost.serve.asgi import ALIAS, KEY, Client, Stub, door, said

# -- clients ---------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "enum": ["x", "y"]}, "b": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"anyOf": [{"type": "array", "maxItems": 3}, {"type": "null"}]}},
}
CHAT = {
    "model": ALIAS,
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": None},
    ],
    "max_completion_tokens": 5,
    "temperature": 0.5,
    "seed": -1,
    "stream": True,
    "stream_options": {"include_usage": True},
    "logit_bias": {"5": -100},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "metadata": {"a": "b"},
}
COMPLETION = {"model": ALIAS, "prompt": ["Once"], "stop": ["\n", "END"], "n": 1, "top_k": 40}
PATHS = (
    *("/v1/completions", "/v1/chat/completions", "/v1/models", f"/v1/models/{ALIAS}"),
    *("/health", "/ready", "/metrics", "/v1/models/../../x", "/\x1b[2J", ""),
)
STATUSES = {200, 400, 401, 404, 405, 413}
"""What a client may be told by a service that is ready and idle; 500 is a fault of ours."""
LONGEST_WORD = 4000
"""A client's own words are told again, but not without an end."""


def _told(client: Client) -> object:
    """What came back, once it is whole and of its kind."""
    start, last = client.sent[0], client.sent[-1]
    assert start["type"] == "http.response.start" and not last.get("more_body"), client.sent
    assert client.status in STATUSES, client.text[:300]
    if client.status != 200:
        error = client.error
        assert set(error) == {"message", "type", "param", "code"} and error["message"], error
        assert len(error["message"]) < LONGEST_WORD, error["message"][:200]
    return [client.status, client.text.decode()]


def _checked(text: str, _: Path, *, route: fields.Route) -> object:
    """What llama_cpp.server is asked for, or what the client is told."""
    try:
        asked = fields.checked(route, body.parse(encoded(text)), ALIAS)
    except Refusal as refusal:
        assert refusal.status in STATUSES and len(refusal.message) < LONGEST_WORD, refusal
        return json.dumps(refusal.body)
    assert asked["model"] == ALIAS and set(asked) <= set(fields.OF[route]) - fields.NOT_PASSED
    return [*fields.texts(asked)]


def _request(text: str, _: Path) -> object:
    stub = Stub()
    ours, _house = door(stub)
    told = _told(asyncio.run(Client("/v1/chat/completions", encoded(text)).ask(ours)))
    assert len(stub.asked) <= 1
    return told


class Stranger(Client):
    """Whose headers are any bytes."""

    def _scope(self) -> dict[str, Any]:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        return {**super()._scope(), "headers": raw}


def _stranger(words: tuple[str, str, str, str], _: Path) -> object:
    method, path, key, length = words
    headers = {"authorization": key, "content-length": length}
    client = Stranger(
        path, b"{}", method, {name: value for name, value in headers.items() if value}
    )
    ours, _house = door()
    return _told(asyncio.run(client.ask(ours)))


_latin = st.text(st.characters(max_codepoint=255), max_size=20)
_lengths = st.sampled_from(("", "2", "-1", "²", "1e9", "9" * 5000, " 2", "0x2")) | _latin
_keys = st.sampled_from(("", f"Bearer {KEY}", f"bearer  {KEY} ", f"Bearer {KEY}x", "Bearer", "é"))
_paths = st.sampled_from(PATHS) | st.text(max_size=20)
_methods = st.sampled_from(("GET", "HEAD", "POST", "PUT", "x" * 300)) | _latin

# -- llama_cpp.server ------------------------------------------------------------------------------

PIECE = {"id": "c-1", "object": "chat.completion.chunk", "choices": [{"delta": {"content": "Hi"}}]}
STREAM = [event(PIECE).decode(), event(PIECE).decode(), DONE.decode() + "\n\n"]


def _answer(parts: list[str], _: Path) -> object:
    """It reaches the client, or ends in an error that has a name."""

    async def sent(_body: object, _receive: object, send: Any) -> None:
        await said(send, 200, *map(encoded, parts), b"")

    ours, _house = door(Stub(sent))
    options = {"stream": True, "stream_options": {"include_usage": True}, "prompt": "a"}
    client = asyncio.run(Client("/v1/completions", json.dumps(options).encode()).ask(ours))
    assert client.sent and client.status in (200, 400), client.sent
    return client.text.decode(errors="surrogatepass")


# -- settings --------------------------------------------------------------------------------------

CONFIG = plain(
    asdict(
        ServeConfig(
            version=1,
            profile="chat",
            host="gpu-a",
            verify="/etc/llamafleet/verify.json",
            folder="/FOLDER",
            libraries="/FOLDER/libraries",
            model="/srv/model.gguf",
            alias=ALIAS,
            placement=Placement(-1, 4096),
            address="127.0.0.1",
            port=8000,
            key=True,
            gpus=("GPU-1",),
            on_oom="reduce",
        )
    )
)
"""Of a service whose folder is that of the input."""


def _placed(text: str, folder: Path) -> bytes:
    return encoded(text.replace("/FOLDER", str(folder)))


def _settings(text: str, folder: Path) -> object:
    (folder / "libraries").mkdir()
    (folder / "libraries" / WHOLE).write_text("{}")
    path = folder / "serve-chat.json"
    path.write_bytes(_placed(text, folder))
    config = settings.load(path)
    ipaddress.ip_address(config.address)  # What listens there and asks there relies on it.
    return config


def _key(text: str, folder: Path) -> object:
    (folder / CREDENTIAL).write_bytes(encoded(text))
    config = settings.decode(ServeConfig, CONFIG)
    with patch.dict(os.environ, {settings.CREDENTIALS: str(folder)}):
        key = settings.read_key(config)
    assert key
    return key.encode("latin-1").decode()  # It goes into a header.


def _in(folder: Path) -> ServeConfig:
    return settings.decode(ServeConfig, {**CONFIG, "folder": str(folder)})


def _service(folder: Path) -> run.Service:
    return run.Service(_in(folder), placement=Placement(-1, 4096))


def _turned(service: run.Service, reason: str) -> object:
    """A state as people, systemd and the next that asks are told it."""
    told: list[str] = []
    journal = io.StringIO()
    with redirect_stderr(journal), patch.object(run, "notify", lambda *lines: told.extend(lines)):
        service.turn("failed", reason)
    status = read_json(Path(service.config.folder, STATUS))
    return [told, journal.getvalue().removesuffix("\n"), status]


REDUCTION = plain(
    asdict(Reduction(1.5, "found no memory", Placement(-1, 4096), Placement(20, 2048)))
)


def _reduction(text: str, folder: Path) -> object:
    (folder / REDUCED).write_bytes(encoded(text))
    found = reduction.read(_in(folder))
    return found and [found.now, found.was, found.at, _turned(_service(folder), run._why(found))]


# -- parent and child ------------------------------------------------------------------------------

SAID = [plain(asdict(Said("ready", "", 1.5))), plain(asdict(Said("failed", "model: found none")))]


def _child(errors: str, output: str, folder: Path) -> Child:
    """One that said so and has ended."""
    (folder / "errors").write_bytes(encoded(errors))
    (folder / "output").write_bytes(encoded(output))
    child = Child.__new__(Child)
    child.hung = False
    child.lines, child.loud = deque(maxlen=LAST_LINES), deque(maxlen=LAST_LINES)
    child.process = SimpleNamespace(  # type: ignore[assignment]
        stdout=(folder / "output").open("rb"), stderr=(folder / "errors").open("rb")
    )
    return child


def _says(text: str, folder: Path) -> object:
    return list(_child("", text, folder).said())


def _ended(words: tuple[str, str], folder: Path) -> object:
    """Why it ended, as people are told."""
    log, reason = words
    child = _child(log, "", folder)
    with patch("os.write"):
        child._follow()
    said = Said("failed", reason) if reason else Said("ready")
    service, told = _service(folder), []
    with patch.object(service, "turn", lambda state, why="": told.append(why)):
        code = service._failed(said, 1, child)
    assert len(told) == 1 and code in (run.EXIT_FAILED, run.EXIT_USAGE)
    return _turned(_service(folder), told[0])


# -- whoever watches -------------------------------------------------------------------------------

ROW = (
    "0, GPU-4e5ab3a1-0000-0000-0000-000000000001, 00000000:C1:00.0, 20034, 4046, 24564, 98, 310.50,"
    " 450.00, 2520, 10501, 61, 0x0000000000000004, 25, None, NVIDIA GeForce RTX 4090"
)
SERVICE = {
    "profile": "chat",
    "state": "ready",
    "reason": "",
    "metrics": {gauges.GENERATED: 5.0},
    "at": 12.5,
    "alias": ALIAS,
    "gpus": ["GPU-1"],
}
RECORD = f"""\
Welcome!
#begin 1
level|1
gpu|{ROW}
gpu|GPU0000:07:00.0: Unknown Error
gpu_rc|0
app|GPU-4e5ab3a1-0000-0000-0000-000000000001, 4242, 2000, /opt/llamafleet/bin/python
app_rc|0
owner|/proc/4242 llamafleet
unit|/proc/4242/cgroup:llamafleet-serve@chat.service
service|{json.dumps(SERVICE)}
service_rc|0
#end 1
"""
STATUS_FILE = plain(
    asdict(Status(1, "chat", "ready", 1.5, 7, placement=Placement(-1, 512), start_ticks=5))
)
PAGE = "# HELP x\nllamafleet_generated_tokens_total 5.0\nllamafleet_requests_waiting 0.0 1700000\n"


def _record(text: str, _: Path) -> object:
    return gauges.parse(text.split("\n"))


class _Answered:
    """A connection in the place of http.client's."""

    page = b""
    status = 200

    def __init__(self, *_: object, **__: object) -> None: ...

    def request(self, *_: object, **__: object) -> None: ...

    def getresponse(self) -> _Answered:
        return self

    def read(self, most: int) -> bytes:
        return self.page[:most]

    def close(self) -> None: ...


def _watched(files: tuple[str, str, str], folder: Path) -> object:
    """From a service's own files and answers to what is known of it on the controller."""
    config, status, page = files
    path = folder / "serve-chat.json"
    path.write_bytes(_placed(config, folder))
    (folder / "serve-chat.key").write_text(KEY)
    (folder / STATUS).write_bytes(encoded(status))
    forms = str(folder / "serve-*.json"), str(folder / "serve-*.key")
    answered = type("Answered", (_Answered,), {"page": encoded(page)})
    with (
        patch("http.client.HTTPConnection", answered),
        patch.object(watch_services, "_listening", lambda address, port: {"1"}),
        patch.object(watch_services, "_sockets", lambda own: {"1"}),
        patch.object(watch_services, "_started", lambda pid: 5),
    ):
        service, found, key = watch_services._settings(str(path), *forms)
        if found is not None:
            service.update(watch_services._asked(found, key, {7: 7}, [*gauges.METRICS]))
    line = json.dumps(service)
    assert "\n" not in line
    (one,) = gauges.parse(["#begin 1", f"service|{line}", "#end 1"]).services
    assert one.profile == "chat"
    return one


def _requests(name: str, route: fields.Route, base: dict[str, Any], *known: object) -> Target:
    """Each field with each odd value of JSON among them."""
    least = {name: base[name] for name in ("messages", "prompt") if name in base}
    fielded = [
        f'{json.dumps(least)[:-1]}, "{field}": {odd}}}' for field in fields.OF[route] for odd in ODD
    ]
    return Target(
        name,
        ("onhost.serve.body:parse", "onhost.serve.fields:checked", "onhost.serve.schema:check"),
        documents([base]),
        partial(_checked, route=route),
        known=(*DEEP, "[]", '"a"', "{", "\ud800", *fielded, *map(json.dumps, known)),
        printable=False,
    )


TARGETS = (
    _requests(
        "a request for a chat",
        "chat",
        CHAT,
        {"messages": ["user"]},
        {"messages": [{"role": "user", "content": ["text"]}]},
        {"messages": [{"role": ["user"], "content": ""}]},
        *(
            {**CHAT, "response_format": {"type": "json_object", "schema": {word: value}}}
            for word in (*schema._BOUNDS, *schema._CHOICES, *schema.REFUSED, "$ref", "type")
            for value in ("x", -1, 1e308, [], {}, [[]])
        ),
    ),
    _requests("a request for a completion", "completions", COMPLETION),
    Target(
        "a request and its answer",
        ("onhost.serve.door:Door",),
        documents([CHAT]),
        _request,
        known=(*DEEP, "\ud800", json.dumps({"messages": ["user"]})),
        printable=False,
        share=0.3,
    ),
    Target(
        "a stranger's method, path and headers",
        ("onhost.serve.door:Door",),
        st.tuples(_methods, _paths, _keys | _latin, _lengths),
        _stranger,
        known=(("POST", "/v1/completions", f"Bearer {KEY}", "9" * 5000),),
        printable=False,
        share=0.3,
    ),
    Target(
        "what llama_cpp.server answers",
        ("onhost.serve.reply:Reply",),
        st.lists(texts(STREAM, free=40), min_size=1, max_size=4),
        _answer,
        known=(
            ["data: {]}", DONE.decode()],
            ["data: [" + "{}," * 9 + "]\n\n", DONE.decode()],
            ['data: {"a":' + "[" * 100_000 + "}\n\n", DONE.decode()],
        ),
        printable=False,
        share=0.3,
    ),
    Target(
        "a service's settings",
        ("onhost.serve.settings:load",),
        documents([CONFIG]),
        _settings,
        (settings.Refused,),
        known=(
            *DEEP,
            "\ud800",
            json.dumps({**CONFIG, "address": "gpu-a"}),
            json.dumps({**CONFIG, "address": "\0"}),
            json.dumps({**CONFIG, "alias": ESCAPE}),
            json.dumps({**CONFIG, "libraries": ESCAPE}),
            json.dumps({**CONFIG, "libraries": "/" + ESCAPE}),
        ),
        printable=False,
    ),
    Target(
        "a service's key",
        ("onhost.serve.settings:read_key",),
        texts([KEY + "\n"]),
        _key,
        (settings.Refused,),
        known=("", KEY + "\r\n", KEY + "\nX-Header: 1", "é" * 30, "\ud800", "a" * 100_000),
        share=0.5,
    ),
    Target(
        "what an out of memory brought",
        ("onhost.serve.reduction:read",),
        documents([REDUCTION]),
        _reduction,
        known=(*DEEP, json.dumps({**REDUCTION, "reason": ESCAPE})),
        share=0.5,
    ),
    Target(
        "what the process that serves says",
        ("onhost.serve.child:Child",),
        documents(SAID),
        _says,
        known=(*DEEP, "\ud800", '{"state": "ready", "load_s": 1e999}'),
        printable=False,
    ),
    Target(
        "why the process that serves ended",
        ("onhost.serve.run:Service",),
        st.tuples(texts([*OOMS, *LOGS]), st.sampled_from(("", "model: found none")) | st.text()),
        _ended,
        known=((ESCAPE, ESCAPE), ("llama: \x1b[2J\n" * 9, ""), ("", "a\nb")),
        share=0.5,
    ),
    Target(
        "a record of watch.sh",
        ("facts.gauges:parse",),
        texts([RECORD]),
        _record,
        (gauges.NoRecord,),
        known=(
            RECORD.replace("NVIDIA GeForce", "\x1b[2J"),
            RECORD.replace("0x0000000000000004", "0x" + "f" * 16),
            RECORD.replace(" 4242,", " " + "9" * 5000 + ","),
            RECORD.replace(" 4242,", " ٣,"),
            RECORD.replace("5.0", "1e999"),
            RECORD.replace("5.0", "NaN"),
            RECORD.replace("12.5", "Infinity"),
        ),
    ),
    Target(
        "a service that is watched",
        ("facts.watch_services:main", "facts.gauges:parse"),
        st.tuples(documents([CONFIG]), documents([STATUS_FILE]), texts([PAGE])),
        _watched,
        known=(
            *((deep, "{}", "") for deep in DEEP),
            *((json.dumps(CONFIG), deep, PAGE) for deep in DEEP),
            (json.dumps({**CONFIG, "port": float("inf")}), json.dumps(STATUS_FILE), PAGE),
            (json.dumps(CONFIG), json.dumps({**STATUS_FILE, "reason": ESCAPE}), PAGE),
            (json.dumps(CONFIG), json.dumps({**STATUS_FILE, "state": None}), PAGE),
            (json.dumps(CONFIG), json.dumps({**STATUS_FILE, "pid": float("inf")}), PAGE),
            (json.dumps(CONFIG), json.dumps(STATUS_FILE), PAGE.replace("5.0", "nan")),
            (json.dumps(CONFIG), json.dumps(STATUS_FILE), PAGE.replace("5.0", "1e999")),
        ),
    ),
)
