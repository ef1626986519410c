"""From the tables of a GGUF file to the Shape that the accounting of memory takes.

The names are those of llama.cpp's src/llama-arch.cpp, and what is put where that of
src/llama-model.cpp (load_tensors), both of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain

from llamafleet.onhost.verify.gguffile import GgufFile, GgufTensor, Value
from llamafleet.protocol.ggml_types import SIZES
from llamafleet.protocol.shape import Shape

ALIGNMENT = 128
"""Of a tensor in CUDA's memory: ggml-cuda.cu:897."""
ROW_PADDING = 512
"""Weights to a multiple of which the last row of a quantized matrix is filled: ggml-cuda.cu:913."""
UNQUANTIZED = frozenset({0, 1, 30})
"""F32, F16, BF16."""

LAYER = re.compile(r"blk\.([0-9]{1,5})\.")
INPUT = frozenset({"token_embd", "token_types", "position_embd", "per_layer_token_embd"})
"""First parts of the names of the tensors of the input layer: llama.cpp keeps it on the CPU also
with every layer offloaded (load_tensors in src/llama-model.cpp:1605, LLM_TENSOR_LAYER_INPUT in
src/llama-arch.cpp)."""

PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}
"""Of how many layers the last has no window, where the file does not say so:
src/models/{gemma2,gemma3,openai-moe}.cpp, load_swa_pattern."""
NO_WINDOW = frozenset({"phi3"})
"""States one and uses none: src/models/phi3.cpp:13."""

_BEYOND = {
    "kv_lora_rank": "keeps its context compressed (MLA)",
    "ssm.": "keeps a state beside its context (recurrent or hybrid)",
    "wkv.": "keeps a state and no context (recurrent)",
    "shortconv.": "keeps a state beside its context (hybrid)",
    "linear_attn.": "keeps a state beside its context (hybrid)",
    "indexer.": "keeps an index beside its context (sparse attention)",
    "compress": "keeps its context compressed",
    "decoder_": "is an encoder with a decoder",
    "causal": "is an encoder",
}
"""Parts of keys of models whose memory no formula here tells, with what they do: create_memory in
src/llama-model.cpp:2352."""


NO_FLASH = frozenset({"grok"})
"""llama.cpp switches flash attention off for them: llama-context.cpp:3817."""


def shape_of(files: tuple[GgufFile, ...]) -> Shape:
    """Of a whole model, as modelfile.read gives it; fields are those of the first file."""
    head = files[0]
    arch = head.text("general.architecture")
    tensors = tuple(chain.from_iterable(file.tensors for file in files))
    fields = _Fields(head, arch)
    layers = max(fields.number("block_count"), 1)
    matrices = {tensor.name: tensor for tensor in tensors}
    tokens = matrices.get("token_embd.weight")
    heads = fields.each("attention.head_count", layers)
    kv = fields.each("attention.head_count_kv", layers) if fields.has(
        "attention.head_count_kv"
    ) else heads  # fmt: skip
    embd = fields.number("embedding_length")
    head_key = fields.number("attention.key_length") or embd // max(*heads, 1)
    head_value = fields.number("attention.value_length") or head_key
    # Layers with a window may have heads of their own: the larger ones are counted.
    key = max(head_key, fields.number("attention.key_length_swa"))
    value = max(head_value, fields.number("attention.value_length_swa"))
    by_layer, output, on_cpu = _bytes(tensors, layers)
    if "output.weight" not in matrices and tokens is not None:
        output += _padded(tokens)  # llama-model.cpp: TENSOR_DUPLICATED
    experts = fields.number("expert_used_count")
    window = 0 if arch in NO_WINDOW else fields.number("attention.sliding_window")
    return Shape(
        name=head.text("general.name"),
        architecture=arch,
        context=fields.number("context_length"),
        weights=by_layer,
        output=output,
        on_cpu=on_cpu,
        largest=max((_padded(one) for one in tensors if LAYER.match(one.name)), default=0),
        keys=tuple(count * key for count in kv),
        values=tuple(count * value for count in kv),
        embd=embd,
        queries=max(max(heads) * key, _widest(tensors, "attn_q.weight")),
        feed=_feed(tensors, experts),
        experts=experts,
        vocab=tokens.dims[-1] if tokens is not None and tokens.dims else 0,
        heads=max(heads),
        head=head_key,
        head_value=head_value,
        half=any(len(one.dims) > 1 and one.type in UNQUANTIZED - {0} for one in tensors),
        window=window,
        windowed=fields.windowed(arch, layers) if window else (),
        unknown=_unknown(arch, fields, matrices),
    )


