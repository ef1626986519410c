"""The whole model is on CUDA devices: by the graph that llama.cpp computes, and by its log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamafleet.onhost.verify import known, llama_log
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import MIB, task_failed
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.onhost.verify.graph import BETWEEN, INPUT, OUTPUT, UNSEEN, Graph, Kind, Seen
from llamafleet.onhost.verify.llama_log import Placement, is_cuda, listed
from llamafleet.onhost.verify.place import Place
from llamafleet.onhost.verify.weights import Weights
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.result import Check, failed, passed

NAME = "offload"
READ_LOG = "read the worker's log beside progress.json"
"""Where the catalogue has no better advice."""
ROUNDING_MIB = 0.005
"""The log gives a buffer's size with two decimals."""

SHARE = 1.5
"""Layers, by a GPU's share of all memory, from which on it must have one. llama.cpp divides them by
free memory, and rounds: with less a GPU may have none."""

_MOST = 4
"""Faults that are told of one run."""
_THINGS: Mapping[Kind, str] = {
    "weight": "weights",
    "cache": "KV caches",
    "copy": "copies, made for each operation, of weights or caches",
    "operation": "results of operations",
}


@dataclass(frozen=True)
class Witness:
    """What the log says of a model that should be on the GPUs."""

    says: Literal["yes", "no", "nothing"]
    text: str


def judge_offload(seen: Graph, placed: Placement, held: Weights, gpus: Sequence[Gpu] = ()) -> Check:
    """The graph is the proof; the log must not contradict it, and may be silent: its wording
    changes from version to version.

    `gpus`: those that must all be used, and no other; none: NVML names none. Neither the log's
    "offloaded N/M" nor llama_supports_gpu_offload() counts: both are also right with every layer on
    the CPU.
    """
    wanted = _wanted(held)
    graph, log = _told(seen, held), judge_log(placed, seen, held)
    expected = (
        f"{wanted} of {wanted} layers on CUDA devices, each whole on one, by the graph of a "
        f"decode; the log says nothing else, nor less than {held.device_bytes / MIB:.2f} MiB"
    )
    faults = list(_faults(seen, held, gpus))
    if faults:
        more = [f"and {len(faults) - _MOST} more"] if len(faults) > _MOST else []
        found = "; ".join([f"graph: {graph}", *faults[:_MOST], *more, f"log: {log.text}"])
        return failed(NAME, found, expected, READ_LOG)
    if log.says == "no":
        found = f"graph and log disagree; graph: {graph}; log: {log.text}"
        return failed(NAME, found, expected, f"{READ_LOG}, and report it")
    prices = [f"{row.count} of layer {row.layer}{_examples([row])}" for row in seen.of("refused")]
    if prices:
        found = f"on the CPU, as the GPU has no kernel for them: {'; '.join(prices[:_MOST])}"
        advice = "use a model of another architecture, or a newer llama-cpp-python"
        return Check(NAME, "warn", f"{found}; graph: {graph}; log: {log.text}", expected, advice)
    return passed(NAME, f"{graph}; log: {log.text}", expected)


def _wanted(held: Weights) -> int:
    """How many layers take part in a decode, the output layer among them."""
    return len(_layers(held))


# -- the graph -------------------------------------------------------------------------------------


def _faults(seen: Graph, held: Weights, gpus: Sequence[Gpu]) -> Iterator[str]:
    """A sentence for each thing that is not where it belongs."""
    if seen.problem:
        yield "it proves nothing"
        return
    if seen.n_layer + seen.n_layer_nextn != held.layers:
        counted = f"{seen.n_layer} layers and {seen.n_layer_nextn} to predict further tokens"
        yield f"the graph is of another model: {counted}, the file has {held.layers}"
    there = {row.layer for row in seen.of("weight")}
    missing = [layer for layer in _layers(held) if layer not in there]
    if missing:
        yield f"no weight of {_named(missing)} in the graph of {seen.nodes} nodes"
    if seen.memory and not any(seen.of("cache")):
        yield f"no KV cache in the graph of {seen.nodes} nodes"
    yield from _astray(seen)
    for layer in _layers(held):
        devices = _devices_of(seen, layer)
        if len(devices) > 1:
            yield f"{_named([layer])} is on {' and '.join(devices)} at once"
    yield from _unused(seen, held, gpus)


