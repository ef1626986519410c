"""Where a model went, read from logs; what is on the CPU turns the check red."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.onhost.verify.checks.control import judge_control
from llamafleet.onhost.verify.checks.offload import judge_offload
from llamafleet.onhost.verify.llama_log import (
    Placement,
    last_words,
    parse,
)

LOGS = Path(__file__).parents[1] / "data" / "logs"
LAYERS = 12
DEVICE_BYTES = 68012544
"""Tensors of the synthetic model 160m q4_0 without its input embedding: 64.86 MiB."""


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


def evidence(name: str) -> Placement:
    return parse(log(name))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cuda-full", {"CUDA0": 13}),
        ("cuda-colon", {"CUDA0": 13}),
        ("cuda-two-gpus", {"CUDA0": 7, "CUDA1": 6}),
    ],
)
def test_a_whole_model_on_gpus_passes(name: str, layers: dict[str, int]) -> None:
    found = evidence(name)
    assert found.layers_per_device == layers
    check = judge_offload(found, LAYERS, DEVICE_BYTES)
    assert check.status == "pass", check
    assert "13 of 13" in check.found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda-half", "6 of 13 layers on CUDA devices (CPU 7, CUDA0 6)"),
        ("cuda-zero", "0 of 13 layers on CUDA devices (CPU 13)"),
        ("cpu-160m", "0 of 13 layers on CUDA devices (CPU 13)"),
        ("cuda-init-error", "no CUDA-capable device is detected"),
    ],
)
def test_layers_on_the_cpu_are_red(name: str, said: str) -> None:
    check = judge_offload(evidence(name), LAYERS, DEVICE_BYTES)
    assert check.status == "fail"
    assert said in check.found
    assert check.next


def test_the_offloaded_line_alone_is_no_proof() -> None:
    """The line tells what was asked for; llama.cpp prints it also with the layers elsewhere."""
    text = log("cuda-zero").replace("offloaded 0/13", "offloaded 13/13")
    found = parse(text)
    assert found.requested == (13, 13)
    assert judge_offload(found, LAYERS, DEVICE_BYTES).status == "fail"


def test_assigned_layers_without_memory_are_red() -> None:
    found = replace(evidence("cuda-full"), model_mib={"CPU_Mapped": 78.05, "CUDA0": 12.0})
    check = judge_offload(found, LAYERS, DEVICE_BYTES)
    assert check.status == "fail"
    assert "12.00 MiB" in check.found


def test_pinned_host_memory_is_not_the_gpus() -> None:
    found = replace(evidence("cuda-full"), model_mib={"CUDA_Host": 64.86})
    assert judge_offload(found, LAYERS, DEVICE_BYTES).status == "fail"


def test_one_layer_too_few_is_red() -> None:
    found = evidence("cuda-full")
    layers = {number: device for number, device in found.layers.items() if number != LAYERS}
    assert judge_offload(replace(found, layers=layers), LAYERS, DEVICE_BYTES).status == "fail"


def test_an_init_error_is_red_whatever_else_is_said() -> None:
    found = replace(evidence("cuda-full"), init_error="unknown error")
    assert judge_offload(found, LAYERS, DEVICE_BYTES).status == "fail"


def test_an_empty_log_is_red() -> None:
    check = judge_offload(parse(""), LAYERS, DEVICE_BYTES)
    assert check.status == "fail"
    assert "no line" in check.found


def test_sizes_and_capabilities_are_read() -> None:
    found = evidence("cuda-two-gpus")
    assert found.capabilities == ("8.9", "8.9")
    assert found.cuda_model_mib == pytest.approx(64.86)
    assert found.kv_mib == {"CUDA0": 10.5, "CUDA1": 7.5}
    recorded = evidence("cpu-160m")
    assert recorded.kv_mib == {"CPU": 18.0}


@pytest.mark.parametrize("name", ["cpu-160m", "cuda-zero"])
def test_a_run_on_the_cpu_is_a_control(name: str) -> None:
    check = judge_control(evidence(name), LAYERS, DEVICE_BYTES)
    assert check.status == "pass", check
    assert "red" in check.found


@pytest.mark.parametrize("name", ["cuda-full", "cuda-half"])
def test_a_control_that_uses_the_gpu_is_red(name: str) -> None:
    assert judge_control(evidence(name), LAYERS, DEVICE_BYTES).status == "fail"


def test_a_control_that_says_nothing_is_red() -> None:
    """Else a change of llama.cpp's lines would pass for a proof."""
    assert judge_control(parse("nothing to read"), LAYERS, DEVICE_BYTES).status == "fail"


def test_last_words_are_the_trouble() -> None:
    text = "a\nCUDA error: no kernel image is available\nb\nc\nd\ne\n"
    assert last_words(text) == "CUDA error: no kernel image is available"
    assert last_words("x: call\nset_abort_callback: call\n") == "x: call | set_abort_callback: call"
    assert last_words("loading failed\nset_abort_callback: call\n") == "loading failed"
    assert last_words("a\nb\n\n", 1) == "b"
    assert last_words("") == "no output"
