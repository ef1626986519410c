"""Which tensors a full offload puts on a GPU, and which layers take part in a decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import weights
from llamafleet.onhost.verify.weights import Weights
from tests.onhost.gguf_files import F32, LANGUAGE_MODEL, Q4_0, Tensor, gguf

EMBEDDING: Tensor = ("token_embd.weight", F32, (64, 2))
"""512 bytes; a matrix of a layer here has 108."""


def read(folder: Path, fields: dict[str, Any], *tensors: Tensor) -> Weights:
    path = folder / "m.gguf"
    path.write_bytes(gguf(LANGUAGE_MODEL | fields, (EMBEDDING, *tensors)))
    return weights.read(path)


def layers(*numbers: int) -> list[Tensor]:
    return [(f"blk.{number}.attn_q.weight", Q4_0, (64, 3)) for number in numbers]


def test_layers_that_predict_further_tokens_are_the_last_and_left_out(tmp_path: Path) -> None:
    more: Tensor = ("blk.3.nextn.eh_proj.weight", Q4_0, (64, 3))
    fields = {"llama.block_count": 4, "llama.nextn_predict_layers": 2}
    held = read(tmp_path, fields, *layers(0, 1, 2, 3), more)
    assert (held.layers, held.computed) == (4, frozenset({0, 1}))
    assert held.total_bytes == 512 + 5 * 108
    assert held.device_bytes == 2 * 108 + 512, "and the embedding, which is the output matrix"


def test_a_layer_without_a_tensor_takes_no_part(tmp_path: Path) -> None:
    held = read(tmp_path, {"llama.block_count": 3}, *layers(0, 2))
    assert (held.layers, held.computed) == (3, frozenset({0, 2}))


@pytest.mark.parametrize(
    ("fields", "output", "extra"),
    [
        ({}, True, 512),
        ({"llama.attention.causal": 1}, True, 512),
        ({"llama.attention.causal": 0}, False, 0),
    ],
)
def test_a_model_that_only_embeds_texts_has_no_output_layer(
    tmp_path: Path, fields: dict[str, Any], output: bool, extra: int
) -> None:
    held = read(tmp_path, fields, *layers(0, 1))
    assert held.output is output and held.device_bytes == 2 * 108 + extra


def test_one_that_looks_ahead_and_has_an_output_matrix_has_one(tmp_path: Path) -> None:
    matrix: Tensor = ("output.weight", F32, (64, 2))
    held = read(tmp_path, {"llama.attention.causal": 0}, *layers(0), matrix)
    assert held.output and held.device_bytes == 108 + 512


@pytest.mark.parametrize(
    ("name", "on_gpu"),
    [
        ("position_embd.weight", False),
        ("token_types.weight", False),
        ("per_layer_token_embd.weight", False),
        # llama.cpp does this norm in the first layer.
        ("token_embd_norm.weight", True),
        ("rope_freqs.weight", True),
    ],
)
def test_the_input_layer_stays_on_the_cpu(tmp_path: Path, name: str, on_gpu: bool) -> None:
    held = read(tmp_path, {}, *layers(0), (name, F32, (64,)))
    assert held.device_bytes == 108 + 512 + 256 * on_gpu
