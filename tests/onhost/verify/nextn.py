"""A small model with a layer for the prediction of further tokens, and no output matrix of its own:
architecture glm4 (src/models/glm4.cpp), 3 layers and one more, random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify.synth import vocabulary

LAYERS, EMBD, FF, HEADS, HEADS_KV, VOCAB = 4, 256, 512, 4, 2, 512
PREDICTING = 1


def write(path: Path) -> Path:
    """Write it; 16 bit matrices."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "glm4")
    _header(writer)
    rng = np.random.Generator(np.random.SFC64(1))

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) / columns**0.5
        writer.add_tensor(name, values.astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(EMBD, dtype=np.float32))

    matrix("token_embd.weight", VOCAB, EMBD)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            norm(f"{block}{name}.weight")
        kv = EMBD // HEADS * HEADS_KV
        for name, rows in (("q", EMBD), ("k", kv), ("v", kv), ("output", EMBD)):
            matrix(f"{block}attn_{name}.weight", rows, EMBD)
        matrix(f"{block}ffn_up.weight", 2 * FF, EMBD)
        matrix(f"{block}ffn_down.weight", EMBD, FF)
        if layer >= LAYERS - PREDICTING:
            matrix(f"{block}nextn.eh_proj.weight", EMBD, 2 * EMBD)
            norm(f"{block}nextn.enorm.weight")
            norm(f"{block}nextn.hnorm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _header(writer: Any) -> None:
    writer.add_block_count(LAYERS)
    writer.add_uint32("glm4.nextn_predict_layers", PREDICTING)
    writer.add_context_length(2048)
    writer.add_embedding_length(EMBD)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBD // HEADS // 2)
    tokens, scores, types = vocabulary(VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
