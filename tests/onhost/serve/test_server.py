"""The process that serves: when it says that it is ready, and when it no longer does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.onhost.serve import proof, server
from llamafleet.onhost.serve.ask import Ask
from llamafleet.onhost.serve.child import Told
from llamafleet.onhost.serve.server import Serving
from llamafleet.protocol.decode import decode
from llamafleet.protocol.serve import Placement, ServeConfig

PLACEMENT = Placement(-1, 512)
DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


def told(backend: Any = "cuda") -> Told:
    data = {
        **{"version": 1, "profile": "chat", "host": "h", "verify": "/v", "folder": "/f"},
        **{"libraries": "/l", "model": "/m.gguf", "alias": "chat", "placement": asdict(PLACEMENT)},
        **{"address": "127.0.0.1", "port": 1, "key": False},
    }
    config = decode(ServeConfig, data)
    return Told(config, PLACEMENT, False, backend, "f00", 0, None)


class Model:
    """A loaded model, without one."""

    def __init__(self, answer: Callable[[], int] = lambda: 7) -> None:
        self.answer, self.asked = answer, 0
        self.log, self.app, self.validate = "", None, None
        self.llama = SimpleNamespace(moved=0.0, computing=False)

    def answer_one(self) -> int:
        self.asked += 1
        return self.answer()


class Run:
    """A Serving whose parts are played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Model, problem: str = "") -> None:
        self.said: list[dict[str, Any]] = []
        self.model, self.problem = model, problem
        for name, value in (("TICK_S", 0.01), ("IDLE_S", 3600.0), ("PROBE_S", 0.2)):
            monkeypatch.setattr(server, name, value)
        monkeypatch.setattr(server, "_load", lambda told: self.model)
        monkeypatch.setattr(proof, "judge", lambda *_: self.problem)
        monkeypatch.setattr(Serving, "_describe", lambda self: None)
        monkeypatch.setattr(server, "_inherited", lambda descriptor: None)
        monkeypatch.setattr(server, "_uvicorn", lambda door, seconds: self)
        channel = SimpleNamespace(send=self.said.append)
        self.serving = Serving(told(), channel, time.monotonic())  # type: ignore[arg-type]
        self.should_exit = False

    async def serve(self, sockets: Any) -> None:
        while not self.should_exit:
            await asyncio.sleep(0.01)

    def busy(self) -> asyncio.Event:
        """The model computes for somebody until that is set."""
        free = asyncio.Event()

        async def compute() -> None:
            async with self.serving._house.line.turn(Ask()):
                await free.wait()

        self.computing = asyncio.ensure_future(compute())
        return free

    @property
    def states(self) -> list[str]:
        return [one["state"] for one in self.said]

    def run(self, meanwhile: Callable[[], Any]) -> int:
        async def both() -> int:
            serving = asyncio.ensure_future(self.serving.run())
            while self.states[-1:] != ["ready"] and not serving.done():
                await asyncio.sleep(0.005)
            meanwhile()
            return await asyncio.wait_for(serving, 5)

        return asyncio.run(both())


def test_it_is_ready_once_a_token_came_from_where_it_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, Model())
    assert run.run(lambda: setattr(run, "should_exit", True)) == 0
    assert run.states == ["loading", "ready"]
    assert run.said[-1]["load_s"] > 0
    assert run.model.asked == 1


@pytest.mark.parametrize(
    ("answer", "problem", "said"),
    [
        (lambda: 7, "found layers on CPU 13", "found layers on CPU 13"),
        (lambda: 1 / 0, "", "found no token (ZeroDivisionError"),
        (lambda: time.sleep(0.5), "", "found no token within 0 s"),
    ],
)
def test_it_is_never_ready_without(
    monkeypatch: pytest.MonkeyPatch, answer: Any, problem: str, said: str
) -> None:
    run = Run(monkeypatch, Model(answer), problem)
    assert run.run(lambda: None) == 1
    assert run.states == ["loading", "failed"]
    assert said in run.said[-1]["reason"]


def test_a_model_that_can_not_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, Model())

    def load(told: Told) -> Model:
        raise ValueError("Failed to load model from file")

    monkeypatch.setattr(server, "_load", load)
    assert run.run(lambda: None) == 1
    assert "/m.gguf that llama.cpp can't load (Failed to load" in run.said[-1]["reason"]


def test_a_doubt_is_settled_by_a_token_and_nothing_is_served_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, Model())

    def doubt() -> None:
        run.serving._suspect("RuntimeError: llama_decode returned -3")
        loop = asyncio.get_running_loop()
        loop.call_later(0.3, lambda: setattr(run, "should_exit", True))

    assert run.run(doubt) == 0
    assert run.states == ["loading", "ready", "loading", "ready"]
    assert "llama_decode" in run.said[2]["reason"]
    assert run.model.asked == 2


