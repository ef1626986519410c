"""The catalogue of synthetic models: shapes, types, names and sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

PREFIX = "synthetic:"
MIB = 1 << 20

SMALLEST_VRAM_FOR_7B_MIB = 8000
"""A 7B Q4_0 model is 3.8 GB (measured), and its context and CUDA's own memory come on top."""

# Bytes per block and weights per block of the types written here (ggml-common.h).
BLOCKS = {
    "f32": (4, 1),
    "f16": (2, 1),
    "q4_0": (18, 32),
    "q8_0": (34, 32),
    "mxfp4": (17, 32),
    "q4_K": (144, 256),
    "q6_K": (210, 256),
    "iq2_xs": (74, 256),
    "iq3_s": (110, 256),
}
TYPES = ("q4_0", "q8_0", "f16")
"""Types that a setting may name."""
COMPARED = ("q4_0", "q8_0", "q4_K", "q6_K", "iq2_xs", "iq3_s", "mxfp4")
"""Types in which a GPU is compared with the CPU: one of each family of kernels."""


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama model."""

    layers: int
    embd: int
    ff: int
    heads: int
    heads_kv: int
    vocab: int
    context: int


SHAPES = {
    "tiny": Shape(4, 256, 512, 4, 2, 512, 2048),
    "160m": Shape(12, 768, 2048, 12, 12, 32000, 2048),
    "1b": Shape(22, 2048, 5632, 32, 4, 32000, 2048),  # as TinyLlama 1.1B
    "7b": Shape(32, 4096, 11008, 32, 32, 32000, 4096),  # as Llama 2 7B
    "8b": Shape(32, 4096, 14336, 32, 8, 128256, 8192),  # as Llama 3 8B
    "13b": Shape(40, 5120, 13824, 40, 40, 32000, 4096),  # as Llama 2 13B
}


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: `rows` vectors of `columns` weights (columns = inputs of the matrix)."""

    name: str
    type: str
    rows: int
    columns: int
    std: float
    """Standard deviation of its weights; 0: all ones."""

    @property
    def row_bytes(self) -> int:
        size, weights = BLOCKS[self.type]
        return self.columns // weights * size

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


def tensors(shape: Shape, type_: str) -> list[Tensor]:
    """Every tensor of a model, in file order.

    The output matrix of a q4_0 model is q6_K, as llama-quantize writes it.
    """
    output_type = "q6_K" if type_ == "q4_0" and shape.embd % 256 == 0 else type_
    embd, ff = shape.embd, shape.ff
    kv = embd // shape.heads * shape.heads_kv

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        return Tensor(name, type_, rows, columns, 1 / math.sqrt(columns))

    def norm(name: str) -> Tensor:
        return Tensor(name, "f32", 1, embd, 0.0)

    result = [Tensor("token_embd.weight", type_, shape.vocab, embd, 0.5)]
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        result += [
            norm(block + "attn_norm.weight"),
            matrix(block + "attn_q.weight", embd, embd),
            matrix(block + "attn_k.weight", kv, embd),
            matrix(block + "attn_v.weight", kv, embd),
            matrix(block + "attn_output.weight", embd, embd),
            norm(block + "ffn_norm.weight"),
            matrix(block + "ffn_gate.weight", ff, embd),
            matrix(block + "ffn_up.weight", ff, embd),
            matrix(block + "ffn_down.weight", embd, ff),
        ]
    output = Tensor("output.weight", output_type, shape.vocab, embd, 1 / math.sqrt(embd))
    return [*result, norm("output_norm.weight"), output]


def estimate_bytes(shape: str, type_: str) -> int:
    """Size of the finished file, from above: tensors, vocabulary and padding."""
    dims = SHAPES[shape]
    parts = tensors(dims, type_)
    return sum(t.bytes for t in parts) + 40 * dims.vocab + 128 * len(parts) + 4096


def file_name(shape: str, type_: str) -> str:
    return f"synthetic-{shape}-{type_}.gguf"


def parse(model: str) -> tuple[str, str] | None:
    """Shape and type of "synthetic:7b-q4_0"; None for anything else."""
    shape, _, type_ = model.removeprefix(PREFIX).partition("-")
    known = model.startswith(PREFIX) and shape in SHAPES and type_ in TYPES
    return (shape, type_) if known else None


def name(shape: str, type_: str) -> str:
    """As `parse` reads it."""
    return f"{PREFIX}{shape}-{type_}"


def estimate_mib(model: str) -> int:
    """Size of a synthetic model's file; 0 for any other model."""
    named = parse(model)
    return -(-estimate_bytes(*named) // MIB) if named else 0


def for_vram(mib: int) -> str:
    """The synthetic model to measure a GPU of that memory with."""
    return name("7b" if mib >= SMALLEST_VRAM_FOR_7B_MIB else "1b", "q4_0")


FOR_CPU = name("160m", "q4_0")
"""The synthetic model to measure a CPU with."""
