"""What llama.cpp's own graph says about where a model is: the evidence of the computation itself.

Before it computes a graph llama.cpp asks a callback (`cb_eval` of the context's parameters) about
each node. By then every tensor has its buffer, and the buffer tells the device. The callback
declines each node, so that nothing is copied or waited for: the decode is the usual one.

Only a decode of a single token proves anything. With a prompt (32 tokens and more) llama.cpp
copies weights that lie on the CPU to the GPU for each operation (`op_offload`), and every result
is then in the GPU's memory; the copy is named "CUDA0#blk.0.attn_q.weight#0", and the original is
no part of the graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Literal

from llamafleet.onhost.verify import shape
from llamafleet.onhost.verify.ggml import COMPUTE, INPUT_FLAG, WEIGHTS, Tensor, Unreadable
from llamafleet.onhost.verify.llama_log import is_cuda, printable

Kind = Literal["weight", "copy", "cache", "operation", "refused"]
"""A weight; a copy of a weight or of a cache, made for an operation; a tensor of the KV cache or
of another memory; an operation; one on the CPU for which no GPU of the process has a kernel."""

INPUT, OUTPUT, BETWEEN = "input", "output", "between"
"""Layers without a number. BETWEEN: no name tells the layer."""
EXAMPLES = 3
"""Names that are kept of each row."""
_NO_BUFFER = "no buffer"
_VIEWS = frozenset({"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
"""They compute nothing."""
_EMBEDDING, _MULTIPLIES = "token_embd", "MUL_MAT"
_LONGEST_CHAIN = 16
"""Views of views; llama.cpp makes two or three."""

_BLOCK = re.compile(r"(?:^|#)blk\.(\d{1,4})\.")
_OF_CACHE = re.compile(r"_l(\d{1,4})(?![\w.])")
_OF_NODE = re.compile(r"-(\d{1,4})(?![\w.-])")
_COPY = "#"
_COPY_OF_HELD = re.compile(r"#(?:blk\.|.*cache_|.*\.(?:weight|bias|scale))")
"""Copies are named DEVICE#ORIGINAL#NUMBER; one of a result or an input is usual where a graph goes
from one device to the next."""
_OUTPUT_STEM = re.compile(r"output|cls|dense_|hc_head")


@dataclass(frozen=True)
class Seen:
    """All of one kind and one layer that is in one buffer."""

    layer: str
    """A number, or INPUT, OUTPUT, BETWEEN."""
    kind: Kind
    buffer: str
    """As ggml names it: CUDA0, CPU_Mapped, CUDA_Host, ..."""
    count: int
    bytes: int = 0
    """None of operations."""
    names: tuple[str, ...] = ()
    """The first EXAMPLES."""


@dataclass(frozen=True)
class Graph:
    """One decode of a single token."""

    nodes: int = 0
    seen: tuple[Seen, ...] = ()
    devices: dict[str, str | None] = field(default_factory=dict)
    """The process's GPUs: name as a buffer has it -> PCI address, where it is told."""
    n_layer: int = 0
    """Layers of the model that take part, as llama.cpp counts them."""
    n_layer_nextn: int = 0
    """Layers after those, for the prediction of further tokens: not in this graph."""
    memory: bool = True
    """The context has a KV cache, or another memory: one that only embeds texts has none."""
    seconds: float = 0.0
    """For a context, the decode and what looks at it."""
    problem: str = ""
    """Why there is nothing to read."""

    def of(self, *kinds: Kind) -> Iterator[Seen]:
        return (row for row in self.seen if row.kind in kinds)


UNSEEN = Graph(problem="the worker shows none")
"""Of a reply without one."""


@dataclass
class _Row:
    count: int = 0
    bytes: int = 0
    names: list[str] = field(default_factory=list)


