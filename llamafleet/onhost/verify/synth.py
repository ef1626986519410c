"""Synthetic models: valid Llama-architecture GGUF files with random weights.

They need no download and cost a GPU what a trained model of the same shape costs. Quantised blocks
are made as bytes, with scales such that the weights of a matrix with n inputs have a standard
deviation of about 1/sqrt(n): activations stay near 1 and nothing overflows 16 bit.
The bytes follow from shape, type, seed and numpy's generator.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llamafleet.protocol.job import read_json, write_json
from llamafleet.protocol.models import (
    BLOCKS,
    SHAPES,
    TYPES,
    Shape,
    Tensor,
    estimate_bytes,
    file_name,
    tensors,
)

SEED = 1
CHUNK_BYTES = 32 << 20
"""Peak memory of the writer: about twice this."""

SPREADS = {
    # Each is sqrt(E(scale^2) * E(quant^2)) of a block of random bytes whose own scale is 1.
    "q4_0": math.sqrt((16**2 - 1) / 12),  # q - 8, q in 0..15
    "q8_0": math.sqrt((256**2 - 1) / 12),  # q in -128..127
    "q6_K": math.sqrt((64**2 - 1) / 12) * 47.5,  # s * (q - 32), q in 0..63, s in 32..63
    # s * q - 7.5 * m, with s and m in 0..63 and q in 0..15
    "q4_K": math.sqrt(1333.5 * 77.5 + 7.5**2 * 1333.5 - 2 * 7.5**2 * 31.5**2),
    "iq2_xs": math.sqrt(85.25 * 586.476) / 4,  # (s + 0.5) / 4 * g, s in 0..15, g of iq2xs_grid
    "iq3_s": math.sqrt(341 * 57.6719),  # (2 * s + 1) * g, s in 0..15, g of iq3s_grid
    "mxfp4": math.sqrt(274 / 8),  # 0, 1, 2, 3, 4, 6, 8, 12 and their negatives
}
"""Standard deviation of the weights of a block of random bytes, all of which are valid
(ggml-common.h), by a scale of 1."""

_SCALES = {
    "q4_0": ((0, 1.0),),
    "q8_0": ((0, 1.0),),
    "q6_K": ((208, 1.0),),
    "q4_K": ((0, 1.0), (2, 7.5)),  # of the quants, and of the minimum that is taken off them
    "iq2_xs": ((0, 1.0),),
    "iq3_s": ((0, 1.0),),
    "mxfp4": (),
}
"""Where the 16-bit scales of a block lie, and what each is a multiple of."""

_WORDS = ("the", "a", "of", "and", "to", "in", "is", "it", "you", "that", "was", "for", "on")


class ModelError(Exception):
    """The model can't be had; the text says why."""

    def __init__(self, found: str, next: str, expected: str = "a model that is whole") -> None:
        super().__init__(found)
        self.next, self.expected = next, expected


