"""Graphs for tests: decodes recorded on H200s with CUDA 13.0 (data/graphs), replayed to the
recorder, and graphs of other models like those.

A recording has a line for each node: operation, name, buffer, and its sources with name,
operation, buffer and the name of what they are a view of.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llamafleet.onhost.verify.ggml import COMPUTE, INPUT_FLAG, WEIGHTS, Tensor
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.onhost.verify.graph import BETWEEN, INPUT, OUTPUT, Graph, Recorder, Seen
from llamafleet.onhost.verify.weights import Weights

DATA = Path(__file__).parents[1] / "data" / "graphs"
BUS_IDS = ("0000:04:00.0", "0000:05:00.0")
MIB = 1 << 20


def card(number: int, bus_id: str | None = None) -> Gpu:
    """A GPU of that host."""
    where = BUS_IDS[number] if bus_id is None else bus_id
    return Gpu(number, "NVIDIA H200", f"GPU-{number}", where, "9.0", 143771)


Leaf = Callable[[str, str], str]
"""Name and buffer of a tensor that no node computes -> the buffer to show it in."""


def tiny(device_bytes: int = 1443840) -> Weights:
    """The model of the recordings: 4 layers."""
    return Weights(4, 1517568, device_bytes, 2048.0, frozenset(range(4)))


def w160m() -> Weights:
    """The model of the logs: 12 layers."""
    return Weights(12, 81836544, 68012544, 36864.0, frozenset(range(12)))


@dataclass
class Replay:
    """ggml's functions over tensors as a recording names them.

    What it does not hold is set as llama.cpp sets it: a weight's buffer is one of weights, a
    cache's has no use, all others are a graph's; a tensor that nobody computes is an input.
    """

    nodes: list[Any]
    leaf: Leaf = lambda name, buffer: buffer
    kernels: bool = True
    """The GPU has one for every operation."""

    def __post_init__(self) -> None:
        self.ops: list[str] = ["NONE"]
        self.buffers: list[tuple[str, int]] = []
        self.tensors: dict[tuple[str, str], Tensor] = {}
        self.computed: dict[str, Tensor] = {}
        self.order = [self._node(*node) for node in self.nodes]

    def _buffer(self, name: str, usage: int) -> int:
        if (name, usage) not in self.buffers:
            self.buffers.append((name, usage))
        return self.buffers.index((name, usage)) + 1

    def _op(self, name: str) -> int:
        if name not in self.ops:
            self.ops.append(name)
        return self.ops.index(name)

    def _leaf(self, name: str, buffer: str) -> Tensor:
        if (name, "NONE") not in self.tensors:
            copy = "#" in name
            weight = name.endswith(".weight") and not copy
            usage = WEIGHTS if weight else 0 if name.startswith("cache_") else COMPUTE
            flags = INPUT_FLAG if usage == COMPUTE and not copy else 0
            shown = self._buffer(self.leaf(name, buffer), usage)
            made = Tensor(name=name.encode(), buffer=shown, flags=flags)
            self.tensors[name, "NONE"] = made
        return self.tensors[name, "NONE"]

    def _node(self, op: str, name: str, buffer: str, sources: list[list[Any]]) -> Tensor:
        read = [self._source(*source) for source in sources]
        node = Tensor(name=name.encode(), op=self._op(op), buffer=self._buffer(buffer, COMPUTE))
        for place, source in enumerate(read):
            node.src[place] = ctypes.addressof(source)
        cache = self.tensors.get((name.partition(" ")[0], "NONE"))
        if op in ("VIEW", "PERMUTE", "RESHAPE"):
            node.view_src = ctypes.addressof(read[0])
        elif cache is not None:
            node.view_src = ctypes.addressof(cache)
            node.buffer = cache.buffer
        self.tensors[name, op] = node
        return node

    def _source(self, name: str, op: str, buffer: str, _: str | None) -> Tensor:
        if op == "NONE":
            return self._leaf(name, buffer)
        return self.tensors[name, op]

    def functions(self) -> SimpleNamespace:
        def is_host(buffer: int) -> bool:
            return (
                not self.buffers[buffer - 1][0].startswith("CUDA")
                or "Host" in (self.buffers[buffer - 1][0])
            )

        return SimpleNamespace(
            op_name=lambda op: self.ops[op].encode(),
            nbytes=lambda address: 1024,
            backend_buffer_name=lambda buffer: self.buffers[buffer - 1][0].encode(),
            backend_buffer_is_host=is_host,
            backend_buffer_get_usage=lambda buffer: self.buffers[buffer - 1][1],
            backend_dev_count=lambda: 2,
            backend_dev_get=lambda index: index,
            backend_dev_name=lambda index: (b"CUDA0", b"CPU")[index],
            backend_dev_supports_op=lambda device, address: self.kernels,
        )


def recorder_of(replay: Replay) -> Recorder:
    """That has seen the whole replay."""
    recorder = Recorder(replay.functions())
    recorder.on = True
    for node in replay.order:
        assert recorder.see(ctypes.addressof(node), True, None) is False
    return recorder


def recorded(name: str) -> list[Any]:
    """A recording of the tiny model: one, two (GPUs), zero, half, four-of-five (layers on the GPU),
    zero-64-tokens."""
    text = (DATA / f"tiny-{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def graph_of(name: str, leaf: Leaf = lambda name, buffer: buffer, **more: Any) -> Graph:
    """What the recorder makes of a recording, some of its leaves in another buffer."""
    recorder = recorder_of(Replay(recorded(name), leaf, **more))
    devices: dict[str, str | None] = {"CUDA0": BUS_IDS[0]}
    if name == "two":
        devices["CUDA1"] = BUS_IDS[1]
    return Graph(recorder.nodes, recorder.seen(), devices, 4, 0, 0.01, recorder.problem)


def like(devices: Sequence[str], bus_ids: dict[str, str | None] | None = None) -> Graph:
    """As the recorder shows the 160m model with its layers, the output last, on those devices:
    "CUDA0", or "" for the CPU."""
    seen = [
        Seen(INPUT, "weight", "CPU_Mapped", 1, 13824000, ("token_embd.weight",)),
        Seen(INPUT, "operation", "CUDA_Host", 1, 0, ("GET_ROWS embd",)),
    ]
    for number, device in enumerate(devices[:-1]):
        layer = str(number)
        names = tuple(f"blk.{layer}.{part}.weight" for part in ("attn_norm", "attn_q", "attn_v"))
        caches = (f"cache_k_l{layer}", f"cache_v_l{layer}")
        seen += [
            Seen(layer, "operation", device or "CUDA_Host", 17, 0, (f"RMS_NORM norm-{layer}",)),
            Seen(layer, "weight", device or "CPU_Mapped", 9, 3987456, names),
            Seen(layer, "operation", device or "CPU", 2, 0, (f"SET_ROWS cache_k_l{layer} (view)",)),
            Seen(layer, "cache", device or "CPU", 2, 3 * MIB // 2, caches),
        ]
    last = devices[-1]
    outputs = ("output_norm.weight", "output.weight")
    seen += [
        Seen(BETWEEN, "operation", last or "CUDA_Host", 3, 0, ("RMS_NORM norm",)),
        Seen(OUTPUT, "weight", last or "CPU_Mapped", 2, 20163072, outputs),
        Seen(OUTPUT, "operation", last or "CUDA_Host", 2, 0, ("MUL result_norm",)),
    ]
    ids = bus_ids or {name: None for name in sorted(set(devices)) if name}
    return Graph(378, tuple(seen), ids, len(devices) - 1, 0, 0.05)


ON_GPU = like(["CUDA0"] * 13)
ON_TWO = like(["CUDA0"] * 7 + ["CUDA1"] * 6)
HALF = like([""] * 7 + ["CUDA0"] * 6)
ON_CPU = like([""] * 13)
SMALL_ON_GPU, SMALL_ON_CPU = like(["CUDA0"] * 5), like([""] * 5)
"""As the tiny model's."""


def sent(graph: Graph) -> Any:
    """As the worker's reply has it."""
    return json.loads(json.dumps(asdict(graph)))


def without_output(graph: Graph) -> Graph:
    return replace(graph, seen=tuple(row for row in graph.seen if row.layer != OUTPUT))
