"""Where a model went, read from logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.onhost.verify.llama_log import (
    Placement,
    last_words,
    parse,
)

LOGS = Path(__file__).parents[1] / "data" / "logs"


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
        ("cuda-half", {"CPU": 7, "CUDA0": 6}),
        ("cuda-zero", {"CPU": 13}),
        ("cpu-160m", {"CPU": 13}),
    ],
)
def test_layers_are_read_with_their_devices(name: str, layers: dict[str, int]) -> None:
    found = evidence(name)
    assert found.layers_per_device == layers and set(found.layers) == set(range(13))
    assert found.models == 1


def test_the_offloaded_line_tells_what_was_asked_for() -> None:
    """llama.cpp prints it also with the layers elsewhere."""
    text = log("cuda-zero").replace("offloaded 0/13", "offloaded 13/13")
    found = parse(text)
    assert found.requested == (13, 13) and found.cuda_layers == 0


def test_an_init_error_is_read() -> None:
    assert "no CUDA-capable device" in str(evidence("cuda-init-error").init_error)
    assert evidence("cuda-full").init_error is None


def test_sizes_and_capabilities_are_read() -> None:
    found = evidence("cuda-two-gpus")
    assert found.capabilities == ("8.9", "8.9")
    assert found.cuda_model_mib == pytest.approx(64.86)
    assert found.kv_mib == {"CUDA0": 10.5, "CUDA1": 7.5}
    recorded = evidence("cpu-160m")
    assert recorded.kv_mib == {"CPU": 18.0}


def test_last_words_are_the_trouble() -> None:
    text = "a\nCUDA error: no kernel image is available\nb\nc\nd\ne\n"
    assert last_words(text) == "CUDA error: no kernel image is available"
    assert last_words("x: call\nset_abort_callback: call\n") == "x: call | set_abort_callback: call"
    assert last_words("loading failed\nset_abort_callback: call\n") == "loading failed"
    assert last_words("a\nb\n\n", 1) == "b"
    assert last_words("") == "no output"