class _Fields:
    """The fields of one architecture, without its name before each."""

    def __init__(self, file: GgufFile, arch: str) -> None:
        self._all = file.fields
        self._arch = arch

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(f"{self._arch}.") for key in self._all)

    def has(self, key: str) -> bool:
        return f"{self._arch}.{key}" in self._all

    def _value(self, key: str) -> Value | None:
        return self._all.get(f"{self._arch}.{key}")

    def is_true(self, key: str) -> bool:
        return self._value(key) is True

    def number(self, key: str) -> int:
        """0 where there is none; of a list the largest."""
        found = self._value(key)
        if isinstance(found, list):
            found = max((one for one in found if type(one) is int), default=0)
        return found if type(found) is int and found > 0 else 0

    def each(self, key: str, layers: int) -> tuple[int, ...]:
        """A number for each layer."""
        found = self._value(key)
        if isinstance(found, list):
            whole = [one if type(one) is int and one > 0 else 0 for one in found[:layers]]
            return (*whole, *([max(whole, default=0)] * (layers - len(whole))))
        return (self.number(key),) * layers

    def windowed(self, arch: str, layers: int) -> tuple[bool, ...]:
        """Which layers have a window: hparams.set_swa_pattern, llama-hparams.cpp:8."""
        found = self._value("attention.sliding_window_pattern")
        if isinstance(found, list) and len(found) >= layers:
            return tuple(bool(one) for one in found[:layers])
        period = PERIODS.get(arch, 0)
        if not period:
            return ()
        period = self.number("attention.sliding_window_pattern") or period
        return tuple(layer % period < period - 1 for layer in range(layers))


def _bytes(tensors: tuple[GgufTensor, ...], layers: int) -> tuple[tuple[int, ...], int, int]:
    """(of each layer, of the output, of what stays on the CPU)"""
    by_layer = [0] * layers
    output = on_cpu = 0
    for tensor in tensors:
        match = LAYER.match(tensor.name)
        if match and int(match[1]) < layers:
            by_layer[int(match[1])] += _padded(tensor)
        elif tensor.name.partition(".")[0] in INPUT:
            on_cpu += tensor.bytes
        else:
            output += _padded(tensor)
    return tuple(by_layer), output, on_cpu


def _padded(tensor: GgufTensor) -> int:
    """Its room in CUDA's memory: ggml_backend_cuda_buffer_type_get_alloc_size."""
    block, size = SIZES.get(tensor.type, (1, 1))
    short = -tensor.dims[0] % ROW_PADDING if block > 1 and tensor.dims else 0
    return -(-(tensor.bytes + short // block * size) // ALIGNMENT) * ALIGNMENT


def _widest(tensors: tuple[GgufTensor, ...], name: str) -> int:
    """Most rows of a matrix of that name."""
    return max((one.dims[1] for one in tensors if one.name.endswith(f".{name}")
                and len(one.dims) > 1), default=0)  # fmt: skip


def _feed(tensors: tuple[GgufTensor, ...], experts: int) -> int:
    """The inputs of the matrix that leads out of the feed-forward part, of a token's experts."""

    def inputs(name: str) -> int:
        found = (one.dims[0] for one in tensors if one.name.endswith(f".{name}.weight"))
        return max(found, default=0)

    return max(inputs("ffn_down"), experts * inputs("ffn_down_exps") + inputs("ffn_down_shexp"))


def _unknown(arch: str, fields: _Fields, tensors: Mapping[str, GgufTensor]) -> str:
    if arch in NO_FLASH:
        return "it is computed without flash attention, whatever is asked for"
    tokens = tensors.get("token_embd.weight")
    if tokens is None or len(tokens.dims) < 2:
        return "it has no token_embd.weight, which tells the size of its vocabulary"
    for key in fields:
        for part, why in _BEYOND.items():
            if part in key and not (part == "causal" and fields.is_true(key)):
                return f"it {why}: {key}"
    if any(name.startswith(("enc.", "dec.")) for name in tensors):
        return f"it {_BEYOND['decoder_']}"
    return ""
