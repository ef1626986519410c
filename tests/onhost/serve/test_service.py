"""A service as a host runs it, asked by the client that people use."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest

from llamafleet.onhost.verify import synth
from tests.onhost.llama import needs_llama
from tests.onhost.serve.schemas import schema
from tests.serving import ALIAS, KEY, Service, model

pytestmark = needs_llama

PROMPTS = [f"the w{300 + number} of w{400 + number} is" for number in range(32)]


TEMPLATE = (
    # As long as real ones, and one line of the log.
    f"{{# {'x' * 9000} #}}"
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system speaks first') }}{% endif %}{{ m.content }} {% endfor %}"
)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template of its own, and a token as long as some of real ones."""
    folder = tmp_path_factory.mktemp("models")
    made, script = folder / "model.gguf", "gguf.scripts.gguf_new_metadata"

    def vocabulary(size: int) -> Any:
        tokens, *rest = VOCABULARY(size)
        return [*tokens[:-1], LONG.encode()], *rest

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(synth, "vocabulary", vocabulary)
        plain = model(folder)
    command = [sys.executable, "-m", script, "--chat-template", TEMPLATE, plain, made]
    subprocess.run(command, check=True, capture_output=True)
    return made


VOCABULARY, LONG = synth.vocabulary, "z" * 50
BYTE_E2, BYTE_FF = 3 + 0xE2, 3 + 0xFF
"""Tokens of the synthetic vocabulary: the first of three bytes, and one that no text has."""
ODD = {
    **{"CONFIG_FILE": "/nowhere", "N_CTX": "64", "HOST": "0.0.0.0", "API_KEY": "x" * 20},
    **{"TENSOR_SPLIT": "nonsense", "CACHE": "true", "LLAMA_CPP_LIB_PATH": "/nowhere"},
}
"""What llama_cpp.server, or llama_cpp, would read from the environment."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, gguf: Path) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("service"), gguf, limits={"send_s": 5, "drain_s": 5})
    with made.running(ODD) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture(autouse=True)
def lives_on(service: Service) -> Iterator[None]:
    """After whatever a test did the same process still answers."""
    child = service.child()
    yield
    assert service.child() == child, service.said()
    assert service.complete(max_tokens=1)["usage"]["completion_tokens"] == 1


def answer(client: openai.OpenAI, prompt: str, tokens: int = 6) -> str:
    made = client.completions.create(
        model=ALIAS, prompt=prompt, max_tokens=tokens, temperature=0, seed=1
    )
    return made.choices[0].text


def test_completions_and_chats_whole_and_as_streams(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == [ALIAS]
    whole = client.completions.create(model=ALIAS, prompt="the", max_tokens=8, temperature=0)
    assert whole.model == ALIAS
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    pieces = list(
        client.completions.create(
            model=ALIAS,
            prompt="the",
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert pieces[-1].usage == whole.usage
    messages: Any = [{"role": "user", "content": "the"}]
    chat = client.chat.completions.create(
        model=ALIAS, messages=messages, max_completion_tokens=8, temperature=0
    )
    streamed = client.chat.completions.create(
        model=ALIAS, messages=messages, max_tokens=8, temperature=0, stream=True
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in streamed)
    assert text == chat.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_models_template_refuses_is_told_in_its_words(
    service: Service, stream: bool
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    body = {"messages": messages, "stream": stream}
    status, told, _ = service.ask("/v1/chat/completions", body)
    assert status == 400
    assert "the system speaks first" in told["error"]["message"]


def test_a_stream_comes_piece_by_piece(client: openai.OpenAI) -> None:
    start = time.monotonic()
    times = [
        time.monotonic() - start
        for _ in client.completions.create(
            model=ALIAS, prompt="a", max_tokens=100, temperature=0, stream=True
        )
    ]
    assert len(times) > 50
    assert times[0] < times[-1] / 2


def test_streams_that_are_read_to_their_end_are_counted_as_answered(
    service: Service, client: openai.OpenAI
) -> None:
    before = answered(service)
    for _ in range(20):
        list(client.completions.create(model=ALIAS, prompt="a", max_tokens=2, stream=True))
    end = time.monotonic() + 10
    while (now := answered(service) - before).total() < 20 and time.monotonic() < end:
        time.sleep(0.05)
    assert now == Counter({"200": 20})


def answered(service: Service) -> Counter[str]:
    """Completions by status."""
    page = service.ask("/metrics")[1]["text"]
    line = r'^llamafleet_requests_total{route="/v1/completions",status="(\d+)"} (\d+)'
    return Counter({status: int(number) for status, number in re.findall(line, page, re.M)})


@pytest.mark.parametrize("token", [BYTE_FF, BYTE_E2])
def test_bytes_that_are_no_text_hold_no_stream_back(service: Service, token: int) -> None:
    """llama_cpp would try all of them anew at each token: 300 took 8.6 s on two busy cores, in
    which nobody got a piece."""
    asked = {"prompt": "a", "max_tokens": 400, "logit_bias": {token: 100}, "temperature": 0}
    start = time.monotonic()
    whole = service.complete(**asked)
    status, told, _ = service.ask("/v1/completions", {**asked, "stream": True})
    assert status == 200
    pieces = [json.loads(one[6:]) for one in told["text"].split("\n\n") if "{" in one]
    assert "".join(one["choices"][0]["text"] for one in pieces) == whole["choices"][0]["text"]
    assert whole["usage"]["completion_tokens"] == 400
    assert time.monotonic() - start < 8


def test_a_token_of_many_bytes_is_not_lost(service: Service) -> None:
    for stream in (False, True):
        asked = {"prompt": "a", "max_tokens": 2, "logit_bias": {511: 100}, "stream": stream}
        status, told, _ = service.ask("/v1/completions", asked)
        assert (status, str(told).count(LONG)) == (200, 2)


def test_a_schema_is_kept_to(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = client.chat.completions.create(
        model=ALIAS,
        messages=[{"role": "user", "content": "the"}],
        response_format=wanted,
        max_tokens=80,
        temperature=0,
    )
    assert json.loads(made.choices[0].message.content or "")["colour"] in ("red", "green")


def test_32_clients_get_each_its_own_answer(service: Service, client: openai.OpenAI) -> None:
    alone = [answer(client, prompt) for prompt in PROMPTS]
    assert len(set(alone)) > 16
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda prompt: answer(client, prompt), PROMPTS))
    assert together == alone


HARD: dict[str, tuple[dict[str, Any], int]] = {
    "longer than the context": ({"prompt": "abcdefg " * 2000}, 400),
    "longer, as a stream": ({"prompt": "abcdefg " * 2000, "stream": True}, 400),
    "as long as the context": ({"prompt": "the " * 800, "max_tokens": 3}, 400),
    "more tokens than the context": ({"prompt": "the " * 100, "max_tokens": 10**9}, 200),
    "a zero byte": ({"prompt": "a\0b"}, 200),
    "nothing": ({"prompt": ""}, 200),
    "bias of a token": ({"prompt": "a", "logit_bias": {"300": 100}}, 200),
    "bias of no token": ({"prompt": "a", "logit_bias": {"512": 100}}, 400),
    "min_tokens": ({"prompt": "a", "min_tokens": 3}, 200),
    "mirostat of no entropy": ({"prompt": "a", "mirostat_mode": 1, "mirostat_tau": 0}, 200),
    "nothing left to sample": ({"prompt": "a", "top_k": 0, "top_p": 0, "min_p": 1}, 200),
    "penalties": ({"prompt": "a", "repeat_penalty": 0.01, "frequency_penalty": 2}, 200),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_requests_are_answered_and_the_service_lives_on(service: Service, name: str) -> None:
    body, status = HARD[name]
    found, told, _ = service.ask("/v1/completions", {"max_tokens": 3, **body})
    assert found == status, told
    if status != 200:
        assert told["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "</s>" * 100_000},
        {"prompt": "a" * 8_000_000},
        {"messages": [{"role": "user", "content": "</s>" * 50}] * 2000},
    ],
)
def test_a_text_far_beyond_the_context_costs_nobody_any_time(
    service: Service, body: dict[str, Any]
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    start = time.monotonic()
    status, told, _ = service.ask(path, body)
    assert (status, told["error"]["code"]) == (400, "context_length_exceeded")
    assert time.monotonic() - start < 3


SCHEMAS: list[Any] = [
    {},
    {"type": "nonsense"},
    {"$ref": "#/"},
    {"$ref": "#/nowhere"},
    {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
    {"type": "array", "items": {"$ref": "#/items"}, "minItems": 256},
    {"const": "\0"},
    {"const": ""},
    {"enum": ["\ud83d\ude00" * 50, None, 1e300]},
    {"type": "array", "minItems": 200, "items": {"type": "array", "minItems": 200}},
    {"type": "integer", "minimum": 10, "maximum": 3},
    {"type": "object", "properties": {"\n\"'\\": {"type": "string"}}, "required": ["x"]},
    {"anyOf": [{"type": "string"}] * 1000},
    {"oneOf": [{"$ref": "#/oneOf/0"}]},
]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_schemas_that_make_odd_grammars_end_nothing(service: Service, number: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[number]}}
    messages = [{"role": "user", "content": "a"}]
    body = {"messages": messages, "max_tokens": 12, "response_format": wanted}
    status, told, _ = service.ask("/v1/chat/completions", body)
    assert status in (200, 400), told


@pytest.mark.long
def test_random_schemas_for_a_minute_end_nothing(service: Service) -> None:
    random, found, end = Random(1), Counter[int](), time.monotonic() + 60
    while time.monotonic() < end:
        wanted = {"type": "json_schema", "json_schema": {"schema": schema(random)}}
        body = {
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 20,
            "temperature": random.choice((0, 1, 2)),
            "response_format": wanted,
        }
        status, told, _ = service.ask("/v1/chat/completions", body)
        assert status in (200, 400), (wanted, told)
        found[status] += 1
    print(found)
    assert found[200] > found[400]


def test_a_key_is_nowhere_to_be_read(service: Service) -> None:
    assert service.process
    assert service.ask("/v1/models", key="sk-another-0123456789")[0] == 401
    assert service.ask("/v1/models", key=None)[0] == 401
    for pid in (service.process.pid, service.child()):
        for name in ("cmdline", "environ"):
            assert KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert KEY not in service.said()
    for pid in (service.process.pid, service.child()):
        # Nor in a core file, which holds all of a process's memory.
        assert "core file size        0                    0 " in (
            Path(f"/proc/{pid}/limits").read_text()
        )
    for file in service.folder.rglob("*"):
        assert KEY not in file.read_text(errors="replace")


def test_a_client_that_leaves_frees_the_model(service: Service) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 100_000}).encode()
    for stream in (False, True):
        asked = body[:-1] + b', "stream": true}' if stream else body
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        for how in (socket.SHUT_WR, socket.SHUT_RDWR):
            with socket.create_connection(("127.0.0.1", service.port)) as gone:
                gone.sendall(f"{head}content-length: {len(asked)}\r\n\r\n".encode() + asked)
                time.sleep(0.1)
                gone.shutdown(how)
                start = time.monotonic()
                service.complete(max_tokens=1)
            # 500 tokens would take seconds.
            assert time.monotonic() - start < 1


def test_the_metrics_tell_what_was_served(service: Service) -> None:
    page = service.ask("/metrics")[1]["text"]
    figures = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if not line.startswith("#")
    }
    assert figures["llamafleet_ready"] == 1
    assert figures['llamafleet_state{state="ready"}'] == 1
    assert figures["llamafleet_context_tokens"] == 512
    made = figures["llamafleet_generated_tokens_total"]
    service.complete(max_tokens=5)
    later = service.ask("/metrics")[1]["text"]
    assert f"llamafleet_generated_tokens_total {made + 5}" in later
    assert 'fingerprint="f00"' in page
    assert figures["process_resident_memory_bytes"] > 1 << 20


def test_the_journal_gets_what_people_read_and_no_more(service: Service) -> None:
    lines = service.said().splitlines()
    assert "llamafleet: ready" in lines
    assert not [line for line in lines if "tensor" in line or "metadata" in line]
    assert len(lines) < 10, "\n".join(lines)
    assert len(service.said()) < 2000


def test_its_state_is_told_with_what_is_in_force(service: Service) -> None:
    status = service.status()
    assert service.process
    assert (status["state"], status["pid"]) == ("ready", service.process.pid)
    assert status["fingerprint"] == "f00"
    assert status["placement"]["n_ctx"] == 512
    assert 0 < status["load_s"] < 60


@pytest.fixture
def own(tmp_path: Path, gguf: Path) -> Service:
    return Service(tmp_path, gguf, limits={"drain_s": 20})


def until_it_computes(service: Service) -> None:
    while "llamafleet_requests_computing 1.0" not in service.ask("/metrics")[1]["text"]:
        time.sleep(0.01)


def test_a_drain_lets_answers_end_and_takes_no_new_one(own: Service) -> None:
    with own.running():
        answers: list[dict[str, Any]] = []
        asking = threading.Thread(target=lambda: answers.append(own.complete(max_tokens=400)))
        asking.start()
        until_it_computes(own)
        assert own.process
        own.process.send_signal(signal.SIGTERM)
        own.wait("draining", 5)
        status, told, headers = own.ask("/v1/completions", {"prompt": "a"})
        assert (status, told["error"]["code"]) == (503, "draining")
        assert headers["retry-after"]
        assert own.ask("/ready")[0] == 503
        asking.join(30)
        assert answers[0]["usage"]["completion_tokens"] == 400
        assert own.process.wait(10) == 0
        assert own.status()["state"] == "stopped"


@pytest.mark.long
def test_a_drain_ends_when_its_time_is_over(own: Service) -> None:
    own.config["limits"] = {"drain_s": 1}
    own.config["placement"]["n_ctx"] = 2048
    with own.running(), ThreadPoolExecutor(1) as pool:
        body = {"prompt": "a", "max_tokens": 2000, "temperature": 0}
        asking = pool.submit(own.ask, "/v1/completions", body)
        until_it_computes(own)
        start = time.monotonic()
        assert own.stop() == 0
        assert time.monotonic() - start < 6
        status, told, _ = asking.result(5)
        assert status == 503, told
        assert (status, told["error"]["code"]) == (503, "draining")


@pytest.mark.long
def test_a_signal_while_it_loads_ends_it_at_once(own: Service) -> None:
    process = own.start()
    own.wait("loading", 20)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert time.monotonic() - start < 5


def test_a_crash_is_told_with_its_last_words(own: Service) -> None:
    with contextlib.suppress(AssertionError), own.running():
        os.kill(own.child(), signal.SIGABRT)
        assert own.process
        assert own.process.wait(20) == 1
    status = own.status()
    assert status["state"] == "failed"
    assert "SIGABRT" in status["reason"]


@pytest.mark.long
def test_the_child_does_not_outlive_its_parent(own: Service) -> None:
    with contextlib.suppress(AssertionError), own.running():
        child = own.child()
        assert own.process
        own.process.kill()
        own.process.wait(5)
        end = time.monotonic() + 5
        while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < end:
            if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
                break
            time.sleep(0.05)
        else:
            assert not Path(f"/proc/{child}").exists()


@pytest.mark.long
def test_a_file_that_is_no_model_is_a_failure_with_words(own: Service, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\0" * 100)
    own.config["model"] = str(bad)
    assert own.start().wait(30) == 1
    assert own.status()["state"] == "failed"
    assert str(bad) in own.status()["reason"]


@pytest.mark.long
@pytest.mark.parametrize("on_oom", ["stop", "reduce"])
def test_an_out_of_memory_is_told_with_its_numbers_and_mended_once(
    own: Service, on_oom: str
) -> None:
    # 4 GiB of keys and values, where all of the process may have little more.
    own.before = ("prlimit", "--as=4600000000")
    asked = {"n_gpu_layers": -1, "n_ctx": 2 << 20, "n_batch": 128}
    own.config |= {"on_oom": on_oom, "placement": asked}
    if on_oom == "stop":
        assert own.start().wait(60) == 2
        assert "no room for 4096 MiB of the context" in own.status()["reason"]
        assert (
            "next: set n_gpu_layers = -1, n_ctx = 2097152, kv_type = q8_0"
            in (own.status()["reason"])
        )
        return
    with own.running():
        status = own.status()
        assert status["placement"]["kv_type"] == "q8_0"
        assert "reduced from n_gpu_layers" in status["reason"]
        assert "no room for 4096 MiB of the context" in status["reason"]
        assert "llamafleet_reduced 1.0" in own.ask("/metrics")[1]["text"]
        own.complete()
    kept = json.loads((own.folder / "reduced.json").read_text())
    assert kept["was"]["kv_type"] == "f16"
    assert "llamafleet: reduced from" in own.said() or "loading: reduced from" in own.said()


@pytest.mark.long
def test_under_load_for_a_minute_nothing_is_lost_or_mixed_and_memory_is_stable(
    service: Service, client: openai.OpenAI
) -> None:
    def resident() -> int:
        text = Path(f"/proc/{service.child()}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])

    alone = {prompt: answer(client, prompt) for prompt in PROMPTS}
    end, before, done = time.monotonic() + 60, 0, 0
    with ThreadPoolExecutor(32) as pool:
        while time.monotonic() < end:
            together = list(pool.map(lambda prompt: answer(client, prompt), PROMPTS))
            assert together == [alone[prompt] for prompt in PROMPTS]
            done += len(PROMPTS)
            before = before or resident()
    after = resident()
    print(f"{done} answers, resident {before} KiB after the first 32, {after} KiB at the end")
    assert after < before * 1.1