def _astray(seen: Graph) -> Iterator[str]:
    """What is not in a GPU's memory. The input layer is on the CPU by llama.cpp's design."""
    held = [*seen.of("weight", "cache")]
    rows = [row for row in held if row.layer != INPUT and not is_cuda(row.buffer)]
    rows += seen.of("copy")
    # Where weights are on the CPU, so are the operations: named only where they alone are.
    if not rows:
        computed = seen.of("operation")
        rows = [row for row in computed if row.layer != INPUT and not is_cuda(row.buffer)]
    groups: dict[tuple[Kind, str], list[Seen]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.buffer), []).append(row)
    for (kind, buffer), found in groups.items():
        count = sum(row.count for row in found)
        layers = _named(row.layer for row in found)
        yield f"{count} {_THINGS[kind]} of {layers} in {buffer}{_examples(found)}"


def _unused(seen: Graph, held: Weights, gpus: Sequence[Gpu]) -> Iterator[str]:
    """Each of these GPUs has a layer, where its share is one or more, and no other has one."""
    used = {name for layer in _layers(held) for name in _devices_of(seen, layer)}
    told = {seen.devices.get(name) for name in used}
    ids = {gpu.bus_id for gpu in gpus}
    memory = sum(gpu.vram_mib for gpu in gpus) or 1
    due = [gpu for gpu in gpus if gpu.vram_mib / memory * _wanted(held) >= SHARE]
    # The MIG devices of a card have one address, and so have GPUs whose address is not told.
    if gpus and None not in told and len(ids - {""}) == len(gpus):
        foreign = sorted(str(one) for one in told - ids)
        if foreign:
            yield f"layers on another GPU, at {', '.join(foreign)}"
        idle = [f"{gpu} at {gpu.bus_id}" for gpu in due if gpu.bus_id not in told]
    else:
        idle = [f"{len(due) - len(used)} of the GPUs"] if len(used) < len(due) else []
    if idle:
        yield f"no layer on {', '.join(idle)}"


def _devices_of(seen: Graph, layer: str) -> list[str]:
    """The CUDA devices that hold anything of it."""
    rows = [row.buffer for row in seen.of("weight", "cache") if row.layer == layer]
    return sorted({buffer for buffer in rows if is_cuda(buffer)})


def _layers(held: Weights) -> list[str]:
    return [*map(str, sorted(held.computed)), *([OUTPUT] if held.output else [])]


def _told(seen: Graph, held: Weights) -> str:
    """What the graph shows, in one sentence."""
    if seen.problem:
        return f"can't be read, {seen.problem}"
    where = Counter("+".join(_devices_of(seen, layer)) or "the CPU" for layer in _layers(held))
    on_gpu = sum(count for name, count in where.items() if name != "the CPU")
    sizes = {
        kind: sum(row.bytes for row in seen.of(kind) if is_cuda(row.buffer)) / MIB
        for kind in ("weight", "cache")
    }
    operations: Counter[str] = Counter()
    for row in seen.of("operation", "refused"):
        if row.layer != INPUT:
            operations[row.buffer if is_cuda(row.buffer) else "the CPU"] += row.count
    text = (
        f"{on_gpu} of {_wanted(held)} layers on CUDA devices ({listed(dict(sorted(where.items())))}"
        f"), {sizes['weight']:.2f} MiB of weights and {sizes['cache']:.2f} MiB of KV cache; "
        f"operations: {listed(dict(sorted(operations.items())))}"
        f", and those of the input layer{_examples(seen.of('operation'), INPUT)}"
    )
    if seen.n_layer_nextn:
        text += f"; layers to predict further tokens, which take no part: {seen.n_layer_nextn}"
    return text


