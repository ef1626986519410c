"""The benchmark's figures, and the tokens it runs on."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import bench, synth
from tests.onhost.llama import PYTHON, ROOT, models, needs_llama

__all__ = ["models"]


class Vocabulary:
    """The calls by which tokens are drawn, as llama_cpp answers them."""

    llama_token = int

    def __init__(self, bos: bool) -> None:
        self.bos = bos

    def llama_model_get_vocab(self, model: object) -> object:
        return model

    def llama_vocab_n_tokens(self, vocabulary: object) -> int:
        return 50

    def llama_vocab_get_add_bos(self, vocabulary: object) -> bool:
        return self.bos

    def llama_vocab_bos(self, vocabulary: object) -> int:
        return 1000


def test_tokens_are_the_same_each_run_and_begin_with_bos() -> None:
    first, again = (bench.Tokens(Vocabulary(bos=True), None) for _ in range(2))
    tokens = first.singles(5)
    assert tokens == again.singles(5)
    assert tokens[0] == 1000 and all(token < 50 for token in tokens[1:])
    assert first.singles(5)[1:] != tokens[1:]
    assert 1000 not in bench.Tokens(Vocabulary(bos=False), None).singles(100)
    assert first.singles(0) == []


def test_figures_leave_the_discarded_out() -> None:
    told = bench.summarise(512, [1.0, 10.0, 30.0, 20.0], discard=1)
    assert told["samples_ts"] == [10, 30, 20]
    assert told["discarded_ts"] == [1]
    assert (told["median_ts"], told["mean_ts"], told["repetitions"]) == (20, 20, 3)
    assert told["stdev_ts"] == statistics.stdev([10, 30, 20])
    assert bench.summarise(512, [10.0], discard=0)["stdev_ts"] == 0


def worker(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of one worker whose marks are answered at once."""
    answers = json.dumps(request) + "\n" * 8
    run = subprocess.run(
        [PYTHON, "-c", "from llamafleet.onhost.verify import worker; worker.main()"],
        input=answers,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


@needs_llama
def test_the_worker_measures_and_marks(models: Path) -> None:
    path, _ = synth.ensure(models, "tiny", "f16")
    sizes = {"prompt": 2100, "gen": 3, "repetitions": 2}
    messages = worker(
        {"task": "bench", "model": str(path), "n_gpu_layers": -1, "bench": sizes, "discard": 1}
    )
    assert [m["mark"] for m in messages if "mark" in m] == ["measuring", "measured"]
    steps = [(m["step"], m["steps"]) for m in messages if "step" in m]
    assert steps == [(number, 6) for number in range(6)]
    reply = messages[-1]["reply"]
    assert len(reply["pp"]["samples_ts"]) == len(reply["tg"]["samples_ts"]) == 2
    assert reply["timings"]["load_s"] >= 0


@needs_llama
def test_the_worker_tells_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    sizes = {"prompt": 8, "gen": 2, "repetitions": 1}
    missing = str(tmp_path / "none.gguf")
    messages = worker(
        {"task": "bench", "model": missing, "n_gpu_layers": 0, "bench": sizes, "discard": 0}
    )
    assert messages[1:] == [{"error": f"TaskFailed: llama.cpp can't load {missing}"}]


def test_physical_cores_are_at_most_the_usable_ones() -> None:
    import os

    assert 1 <= bench.physical_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("code", [1, -3])
def test_a_failed_decode_is_an_error(code: int) -> None:
    class Failing(Vocabulary):
        def llama_batch_get_one(self, tokens: object, count: int) -> object:
            return None

        def llama_decode(self, context: object, batch: object) -> int:
            return code

    with pytest.raises(bench.DecodeFailed, match=str(code)):
        bench.process(Failing(bos=False), None, [[1]])
