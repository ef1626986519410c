"""The catalogue of synthetic models: names and sizes. That sizes fit real files: test_synth.py."""

from __future__ import annotations

import pytest

from llamafleet.protocol import models


@pytest.mark.parametrize("shape", models.SHAPES)
@pytest.mark.parametrize("type_", models.TYPES)
def test_a_name_is_read_as_it_is_made(shape: str, type_: str) -> None:
    assert models.parse(models.name(shape, type_)) == (shape, type_)


@pytest.mark.parametrize("name", ["synthetic:7b-q9_9", "synthetic:9b-q4_0", "7b-q4_0", "/m.gguf"])
def test_another_name_is_none(name: str) -> None:
    assert models.parse(name) is None
    assert models.estimate_mib(name) == 0


@pytest.mark.parametrize(
    ("name", "mib"),
    # Measured: the file of 7b in Q4_0 has 3,653 million bytes less its vocabulary's padding.
    [("synthetic:7b-q4_0", 3650), ("synthetic:160m-q4_0", 80), ("synthetic:7b-f16", 12855)],
)
def test_sizes_are_rounded_up(name: str, mib: int) -> None:
    assert models.estimate_mib(name) == mib


def test_a_model_has_the_tensors_that_llama_cpp_reads() -> None:
    """Names and shapes as src/llama-arch.cpp knows them."""
    found = [
        (one.name, one.type, one.rows, one.columns, one.std)
        for one in models.tensors(models.Shape(1, 256, 512, 4, 2, 1000, 2048), "q4_0")
    ]
    assert found == [
        ("token_embd.weight", "q4_0", 1000, 256, 0.5),
        ("blk.0.attn_norm.weight", "f32", 1, 256, 0.0),
        ("blk.0.attn_q.weight", "q4_0", 256, 256, 0.0625),
        ("blk.0.attn_k.weight", "q4_0", 128, 256, 0.0625),
        ("blk.0.attn_v.weight", "q4_0", 128, 256, 0.0625),
        ("blk.0.attn_output.weight", "q4_0", 256, 256, 0.0625),
        ("blk.0.ffn_norm.weight", "f32", 1, 256, 0.0),
        ("blk.0.ffn_gate.weight", "q4_0", 512, 256, 0.0625),
        ("blk.0.ffn_up.weight", "q4_0", 512, 256, 0.0625),
        ("blk.0.ffn_down.weight", "q4_0", 256, 512, pytest.approx(0.0441942)),
        ("output_norm.weight", "f32", 1, 256, 0.0),
        ("output.weight", "q6_K", 1000, 256, 0.0625),
    ]


def test_the_size_of_a_file_is_that_of_its_parts() -> None:
    """Tensors; 40 bytes a token; 128 bytes a tensor; a page for the rest."""
    tensors = sum(one.bytes for one in models.tensors(models.SHAPES["tiny"], "f16"))
    assert models.estimate_bytes("tiny", "f16") == tensors + 40 * 512 + 128 * 39 + 4096


def test_the_file_is_named_by_shape_and_type() -> None:
    assert models.file_name("7b", "q4_0") == "synthetic-7b-q4_0.gguf"