def test_a_doubt_that_is_true_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, Model())

    def doubt() -> None:
        run.model.answer = lambda: 1 // 0
        run.serving._suspect("RuntimeError")

    assert run.run(doubt) == 1
    assert run.states[-1] == "failed"


def test_silence_is_a_doubt_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, Model())

    def wait() -> None:
        monkeypatch.setattr(server, "IDLE_S", 0.05)
        loop = asyncio.get_running_loop()
        loop.call_later(0.5, lambda: setattr(run, "should_exit", True))

    assert run.run(wait) == 0
    assert 3 <= run.model.asked <= 12
    assert run.states == ["loading", "ready"]


def test_a_step_without_an_end_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GPU_STALL_S", 0.05)
    run = Run(monkeypatch, Model())

    def hang() -> None:
        run.busy()
        run.model.llama.computing, run.model.llama.moved = True, time.monotonic()

    assert run.run(hang) == 1
    assert "without an end" in run.said[-1]["reason"]


def test_it_ends_it_also_where_a_proof_waits_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model failed, the request behind that one hangs: the proof's turn would never come."""
    monkeypatch.setattr(server, "GPU_STALL_S", 0.05)
    run = Run(monkeypatch, Model())

    def hang() -> None:
        run.busy()
        run.model.llama.computing, run.model.llama.moved = True, time.monotonic() + 0.2
        run.serving._suspect("RuntimeError: llama_decode returned -3")

    assert run.run(hang) == 1
    assert run.states == ["loading", "ready", "loading", "failed"]
    assert run.model.asked == 1


def test_a_proof_goes_before_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, Model())
    order: list[str] = []

    async def wait(name: str, *, first: bool = False) -> None:
        async with run.serving._house.line.turn(Ask(), first=first):
            order.append(name)
            await asyncio.sleep(0.01)

    async def both() -> None:
        tasks = [asyncio.ensure_future(wait(name)) for name in ("computes", "a", "b")]
        await asyncio.sleep(0)
        await asyncio.gather(wait("proof", first=True), *tasks)

    asyncio.run(both())
    assert order == ["computes", "proof", "a", "b"]


def test_a_long_queue_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model works, step by step, and others wait for longer than a step may take."""
    monkeypatch.setattr(server, "GPU_STALL_S", 0.2)
    run = Run(monkeypatch, Model())
    monkeypatch.setattr(server, "IDLE_S", 0.05)

    def work() -> None:
        free, loop = run.busy(), asyncio.get_running_loop()
        run.model.llama.computing = True

        def step(left: int) -> None:
            run.model.llama.moved = time.monotonic()
            if left:
                loop.call_later(0.02, step, left - 1)
            else:
                free.set()
                run.should_exit = True

        step(30)

    assert run.run(work) == 0
    assert run.states == ["loading", "ready"]


@pytest.mark.parametrize(
    ("backend", "placement", "longest"),
    [
        ("cuda", Placement(-1, 512), server.GPU_STALL_S),
        ("cuda", Placement(-1, 512, n_batch=4096), server.STALL_S),
        ("cuda", Placement(30, 512), server.STALL_S),
        ("cpu", Placement(-1, 512), server.STALL_S),
    ],
)
def test_a_cpu_may_take_longer_for_a_step(
    backend: Any, placement: Placement, longest: float
) -> None:
    assert server._longest(replace(told(backend), placement=placement)) == longest


def test_what_was_left_half_computed_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GPU_STALL_S", 0.05)
    run = Run(monkeypatch, Model())

    def leave() -> None:
        run.model.llama.computing, run.model.llama.moved = True, time.monotonic()
        asyncio.get_running_loop().call_later(0.3, lambda: setattr(run, "should_exit", True))

    assert run.run(leave) == 0


def test_its_last_word_is_repeated_so_that_silence_is_a_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "BEAT_S", 0.02)
    run = Run(monkeypatch, Model())

    def wait() -> None:
        asyncio.get_running_loop().call_later(0.2, lambda: setattr(run, "should_exit", True))

    assert run.run(wait) == 0
    assert run.states[:2] == ["loading", "ready"] and run.states.count("ready") > 3


def test_every_metric_is_told_in_the_docs() -> None:
    from llamafleet.onhost.serve.metrics import Metrics

    metrics, text = Metrics(), DOCS.read_text(encoding="utf-8")
    metrics.state("ready")
    names = {
        line.split()[2]
        for line in metrics.page().decode().splitlines()
        if line.startswith("# TYPE llamafleet_")
    }
    assert len(names) > 12
    assert {name for name in names if f"`{name}" not in text} == set()