class Recorder:
    """The callback, and what it saw while `on`."""

    def __init__(self, ggml: SimpleNamespace) -> None:
        """`ggml`: as ggml.opened gives it."""
        self._ggml = ggml
        self.on = False
        self.nodes = 0
        self.problem = ""
        """What went wrong in the callback, from where no exception gets out."""
        self._rows: dict[tuple[str, Kind, str], _Row] = {}
        self._counted: set[tuple[int, str]] = set()
        self._prepared: set[int] = set()
        """Results of the input layer."""
        devices = map(ggml.backend_dev_get, range(ggml.backend_dev_count()))
        self._gpus = [one for one in devices if is_cuda(ggml.backend_dev_name(one).decode())]

    def see(self, address: int, ask: bool, _: object) -> bool:
        """Look at the node that llama.cpp asks about; it need not wait for it (False)."""
        if ask and self.on and not self.problem:
            try:
                self._look(address)
            except Exception as error:
                self.problem = f"{type(error).__name__}: {error}"
        return False

    def seen(self) -> tuple[Seen, ...]:
        return tuple(
            Seen(*key, row.count, row.bytes, tuple(row.names)) for key, row in self._rows.items()
        )

    def _look(self, address: int) -> None:
        node = Tensor.from_address(address)
        self.nodes += 1
        op = self._ggml.op_name(node.op).decode()
        roots = [_root(source) for source in node.src if source]
        held = [layer for root in roots if (layer := self._held(root, op))]
        own = _root(address)
        if own != address:
            # An operation that writes into the cache: its result is a view of it.
            held += [layer] if (layer := self._held(own, op)) else []
        if op in _VIEWS:
            return
        name = _name(node)
        numbered = [layer for layer in held if layer.isdecimal()] or [_number(_OF_NODE, name)]
        layer = numbered[0] or (held[0] if held else self._unnamed(roots))
        if layer == INPUT:
            self._prepared.add(address)
        buffer = self._buffer(own)
        refused = not is_cuda(buffer) and layer != INPUT and self._refused(address)
        self._add((layer, "refused" if refused else "operation", buffer), 0, f"{op} {name}")

    def _unnamed(self, roots: Iterable[int]) -> str:
        """An operation on nothing but inputs, and on what the input layer made of them, is part of
        the input layer."""
        return INPUT if all(map(self._is_prepared, roots)) else BETWEEN

    def _is_prepared(self, address: int) -> bool:
        tensor = Tensor.from_address(address)
        # In a pipeline over several GPUs copies have the flag as well, whatever they are of.
        given = tensor.flags & INPUT_FLAG and _COPY not in _name(tensor)
        return bool(given) or address in self._prepared

    def _held(self, address: int, op: str) -> str:
        """The layer of a weight, a cache or a copy of one, which is counted; "": it is none."""
        tensor = Tensor.from_address(address)
        if self._ggml.op_name(tensor.op) != b"NONE":
            return ""
        name, usage = _name(tensor), WEIGHTS  # of what has no buffer, which is then told
        if tensor.buffer:
            usage = self._ggml.backend_buffer_get_usage(tensor.buffer)
        kind: Kind
        if usage == WEIGHTS:
            kind, layer = "weight", weight_layer(name, op)
        elif usage != COMPUTE and not tensor.flags & INPUT_FLAG:
            kind, layer = "cache", _number(_OF_CACHE, name) or BETWEEN
        elif _COPY_OF_HELD.search(name):
            kind = "copy"
            layer = _number(_BLOCK, name) or _number(_OF_CACHE, name) or BETWEEN
        else:
            return ""
        if (address, layer) not in self._counted:
            self._counted.add((address, layer))
            size = self._ggml.nbytes(address)
            self._add((layer, kind, self._buffer(address)), size, name)
        return layer

    def _buffer(self, address: int) -> str:
        buffer = Tensor.from_address(address).buffer
        if not buffer:
            return _NO_BUFFER
        name = printable(self._ggml.backend_buffer_name(buffer).decode())
        # A buffer that the CPU can read is none of a GPU's, whatever it is called.
        host = is_cuda(name) and self._ggml.backend_buffer_is_host(buffer)
        return f"{name} (host)" if host else name

    def _refused(self, address: int) -> bool:
        """No GPU has a kernel for this operation."""
        can = self._ggml.backend_dev_supports_op
        return bool(self._gpus) and not any(can(gpu, address) for gpu in self._gpus)

    def _add(self, key: tuple[str, Kind, str], size: int, name: str) -> None:
        row = self._rows.setdefault(key, _Row())
        row.count += 1
        row.bytes += size
        if len(row.names) < EXAMPLES:
            row.names.append(name)


def weight_layer(name: str, op: str) -> str:
    """The layer of the weight of that name, as an operation of that kind reads it.

    A model whose output matrix is its input embedding has it twice, under one name.
    """
    number = _number(_BLOCK, name)
    if number:
        return number
    stem = name.partition(".")[0]
    if stem == _EMBEDDING and op == _MULTIPLIES:
        return OUTPUT
    if stem in shape.INPUT:
        return INPUT
    return OUTPUT if _OUTPUT_STEM.match(stem) else BETWEEN


def _root(address: int) -> int:
    """The tensor that a view is of, in the end. Raises Unreadable."""
    for _ in range(_LONGEST_CHAIN):
        source = Tensor.from_address(address).view_src
        if not source:
            return address
        address = source
    raise Unreadable(f"a view of a view, {_LONGEST_CHAIN} deep")


def _name(tensor: Tensor) -> str:
    return printable(tensor.name.decode(errors="replace"))


def _number(pattern: re.Pattern[str], name: str) -> str:
    found = pattern.search(name)
    return str(int(found[1])) if found else ""
