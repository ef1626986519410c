"""What of a model's memory its header tells."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.gguffile import GgufFile, GgufTensor
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol.shape import Shape
from tests.fit import ggufs
from tests.onhost.gguf_files import split

Q4_0, F16, F32 = 2, 1, 0
FIELDS: dict[str, Any] = {
    "general.architecture": "x",
    "general.name": "A model",
    "x.block_count": 2,
    "x.embedding_length": 64,
    "x.attention.head_count": 4,
    "x.context_length": 4096,
}
TENSORS = (
    GgufTensor("token_embd.weight", 64 * 100 * 4, (64, 100), F32),
    GgufTensor("blk.0.attn_q.weight", 64 * 64 // 32 * 18, (64, 64), Q4_0),
    GgufTensor("blk.1.ffn_down.weight", 256 * 64 // 32 * 18, (256, 64), Q4_0),
    GgufTensor("output_norm.weight", 256, (64,), F32),
)


def of(fields: dict[str, Any] | None = None, tensors: Any = TENSORS) -> Shape:
    return shape_of((GgufFile(Path("m.gguf"), FIELDS | (fields or {}), tuple(tensors)),))


def test_heads_have_the_size_that_follows_where_none_is_stated() -> None:
    found = of()
    assert (found.keys, found.values, found.queries, found.head) == ((64, 64), (64, 64), 64, 16)
    assert (found.layers, found.context, found.vocab, found.feed) == (2, 4096, 100, 256)
    assert found.name == "A model" and not found.unknown


def test_each_layer_may_have_its_own_number_of_heads() -> None:
    found = of({"x.attention.head_count_kv": [4, 0], "x.attention.key_length": 32})
    assert found.keys == (128, 0)
    assert of({"x.attention.head_count_kv": 1}).keys == (16, 16)


def test_the_last_row_of_a_quantized_matrix_is_filled() -> None:
    """64 weights of a row are 512 on CUDA: ggml-cuda.cu:913; nothing is added to floats."""
    found = of()
    assert found.weights == (64 * 64 // 32 * 18 + 256, 256 * 64 // 32 * 18 + 256)
    assert of(tensors=[*TENSORS[:3], replace(TENSORS[3], bytes=300)]).output == 384 + 25600


def test_a_model_without_a_matrix_of_its_own_for_the_output_has_the_tokens_twice() -> None:
    tied = of()
    assert (tied.on_cpu, tied.output) == (25600, 25600 + 256)
    own = of(tensors=[*TENSORS, GgufTensor("output.weight", 25600, (64, 100), F32)])
    assert own.output == tied.output


def test_experts_that_a_token_has_are_counted() -> None:
    more = GgufTensor("blk.1.ffn_down_exps.weight", 18, (512, 64, 8), Q4_0)
    found = of({"x.expert_used_count": 2}, [*TENSORS, more])
    assert (found.experts, found.feed) == (2, 1024)


def test_a_window_and_who_has_it() -> None:
    window = {"x.attention.sliding_window": 128}
    assert of(window).window == 128 and of(window).windowed == ()
    told = of(window | {"x.attention.sliding_window_pattern": [1, 0]})
    assert told.windowed == (True, False)
    gemma = {"general.architecture": "gemma2"} | {
        key.replace("x.", "gemma2.", 1): value for key, value in (FIELDS | window).items()
        if key.startswith("x.")
    }  # fmt: skip
    assert of(gemma).windowed == (True, False)
    phi = {key.replace("gemma2", "phi3"): value for key, value in gemma.items()}
    assert of(phi | {"general.architecture": "phi3"}).window == 0


@pytest.mark.parametrize(
    "key",
    [
        "attention.kv_lora_rank",
        "ssm.state_size",
        "wkv.head_size",
        "shortconv.l_cache",
        "attention.indexer.head_count",
        "decoder_start_token_id",
    ],
)
def test_models_that_keep_something_else_are_not_guessed(key: str) -> None:
    assert key in of({f"x.{key}": 1}).unknown


def test_an_encoder_is_not_guessed_and_a_decoder_that_says_so_is_none() -> None:
    assert of({"x.attention.causal": False}).unknown
    assert not of({"x.attention.causal": True}).unknown


def test_matrices_in_floats_are_seen() -> None:
    assert not of().half
    assert of(tensors=[*TENSORS, GgufTensor("blk.0.attn_k.weight", 8, (2, 2), F16)]).half


@pytest.mark.parametrize("value", [-5, "many", [], [1.5], True])
def test_fields_of_a_kind_that_no_one_expects(value: Any) -> None:
    for key in ("attention.head_count_kv", "attention.key_length", "expert_used_count"):
        assert len(of({f"x.{key}": value}).keys) == 2


def test_all_parts_of_a_split_model_are_counted(tmp_path: Path) -> None:
    parts = split(tmp_path, 2)
    found = shape_of(modelfile.read(parts[0]))
    assert found.weights[0] == found.weights[1] > 0


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "m.gguf", ggufs.MODELS["small"])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)
    with pytest.raises(ModelError, match="cut short"):
        modelfile.read(path)


def test_a_foul_header_ends_in_a_line_or_in_a_shape(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "m.gguf", ggufs.MODELS["small"])
    with path.open("rb") as file:
        head = bytearray(file.read(2000))
    rng = random.Random(1)
    for _ in range(200):
        foul = bytearray(head)
        for _ in range(3):
            foul[rng.randrange(8, len(foul))] = rng.randrange(256)
        with path.open("r+b") as file:
            file.write(foul)
        try:
            shape_of(modelfile.read(path))
        except ModelError as error:
            assert str(error).isprintable()


def test_a_model_that_llama_cpp_computes_otherwise_is_not_told() -> None:
    """grok without flash attention, whatever is asked for: 2706 MiB were 1249 by the account."""
    fields = {"general.architecture": "grok", "grok.block_count": 2}
    assert "without flash attention" in of(fields).unknown


def test_a_file_without_its_vocabulary_s_size_is_not_told() -> None:
    """Else nothing would be counted for what comes out of it."""
    assert "token_embd.weight" in of(tensors=TENSORS[1:]).unknown
    assert not of().unknown
