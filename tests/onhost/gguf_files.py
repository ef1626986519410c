"""GGUF files of a few bytes, as llama.cpp's own writer lays them out."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LANGUAGE_MODEL: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [2, 2],
    "tokenizer.ggml.tokens": ["<s>", "a"],
}
F32, Q4_0 = 0, 2
SIZES = {F32: (1, 4), Q4_0: (32, 18)}
TENSORS = (
    ("token_embd.weight", F32, (64, 2)),
    ("blk.0.attn_q.weight", Q4_0, (64, 3)),
    ("output.weight", F32, (64, 2)),
)
Tensor = tuple[str, int, tuple[int, ...]]


def gguf(
    fields: Mapping[str, Any] = LANGUAGE_MODEL,
    tensors: tuple[Tensor, ...] = TENSORS,
    *,
    version: int = 3,
    order: str = "<",
) -> bytes:
    """A whole file, its weights zero."""

    def text(value: str) -> bytes:
        return struct.pack(f"{order}Q", len(value)) + value.encode()

    def value(of: Any) -> bytes:
        if isinstance(of, str):
            return struct.pack(f"{order}I", 8) + text(of)
        if isinstance(of, list):
            kind = 8 if of and isinstance(of[0], str) else 4
            items = [text(x) if kind == 8 else struct.pack(f"{order}I", x) for x in of]
            return struct.pack(f"{order}IIQ", 9, kind, len(of)) + b"".join(items)
        return struct.pack(f"{order}II", 4, of)

    head = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(fields))
    head += b"".join(text(key) + value(of) for key, of in fields.items())
    offset = end = 0
    for name, kind, shape in tensors:
        head += text(name) + struct.pack(f"{order}I", len(shape))
        head += b"".join(struct.pack(f"{order}Q", n) for n in shape)
        head += struct.pack(f"{order}IQ", kind, offset)
        end = offset + _bytes(kind, shape)
        offset = -(-end // 32) * 32
    return head + b"\0" * (-len(head) % 32) + b"\0" * end


def _bytes(kind: int, shape: tuple[int, ...]) -> int:
    block, size = SIZES[kind]
    count = 1
    for n in shape:
        count *= n
    return count // block * size


def split(folder: Path, count: int, stem: str = "big") -> list[Path]:
    """The parts of a model, a tensor in each, as llama-gguf-split names and numbers them."""
    paths = []
    for number in range(count):
        told = {"split.no": number, "split.count": count, "split.tensors.count": count}
        fields = {**(LANGUAGE_MODEL if number == 0 else {}), **told}
        path = folder / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(gguf(fields, ((f"blk.{number}.attn_q.weight", Q4_0, (64, 3)),)))
        paths.append(path)
    return paths
