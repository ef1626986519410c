"""The benchmark's figures, and the tokens it runs on."""

from __future__ import annotations

import ctypes
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


def worker(request: dict[str, Any], planted: str = "") -> list[dict[str, Any]]:
    """The messages of one worker whose marks are answered at once; `planted`: runs before it."""
    answers = json.dumps(request) + "\n" * 8
    run = subprocess.run(
        [PYTHON, "-c", f"from llamafleet.onhost.verify import worker; {planted}\nworker.main()"],
        input=answers,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


@needs_llama
def test_a_device_in_another_form_is_refused_and_not_read_from_anywhere() -> None:
    """As a version would have it that put another member before the type."""
    fields = "[('more', worker.ctypes.c_size_t), *worker.DeviceProperties._fields_]"
    planted = (
        f"worker.DeviceProperties = type('P', (worker.ctypes.Structure,), {{'_fields_': {fields}}})"
    )
    (*_, last) = worker({"task": "probe"}, planted)
    assert "ggml tells of a device in another form than is known" in last["error"]


@needs_llama
def test_a_name_that_a_version_lacks_is_its_version_s_fault(models: Path) -> None:
    path, _ = synth.ensure(models, "tiny", "f16")
    asked = {"task": "context", "model": str(path), "n_gpu_layers": 0, "n_ctx": 256}
    (*_, last) = worker(asked, "import llama_cpp; del llama_cpp.llama_n_ctx")
    said = "has no attribute 'llama_n_ctx': this verification does not know llama-cpp-python 0.3."
    assert said in last["error"]


@needs_llama
def test_the_worker_measures_and_marks(models: Path) -> None:
    path, _ = synth.ensure(models, "tiny", "f16")
    sizes = {"prompt": 2100, "gen": 3, "repetitions": 2}
    messages = worker(
        {"task": "bench", "model": str(path), "n_gpu_layers": -1, "bench": sizes, "discard": 1}
    )
    marks = [m["mark"] for m in messages if "mark" in m]
    assert marks == ["measuring", "pp", "pp done", "tg", "tg done", "measured"]
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


# -- warming up, and the loop ----------------------------------------------------------------------


def settled(*rates: float, seconds: float = 3.0) -> int:
    """Repetitions until these were found steady; each takes a second."""
    made: list[float] = []

    def rate() -> float:
        made.append(rates[min(len(made), len(rates) - 1)])
        return made[-1]

    bench.settle(rate, seconds, clock=lambda: float(len(made)))
    return len(made)


def test_a_cold_card_is_warmed_up_until_two_repetitions_agree() -> None:
    """As recorded: the first prompt of an H200 was 10 % slower than the next."""
    assert settled(10901.9, 12148.5, 12174.4) == 3
    assert settled(356.6, 356.5) == 2
    assert settled(1.0, 2.0, 3.0, 4.0, 5.0, 6.0) == 3, "for a bounded time"


DECODED = """
import base64, ctypes, json, sys
import llama_cpp as lib
from llamafleet.onhost.verify import bench
quiet = lib.llama_log_callback(lambda *_: None)
lib.llama_log_set(quiet, ctypes.c_void_p(0))
params = lib.llama_model_default_params()
model = lib.llama_model_load_from_file(sys.argv[1].encode(), params)
size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
found = []
for way in ("one call", "step by step"):
    context = lib.llama_init_from_model(model, bench.context_params(lib, 64))
    tokens = bench.Tokens(lib, model)
    if way == "one call":
        bench.generate(lib, context, tokens.singles(16))
    else:
        with bench._generation(lib, context, tokens, 16) as run:
            run()
    row = lib.llama_get_logits_ith(context, -1)
    found.append(base64.b64encode(ctypes.string_at(row, size * 4)).decode())
    positions = lib.llama_memory_seq_pos_max(lib.llama_get_memory(context), 0)
    lib.llama_free(context)
    assert positions == 15, positions
print(json.dumps([found[0] == found[1], hasattr(lib, "llama_batch_ext_init")]))
"""


@needs_llama
def test_batches_that_are_made_ready_compute_the_same(models: Path) -> None:
    path, _ = synth.ensure(models, "tiny", "q4_0")
    run = subprocess.run(
        [PYTHON, "-c", DECODED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert json.loads(run.stdout.splitlines()[-1]) == [True, True]


def test_a_version_without_the_newer_batches_decodes_one_by_one() -> None:
    class Older(Vocabulary):
        decoded: list[int]

        def llama_batch_get_one(self, tokens: Any, count: int) -> Any:
            return tokens

        def llama_decode(self, context: object, batch: Any) -> int:
            self.decoded.append(batch[0])
            return 0

        def llama_synchronize(self, context: object) -> None:
            pass

    lib = Older(bos=False)
    lib.decoded = []
    lib.llama_token = ctypes.c_int32  # type: ignore[assignment]
    with bench._generation(lib, None, bench.Tokens(lib, None), 5) as run:
        assert lib.decoded == []
        run()
    assert lib.decoded == bench.Tokens(lib, None).singles(5)
