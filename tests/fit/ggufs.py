"""GGUF files with the header of real models and no weights: holes, which read as zeros.

A file of 5 GiB takes 100 kB of disk; llama.cpp loads it as it would the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Model:
    """A model's dimensions, as its publisher's config.json has them."""

    arch: str
    layers: int
    embd: int
    ff: int
    heads: int
    heads_kv: int
    head: int
    vocab: int
    context: int
    experts: int = 0
    used: int = 0
    window: int = 0
    tied: bool = False
    bias: bool = False
    rope: float = 500000.0
    fused: bool = False
    """One tensor for query, key and value, and one for gate and up, as phi3 has."""


MODELS = {
    # meta-llama/Llama-3.1-8B
    "dense": Model("llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072),
    # meta-llama/Llama-3.2-3B eight times, as the guide's L3.2-8X3B
    "moe": Model("llama", 28, 3072, 8192, 24, 8, 128, 128256, 131072, 8, 2, tied=True),
    # Qwen/Qwen3-30B-A3B
    "qwen3moe": Model("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, 40960, 128, 8),
    # google/gemma-3-12b
    "swa": Model("gemma3", 48, 3840, 15360, 16, 8, 256, 262208, 131072, window=1024, tied=True),
    # Qwen/Qwen2.5-7B-Instruct-1M
    "long": Model("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 1010000, bias=True),
    # Qwen/Qwen3-8B
    "qwen3": Model("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 40960),
    # Llama-2-7B: no grouped queries
    "mha": Model("llama", 32, 4096, 11008, 32, 32, 128, 32000, 4096),
    # microsoft/Phi-3-mini-4k
    "phi3": Model("phi3", 32, 3072, 8192, 32, 32, 96, 32064, 4096, window=2047, fused=True),
    # openai/gpt-oss-20b
    "gpt-oss": Model("gpt-oss", 24, 2880, 2880, 64, 8, 64, 201088, 131072, 32, 4, window=128,
                     bias=True),
    # google/gemma-2-9b
    "gemma2": Model("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, 8192, window=4096, tied=True),
    # Llama-3.2-1B
    "small": Model("llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, tied=True),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    name: str
    dims: tuple[int, ...]
    """Columns first, as the file has them."""
    type: str


def tensors(model: Model, type_: str) -> Iterator[Tensor]:
    """Those that llama.cpp asks for, in the order of the file."""
    embd, query, kv = model.embd, model.heads * model.head, model.heads_kv * model.head

    def big(name: str, *dims: int) -> Tensor:
        return Tensor(f"{name}.weight", dims, type_)

    def small(name: str, *dims: int) -> Tensor:
        return Tensor(name, dims, "F32")

    yield big("token_embd", embd, model.vocab)
    for layer in range(model.layers):
        at = f"blk.{layer}."
        yield small(f"{at}attn_norm.weight", embd)
        if model.fused:
            yield big(f"{at}attn_qkv", embd, query + 2 * kv)
        else:
            yield big(f"{at}attn_q", embd, query)
            yield big(f"{at}attn_k", embd, kv)
            yield big(f"{at}attn_v", embd, kv)
        if model.bias:
            yield small(f"{at}attn_q.bias", query)
            yield small(f"{at}attn_k.bias", kv)
            yield small(f"{at}attn_v.bias", kv)
        yield big(f"{at}attn_output", query, embd)
        if model.arch in ("gemma3", "qwen3", "qwen3moe"):
            yield small(f"{at}attn_q_norm.weight", model.head)
            yield small(f"{at}attn_k_norm.weight", model.head)
        if model.arch in ("gemma2", "gemma3"):
            yield small(f"{at}post_attention_norm.weight", embd)
            yield small(f"{at}post_ffw_norm.weight", embd)
        if model.arch == "gpt-oss":
            yield small(f"{at}attn_output.bias", embd)
            yield small(f"{at}attn_sinks.weight", model.heads)
            yield small(f"{at}post_attention_norm.weight", embd)
        else:
            yield small(f"{at}ffn_norm.weight", embd)
        yield from _feed_forward(model, at, big, small)
    yield small("output_norm.weight", embd)
    if not model.tied:
        yield big("output", embd, model.vocab)


def _feed_forward(model, at, big, small):  # type: ignore[no-untyped-def]
    embd, ff = model.embd, model.ff
    if not model.experts:
        if model.fused:
            yield big(f"{at}ffn_up", embd, 2 * ff)
        else:
            yield big(f"{at}ffn_gate", embd, ff)
            yield big(f"{at}ffn_up", embd, ff)
        yield big(f"{at}ffn_down", ff, embd)
        return
    yield small(f"{at}ffn_gate_inp.weight", embd, model.experts)
    yield big(f"{at}ffn_gate_exps", embd, ff, model.experts)
    yield big(f"{at}ffn_up_exps", embd, ff, model.experts)
    yield big(f"{at}ffn_down_exps", ff, embd, model.experts)
    if model.arch == "gpt-oss":
        yield small(f"{at}ffn_gate_inp.bias", model.experts)
        yield small(f"{at}ffn_gate_exps.bias", ff, model.experts)
        yield small(f"{at}ffn_up_exps.bias", ff, model.experts)
        yield small(f"{at}ffn_down_exps.bias", embd, model.experts)


def header(writer: gguf.GGUFWriter, model: Model) -> None:
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.embd)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.ff)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.heads_kv)
    writer.add_key_length(model.head)
    writer.add_value_length(model.head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(model.head)
    writer.add_rope_freq_base(model.rope)
    writer.add_vocab_size(model.vocab)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.used)
        writer.add_expert_feed_forward_length(model.ff)
    if model.window:
        writer.add_sliding_window(model.window)
    # Without a vocabulary nothing needs one token more than its number.
    writer.add_tokenizer_model("no_vocab")


def write(path: Path, model: Model, type_: str = "Q4_0", *, full: bool = False) -> Path:
    """`full`: the weights are written, and not left as a hole."""
    writer = gguf.GGUFWriter(path, model.arch)
    header(writer, model)
    kinds = {name: gguf.GGMLQuantizationType[name] for name in ("F32", type_)}
    end = 0
    for tensor in tensors(model, type_):
        block, size = gguf.GGML_QUANT_SIZES[kinds[tensor.type]]
        count = int(np.prod(tensor.dims, dtype=np.int64)) // block * size
        writer.add_tensor_info(
            tensor.name, list(reversed(tensor.dims)), np.dtype(np.float16), count,
            kinds[tensor.type],
        )  # fmt: skip
        end = -(-end // 32) * 32 + count
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        begin = -(-file.seek(0, 2) // 32) * 32
        file.truncate(begin + end)
        if full:
            file.seek(begin)
            for _ in range(0, end, 1 << 24):
                file.write(b"\0" * (1 << 24))
            file.truncate(begin + end)
    return path
