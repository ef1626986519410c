"""GPU against CPU in every type of weights: what is near enough, and what a fault does to it."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import pytest

from llamafleet.onhost.verify import llama_log, synth
from llamafleet.onhost.verify.checks.logits import (
    FP4_MXFP4,
    LIMITS,
    Limit,
    LogitsDifference,
    compare_logits,
    floats,
    judge_logits,
    limits,
)
from llamafleet.protocol.models import COMPARED
from tests.onhost.llama import models, needs_llama
from tests.onhost.verify.test_bench import worker

__all__ = ["models"]

VOCABULARY = 100
ALLOWED = {"q4_0": Limit(0.05, 0.02)}
PROMPT, POSITIONS = 48, 64
LARGEST_VOCABULARY = 512


def values(noise: float, seed: int = 1) -> list[float]:
    made, error = Random(seed), Random(2)
    return [made.gauss(0, 1) + noise * error.uniform(-1, 1) for _ in range(10 * VOCABULARY)]


def status(difference: LogitsDifference | str) -> str:
    return judge_logits({"q4_0": difference}, ALLOWED).status


def test_near_logits_pass() -> None:
    difference = compare_logits(values(0), values(0.01), VOCABULARY)
    assert difference.positions == 10
    assert 0.005 < difference.largest < 0.011 and 0.004 < difference.rms < 0.007
    assert status(difference) == "pass"


@pytest.mark.parametrize("other", [values(0.2), values(0, seed=3)])
def test_other_logits_are_red(other: list[float]) -> None:
    assert status(compare_logits(values(0), other, VOCABULARY)) == "fail"


def test_a_small_fault_everywhere_is_red_though_none_is_large() -> None:
    difference = compare_logits(values(0), values(0.045), VOCABULARY)
    assert difference.largest < 0.05 and difference.rms > 0.02
    assert status(difference) == "fail"


def test_one_wrong_position_is_red() -> None:
    rows = [values(0)[start : start + VOCABULARY] for start in range(0, 1000, VOCABULARY)]
    rows[7] = rows[7][::-1]
    difference = compare_logits(values(0), list(chain(*rows)), VOCABULARY)
    assert difference.top1 == 0.9
    assert status(difference) == "fail"


def test_constant_logits_are_red() -> None:
    difference = compare_logits([0.0] * VOCABULARY, [0.0] * VOCABULARY, VOCABULARY)
    assert status(difference) == "fail"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(bad: float) -> None:
    with pytest.raises(ValueError, match="not a finite"):
        compare_logits(values(0), [bad, *values(0)[1:]], VOCABULARY)
    with pytest.raises(ValueError, match="vocabulary"):
        compare_logits(values(0), values(0)[1:], VOCABULARY)


@pytest.mark.parametrize("wrong", ["a logit is not a finite number", "llama.cpp can't load it"])
def test_a_type_without_figures_is_red_by_name(wrong: str) -> None:
    check = judge_logits({"q4_0": wrong}, ALLOWED)
    assert check.status == "fail" and "wrong: q4_0; " in check.found and wrong in check.found
    assert "q4_0 not compared" in judge_logits({}, ALLOWED).found


@pytest.mark.parametrize("broken", COMPARED)
def test_one_type_of_garbage_is_red_by_name(broken: str) -> None:
    good = LogitsDifference(0.001, 0.0001, 1.0, 1.0, POSITIONS)
    garbage = LogitsDifference(5.5, 1.3, 1.0, 0.0, POSITIONS)
    found = dict.fromkeys(COMPARED, good) | {broken: garbage}
    for capability in ("9.0", "10.0", "12.0"):
        check = judge_logits(found, limits([capability]))
        assert check.status == "fail" and check.found.startswith(f"wrong: {broken}; ")


def test_every_type_that_is_compared_has_a_limit() -> None:
    assert tuple(LIMITS) == COMPARED


@pytest.mark.parametrize(("capability", "fp4"), [("9.0", False), ("10.0", False), ("12.1", True)])
def test_where_activations_have_four_bits_mxfp4_has_another_limit(
    capability: str, fp4: bool
) -> None:
    assert (limits([capability])["mxfp4"] == FP4_MXFP4) is fp4


def test_a_log_is_cut_where_a_model_begins() -> None:
    log = "init\n" + llama_log.mark(0) + "of the first\n..." + llama_log.mark(1) + "of the second\n"
    first, second = llama_log.by_model(log)
    assert "init" in first and "of the first" in first and "second" not in first
    assert "init" in second and "of the second" in second and "first" not in second
    assert llama_log.by_model("no mark\n") == []


# -- what an H200 gave ------------------------------------------------------------------------


RECORDED = json.loads((Path(__file__).parents[1] / "data/logits-h200.json").read_text())


def measured(pair: list[float]) -> LogitsDifference:
    return LogitsDifference(*pair, std=1.0, top1=1.0, positions=POSITIONS)


@pytest.mark.parametrize("type_", COMPARED)
def test_a_healthy_gpu_is_within_the_limits(type_: str) -> None:
    first, *others = map(measured, RECORDED["models"][type_])
    assert first.within(LIMITS[type_])
    # One model of q4_0, which no host compares.
    beyond = [number for number, one in enumerate(others, 2) if not one.within(LIMITS[type_])]
    assert beyond == ([10] if type_ == "q4_0" else [])
    assert measured(RECORDED["kernels"]["nothing changed"][type_]) == first


@pytest.mark.parametrize("fault", RECORDED["weights"])
@pytest.mark.parametrize("type_", COMPARED)
def test_wrong_weights_are_beyond_the_limits(type_: str, fault: str) -> None:
    assert not measured(RECORDED["weights"][fault][type_]).within(LIMITS[type_])


@pytest.mark.parametrize("fault", list(RECORDED["kernels"])[1:])
def test_a_wrong_kernel_of_one_type_is_red_by_its_name(fault: str) -> None:
    found = {type_: measured(pair) for type_, pair in RECORDED["kernels"][fault].items()}
    check = judge_logits(found, LIMITS)
    assert check.status == "fail" and check.found.startswith("wrong: iq3_s; ")


# -- the real thing, on the CPU ----------------------------------------------------------------


def asked(paths: list[Path]) -> list[dict[str, Any]]:
    request = {"task": "logits", "models": list(map(str, paths)), "n_gpu_layers": 0}
    found: list[dict[str, Any]] = worker(request)[-1]["reply"]["models"]
    return found


def compared(one: dict[str, Any], other: dict[str, Any]) -> LogitsDifference:
    assert one["n_vocab"] == LARGEST_VOCABULARY
    return compare_logits(floats(one["logits"]), floats(other["logits"]), one["n_vocab"])


@needs_llama
def test_every_type_loads_decodes_and_is_the_same_twice(models: Path) -> None:
    paths = [synth.ensure(models, "tiny", type_)[0] for type_ in COMPARED]
    first, again = asked(paths), asked(paths)
    differences = {
        type_: compared(a, b) for type_, a, b in zip(COMPARED, first, again, strict=True)
    }
    assert {d.max_abs for d in differences.values()} == {0.0}
    assert {d.positions for d in differences.values()} == {POSITIONS}
    assert all(0.5 < d.std < 2 for d in differences.values()), "activations stay near 1"
    assert judge_logits(dict(differences), LIMITS).status == "pass"
    # The comparison is of the model's work, not of something constant.
    assert not compared(first[0], first[1]).within(FP4_MXFP4)


@needs_llama
def test_a_model_that_fails_does_not_keep_the_others_back(models: Path, tmp_path: Path) -> None:
    good, _ = synth.ensure(models, "tiny", "q4_0")
    found = asked([tmp_path / "none.gguf", good])
    assert found[0] == {"error": f"llama.cpp can't load {tmp_path / 'none.gguf'}"}
    assert found[1]["n_vocab"] == LARGEST_VOCABULARY


QUANTS = {"q4_0": 2, "q8_0": 2, "q4_K": 16, "q6_K": 0, "iq2_xs": 2, "iq3_s": 2, "mxfp4": 1}
"""Where the quants of a block begin."""


def altered(path: Path, type_: str, to: Path) -> Path:
    """The model with the first quants of every block of its layers' matrices turned round: the
    size of what a kernel does that gets one index of a block wrong."""
    to.write_bytes(path.read_bytes())
    reader = gguf.GGUFReader(to, "r+")
    size = {kind.name.lower(): sizes[1] for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for tensor in reader.tensors:
        if tensor.tensor_type.name.lower() == type_.lower() and tensor.name.startswith("blk."):
            data = tensor.data.view(np.uint8)
            data.reshape(data.shape[0], -1, size[type_.lower()])[:, :, QUANTS[type_]] ^= 0xFF
    return to


@needs_llama
def test_a_fault_in_one_byte_of_each_block_is_seen_in_every_type(
    models: Path, tmp_path: Path
) -> None:
    paths = [synth.ensure(models, "tiny", type_)[0] for type_ in COMPARED]
    faulty = [
        altered(path, type_, tmp_path / path.name)
        for type_, path in zip(COMPARED, paths, strict=True)
    ]
    found = {
        type_: compared(a, b)
        for type_, a, b in zip(COMPARED, asked(paths), asked(faulty), strict=True)
    }
    assert [type_ for type_, d in found.items() if d.within(LIMITS[type_])] == []