def _named(layers: Iterable[str]) -> str:
    """As "layers 0-5, 7 and output"."""
    names = set(layers)
    numbers = sorted(int(layer) for layer in names if layer.isdecimal())
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [f"{a}" if a == b else f"{a}-{b}" for a, b in ranges]
    texts += [name for name in (INPUT, OUTPUT, BETWEEN) if name in names]
    return f"layer{'s' if len(names) > 1 else ''} {', '.join(texts)}"


def _examples(rows: Iterable[Seen], layer: str = "") -> str:
    """Two names of what was seen, of one layer or of all."""
    names = [name for row in rows for name in row.names if layer in ("", row.layer)]
    return f" ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""


# -- the log ---------------------------------------------------------------------------------------


def judge_log(placed: Placement, seen: Graph, held: Weights) -> Witness:
    """Each layer on the device that the graph shows, and no less memory there than the weights."""
    if placed.init_error:
        return Witness("no", f"CUDA did not start: {placed.init_error}")
    if placed.models > 1:
        return Witness("nothing", f"speaks of {placed.models} models: says nothing of this one")
    wanted = held.layers + 1
    text = (
        f"{placed.cuda_layers} of {wanted} layers on CUDA devices "
        f"({listed(placed.layers_per_device)}), CUDA model buffers "
        f"{placed.cuda_model_mib:.2f} MiB ({listed(placed.model_mib)})"
    )
    other = [
        f"layer {number} on {device}"
        for number, device in placed.layers.items()
        if not _as_seen(number, device, seen, held)
    ]
    if other:
        return Witness("no", f"{text}, {other[0]}{', ...' if len(other) > 1 else ''}")
    other = [name for name in placed.kv_mib if not is_cuda(name)]
    if other:
        return Witness("no", f"{text}, KV cache on {', '.join(other)}")
    rounding = ROUNDING_MIB * len(placed.model_mib)
    if placed.model_mib and placed.cuda_model_mib + rounding < held.device_bytes / MIB:
        return Witness("no", f"{text}, too little for the weights")
    if placed.requested and placed.requested[0] < placed.requested[1]:
        return Witness("no", "offloaded {} of {} layers".format(*placed.requested))
    if not placed.layers:
        return Witness("nothing", "says nothing of layers: llama.cpp's wording may have changed")
    return Witness("yes", text)


def _as_seen(number: int, device: str, seen: Graph, held: Weights) -> bool:
    """A layer that takes no part in the graph must be on some CUDA device all the same."""
    if number > held.layers or not is_cuda(device):
        return False
    devices = _devices_of(seen, OUTPUT if number == held.layers else str(number))
    return devices in ([], [device])


# -- the place -------------------------------------------------------------------------------------


def graph_of(reply: Mapping[str, Any] | None) -> Graph:
    """The worker's, or why there is none."""
    if not reply or "graph" not in reply:
        return UNSEEN
    try:
        return decode(Graph, reply["graph"])
    except DecodeError as error:
        return Graph(problem=f"what the worker shows of it: {error}")


def _place(place: Place) -> Check:
    held, ended = place.model().weights, place.generate()
    seen, placed = graph_of(ended.reply), llama_log.parse(ended.log)
    if ended.reply is None:
        # A run that died is no proof, however well its layers were placed.
        log, check = judge_log(placed, seen, held), task_failed(NAME, ended)
        if log.says != "no":
            return check
        check = failed(NAME, f"{ended.problem}; log: {log.text}", check.expected, READ_LOG)
        return known.explained(check, ended.log)
    check = judge_offload(seen, placed, held, place.gpus)
    place.offloaded = check.status in ("pass", "warn")
    return known.explained(check, ended.log)


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "all", "unnamed"}), needs=frozenset({"model"}))
