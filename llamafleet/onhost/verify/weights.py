"""What a GGUF file holds, read from its own tensor table: an independent figure for the log's.

It is what must be on a GPU at least, for each model that can be verified: bytes as the file has
them. What may be there at most, with CUDA's padding, is shape.py's, and of fewer models.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import StatisticsError, fmean

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.gguffile import FETCH, WHOLE, Value
from llamafleet.onhost.verify.shape import INPUT, LAYER
from llamafleet.onhost.verify.synth import ModelError

_SHAPE = (
    ".block_count",
    ".embedding_length",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
    ".attention.causal",
    ".nextn_predict_layers",
)

LARGEST = 1e9
"""More than any figure of a model's shape."""


@dataclass(frozen=True)
class Weights:
    """Sizes in bytes."""

    layers: int
    """Repeating layers; llama.cpp counts the output layer in addition."""
    total_bytes: int
    device_bytes: int
    """What a full offload puts on the GPU: all but the input layer, and but the layers that predict
    further tokens, which llama.cpp leaves out where it is not asked for them (load_mtp). A model
    whose output matrix is its input embedding has that on the GPU as well."""
    kv_bytes_per_token: float
    """Of a KV cache in 16 bit, all layers; an estimate, from above where a layer sees only a
    window. At least 1."""
    computed: frozenset[int] = frozenset()
    """Numbers of the layers that take part in every decode: those that hold a tensor, without
    those that predict further tokens, the last."""
    files: tuple[Path, ...] = ()
    """All parts of the model."""
    output: bool = True
    """It has an output layer: a model that only embeds texts has none."""


def read(path: Path) -> Weights:
    """Read all parts of a model. Raises ModelError and OSError."""
    total = on_input = embedding = 0
    shape: dict[str, float] = {}
    of_layer: Counter[int] = Counter()
    has_output = False
    files = modelfile.read(path)
    for file in files:
        for key, value in file.fields.items():
            if key.endswith(_SHAPE):
                shape[key.rsplit(".", 1)[-1]] = _figure(path, key, value)
        for tensor in file.tensors:
            total += tensor.bytes
            has_output |= tensor.name == "output.weight"
            if tensor.name.partition(".")[0] in INPUT:
                on_input += tensor.bytes
            if layer := LAYER.match(tensor.name):
                of_layer[int(layer[1])] += tensor.bytes
            if tensor.name == "token_embd.weight":
                embedding = tensor.bytes
    layers = int(shape.get("block_count", 0))
    trunk = layers - int(shape.get("nextn_predict_layers", 0))
    left_out = sum(size for layer, size in of_layer.items() if layer >= trunk)
    # One that looks ahead and has no output matrix predicts no token.
    output = has_output or bool(shape.get("causal", 1))
    device = total - on_input - left_out + (embedding if output and not has_output else 0)
    return Weights(
        layers,
        total,
        device,
        max(1.0, layers * _kv_bytes(shape)),
        frozenset(layer for layer in of_layer if layer < trunk),
        tuple(file.path for file in files),
        output,
    )


def _kv_bytes(shape: dict[str, float]) -> float:
    """Bytes per token and layer: keys and values of all KV heads, two bytes each."""
    heads = shape.get("head_count", 1)
    head = shape.get("embedding_length", 0) / heads if heads else 0  # none: no attention
    lengths = shape.get("key_length", head) + shape.get("value_length", head)
    return 2 * shape.get("head_count_kv", heads) * lengths


def _figure(path: Path, key: str, value: Value) -> float:
    """A figure that some models give per layer: their mean then. Raises ModelError."""
    numbers = value if isinstance(value, list) else [value]
    try:
        figure = fmean(number for number in numbers if not isinstance(number, str))
    except StatisticsError:
        figure = -1.0
    if not 0 <= figure <= LARGEST:
        found = f"the header of {path} is damaged: it says {key} = {value!a:.60}"
        raise ModelError(found, FETCH.format(path=path), WHOLE)
    return figure