def vocabulary(size: int) -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary; types as in gguf.TokenType."""
    normal, unknown, control, byte = 1, 2, 3, 6
    tokens = [(b"<unk>", unknown), (b"<s>", control), (b"</s>", control)]
    tokens += [(f"<0x{value:02X}>".encode(), byte) for value in range(256)]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["\u2581", *letters, *".,!?0123456789", *("\u2581" + word for word in _WORDS)]
    tokens += [(piece.encode(), normal) for piece in pieces]
    tokens += [(f"\u2581w{number}".encode(), normal) for number in range(len(tokens), size)]
    tokens = tokens[:size]
    scores = [0.0 if kind != normal else -float(rank) for rank, (_, kind) in enumerate(tokens)]
    return [text for text, _ in tokens], scores, [kind for _, kind in tokens]


def _rows(tensor: Tensor, rows: int, rng: Any) -> Any:
    """Random weights for `rows` rows of `tensor`, as the bytes that go into the file."""
    import numpy as np

    if tensor.std == 0:
        return np.ones((rows, tensor.columns), dtype=np.float32)
    if tensor.type == "f16":
        values = rng.standard_normal((rows, tensor.columns), dtype=np.float32)
        return (values * np.float32(tensor.std)).astype(np.float16)
    size, weights = BLOCKS[tensor.type]
    count = rows * tensor.columns // weights
    blocks = np.frombuffer(rng.bytes(count * size), dtype=np.uint8).reshape(count, size).copy()
    if tensor.type == "q6_K":
        blocks[:, 192:208] = 32 + blocks[:, 192:208] % 32
    jitter = 0.8 + 0.4 * rng.random(count, dtype=np.float32)
    scale = tensor.std / SPREADS[tensor.type] * jitter
    if tensor.type == "mxfp4":
        blocks[:, 0] = _exponents(scale, rng)
    for start, share in _SCALES[tensor.type]:
        halves = (scale * np.float32(share)).astype(np.float16)
        blocks[:, start : start + 2] = halves.view(np.uint8).reshape(count, 2)
    return blocks.reshape(rows, tensor.row_bytes)


def _exponents(scale: Any, rng: Any) -> Any:
    """E8M0 bytes, powers of two, whose mean square is that of `scale`: each is rounded up as often
    as that needs. A byte e means 2 ** (e - 128), as the weights of the type are doubled."""
    import numpy as np

    exact = np.log2(scale)
    lower = np.floor(exact)
    up = rng.random(len(scale), dtype=np.float32) < (4.0 ** (exact - lower) - 1) / 3
    return (lower + up + 128).astype(np.uint8)


def _chunks(tensor: Tensor, rng: Any) -> Iterator[Any]:
    step = max(1, CHUNK_BYTES // tensor.row_bytes)
    for start in range(0, tensor.rows, step):
        yield _rows(tensor, min(step, tensor.rows - start), rng)


def _header(writer: Any, name: str, type_: str, shape: Shape) -> None:
    import gguf

    file_types = {
        "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S,
        "q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
        "iq2_xs": gguf.LlamaFileType.MOSTLY_IQ2_XS,
        "iq3_s": gguf.LlamaFileType.MOSTLY_IQ3_S,
        "mxfp4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
    }
    writer.add_name(name)
    writer.add_description("random weights, made to measure a host; it has nothing to say")
    writer.add_file_type(file_types[type_])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.embd // shape.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab)
    tokens, scores, types = vocabulary(shape.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def write(
    path: Path,
    shape: str,
    type_: str,
    seed: int = SEED,
    on_tensor: Callable[[int, int], object] = lambda done, of: None,
) -> dict[str, Any]:
    """Write a model to `path` and its description to `path`.json; returns the description.

    The model has a temporary name until it is whole. Raises OSError (disk full) and ImportError.
    """
    import gguf
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    parts = tensors(SHAPES[shape], type_)
    try:
        writer = gguf.GGUFWriter(partial, "llama")
        _header(writer, f"synthetic {shape} {type_}", type_, SHAPES[shape])
        for tensor in parts:
            raw = gguf.GGMLQuantizationType[tensor.type.upper()]
            dims = [tensor.rows, tensor.columns] if tensor.rows > 1 else [tensor.columns]
            # With raw_dtype the element type is not looked at; float16 passes the writer's check.
            writer.add_tensor_info(tensor.name, dims, np.dtype(np.float16), tensor.bytes, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _data(writer, parts, seed, on_tensor)
        writer.close()
        about = {
            "shape": shape,
            "type": type_,
            "seed": seed,
            "bytes": partial.stat().st_size,
            "sha256": sha256_of(partial),
            "numpy": np.__version__,
        }
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    write_json(sidecar(path), about)
    return about


def _data(
    writer: Any, parts: Sequence[Tensor], seed: int, on_tensor: Callable[[int, int], object]
) -> None:
    """Numbers for each tensor; the same seed gives the same."""
    import numpy as np

    rng = np.random.Generator(np.random.SFC64(seed))
    assert writer.fout is not None
    out = writer.fout[0]
    for number, tensor in enumerate(parts):
        writer.write_padding(out, out.tell())
        for chunk in _chunks(tensor, rng):
            chunk.tofile(out)
        writer.write_padding(out, tensor.bytes)
        on_tensor(number + 1, len(parts))


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def ensure(
    folder: Path,
    shape: str,
    type_: str,
    on_tensor: Callable[[int, int], object] = lambda done, of: None,
) -> tuple[Path, dict[str, Any]]:
    """The model of this shape and type in `folder`: written once, then only checked.

    Raises ModelError where the file differs from its description, or can't be written.
    """
    path = folder / file_name(shape, type_)
    about = read_json(sidecar(path))
    try:
        if about is None or not path.exists():
            return path, write(path, shape, type_, on_tensor=on_tensor)
        size = path.stat().st_size
        if size != about.get("bytes"):
            found = f"{size} bytes, expected {about.get('bytes')}"
        elif (sha256 := sha256_of(path)) != about.get("sha256"):
            found = f"sha256 {sha256[:12]}, expected {str(about.get('sha256'))[:12]}"
        else:
            return path, about
    except ImportError as error:
        advice = "run the verification inside the build's own venv, which has numpy and gguf"
        raise ModelError(f"can't write {path}: {error}", advice) from error
    except OSError as error:
        needed = estimate_bytes(shape, type_) >> 20
        advice = f"make {needed} MiB free and writable in {folder}"
        raise ModelError(f"can't write {path}: {error}", advice) from error
    raise ModelError(f"{path} is damaged: {found}", f"rm {path}: it is written anew")


def main(argv: list[str]) -> int:
    """`synth --shape 160m --type q4_0 -o FILE`; prints the description as one line of JSON."""
    parser = argparse.ArgumentParser(prog="synth", description="Write a synthetic model.")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--type", choices=TYPES, default="q4_0")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        about = write(options.output, options.shape, options.type, options.seed)
    except (OSError, ImportError) as error:
        print(f"synth: {options.output}: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"path": str(options.output)} | about))
    return 0
