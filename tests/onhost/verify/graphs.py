"""Graphs for tests: decodes recorded on H200s with CUDA 13.0 (data/graphs), replayed to the
recorder, and graphs of other models like those.

A recording of nodes has a line for each: operation, name, buffer, and its sources with name,
operation, buffer and the name of what they are a view of. What the worker sent of a decode is JSON.
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
from llamafleet.protocol.decode import decode

DATA = Path(__file__).parents[1] / "data" / "graphs"
BUS_IDS = ("0000:00:06.0", "0000:00:07.0")
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
    pipeline: bool = False
    """Over several GPUs: copies are then marked as inputs."""

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
            given = usage == COMPUTE and (self.pipeline or not copy)
            shown = self._buffer(self.leaf(name, buffer), usage)
            made = Tensor(name=name.encode(), buffer=shown, flags=INPUT_FLAG * given)
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
    replay = Replay(recorded(name), leaf, pipeline=name == "two", **more)
    recorder = recorder_of(replay)
    devices: dict[str, str | None] = {"CUDA0": BUS_IDS[0]}
    if name == "two":
        devices["CUDA1"] = BUS_IDS[1]
    return Graph(recorder.nodes, recorder.seen(), devices, n_layer=4, problem=recorder.problem)


def shown(name: str) -> Graph:
    """What the worker sent of a model."""
    return decode(Graph, json.loads((DATA / f"{name}.json").read_text(encoding="utf-8")))


ON_GPU, ON_TWO, HALF, ON_CPU = (shown(f"160m-{name}") for name in ("one", "two", "half", "zero"))


def like(devices: Sequence[str], bus_ids: dict[str, str | None] | None = None) -> Graph:
    """As ON_GPU, with as many layers as there are devices, the output last; "": the CPU."""
    on_cpu = {"weight": "CPU_Mapped", "cache": "CPU"}

    def moved(row: Seen) -> Seen:
        number = int(row.layer) if row.layer.isdigit() else len(devices) - 1
        device = devices[number] or on_cpu.get(row.kind, "CUDA_Host")
        return row if row.layer == INPUT else replace(row, buffer=device)

    there = [INPUT, OUTPUT, BETWEEN, *map(str, range(len(devices) - 1))]
    seen = tuple(moved(row) for row in ON_GPU.seen if row.layer in there)
    ids = bus_ids or {name: None for name in sorted(set(devices)) if name}
    return replace(ON_GPU, seen=seen, devices=ids, n_layer=len(devices) - 1)


SMALL_ON_GPU, SMALL_ON_CPU = like(["CUDA0"] * 5), like([""] * 5)
"""As the tiny model's."""


def sent(graph: Graph) -> Any:
    """As the worker's reply has it."""
    return json.loads(json.dumps(asdict(graph)))


def without_output(graph: Graph) -> Graph:
    return replace(graph, seen=tuple(row for row in graph.seen if row.layer != OUTPUT))
