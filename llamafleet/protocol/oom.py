"""Out of memory: read from what llama.cpp and CUDA write, and what to reduce.

The lines are those of all releases from 0.3.27 to 0.3.36; where they stand in 0.3.36:
ggml/src/ggml-cuda/ggml-cuda.cu:100 (ggml_cuda_error), :888 (cudaMalloc), :583 (cuMemCreate);
ggml/src/ggml-alloc.c:941, :1134; src/llama-model.cpp:1870, :1886; src/llama-kv-cache.cpp:288;
src/llama-memory-recurrent.cpp:121; src/llama-context.cpp:678-729, :1443, :2574;
ggml/src/ggml-backend.cpp:2467.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamafleet.protocol.fit import (
    KV_TYPES,
    MIB,
    SMALL_BATCH,
    SMALLEST_CTX,
    Count,
    Room,
    Use,
    by_header,
    fits,
    kinds_below,
    smaller,
)
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape

Phase = Literal["weights", "context", "compute", "use"]
"""What had no room: the model's weights, the context, the buffer in which batches are computed, or
something that CUDA asked for while it computed."""

WHAT: dict[Phase, str] = {
    "weights": "the model's weights",
    "context": "the context",
    "compute": "the compute buffer",
    "use": "what CUDA takes while it computes",
}
CAUSES: dict[Phase, str] = {
    "weights": "oom-weights",
    "context": "oom-context",
    "compute": "oom-context",
    "use": "oom-weights",
}
"""The row of tables/failures.yaml that each is."""
HOST_CAUSE = "oom-host"
LONGEST = 300
"""Characters of a line that are quoted."""
UNSAID_MIB = 256
"""Less memory is aimed at by so much where no line says what was asked for."""


@dataclass(frozen=True)
class OutOfMemory:
    """The allocation that failed and was not made up for."""

    phase: Phase
    device: int | None
    """As CUDA numbers those that the process sees; None: the host's memory, or it is not said."""
    asked_mib: int | None
    """None: not said."""
    line: str
    host: bool = False

    @property
    def cause(self) -> str:
        """The id of its row in tables/failures.yaml."""
        return HOST_CAUSE if self.host else CAUSES[self.phase]

    def __str__(self) -> str:
        where = "a GPU" if self.device is None else f"GPU {self.device}"
        where = "the host" if self.host else where
        asked = "" if self.asked_mib is None else f"{self.asked_mib} MiB of "
        what = "a buffer" if self.host and self.phase == "use" else WHAT[self.phase]
        return f"{where} has no room for {asked}{what}: {self.line}"


# Each part has a bound: a line is read in time that grows with its length.
_MALLOC = re.compile(
    r"allocating +([0-9]{1,9}(?:\.[0-9]{1,3})?) MiB on device ([0-9]{1,4}): cudaMalloc failed:"
    r" *(.{0,80})"
)
_BUFFER = re.compile(
    r"(?:failed|unable) to allocate ([A-Za-z_]{1,32})([0-9]{0,4}) buffer(?: of size ([0-9]{1,15}))?"
)
_CPU = re.compile(r"_buffer_type_alloc_buffer: failed to allocate buffer of size ([0-9]{1,15})")
_ERROR = re.compile(r"(?:CUDA|cuBLAS) error(?: [0-9]{1,4} at .{1,200}?)?: *(.{1,160})", re.I)
_DEVICE = re.compile(r"current device: ([0-9]{1,4})")
_FULL = re.compile(
    r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|resource allocation failed"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY",
    re.IGNORECASE,
)
_PHASES: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    ("weights", re.compile(r"error loading model|unable to allocate \S{1,40} buffer")),
    ("context", re.compile(r"failed to allocate buffer for (?:kv|rs|DSV4)")),
    ("compute", re.compile(
        r"failed to allocate (?:compute (?:pp |tg )?buffers|graph)|gallocr_\w{1,40}: failed"
    )),
)  # fmt: skip
"""What the failed allocation was for: the lines behind it say so."""
_RETRIED = re.compile(r"retrying without pipeline parallelism")
"""The same is asked for once more, and less of it: nothing is wrong unless that fails too."""


def read(lines: Iterable[str]) -> OutOfMemory | None:
    """The out of memory that one process met; None: it met none that it did not make up for."""
    found: OutOfMemory | None = None
    for raw in lines:
        line = "".join(c if c.isprintable() else " " for c in raw).strip()
        if _RETRIED.search(line):
            found = None
        elif found is None:
            found = _one(line)
        else:
            found = _more(line, found)
    return found


def _one(line: str) -> OutOfMemory | None:
    """What one line says by itself."""
    quoted = line[:LONGEST]
    if match := _MALLOC.search(line):
        if not _FULL.search(match[3]):
            return None
        return OutOfMemory("use", int(match[2]), -int(-float(match[1]) // 1), quoted)
    if match := _BUFFER.search(line):
        host = match[1].upper().startswith("CPU") or match[1].endswith("_Host")
        device = int(match[2]) if match[2] and not host else None
        asked = _mib(match[3]) if match[3] else None
        return OutOfMemory(_phase(line) or "use", device, asked, quoted, host)
    if match := _CPU.search(line):
        return OutOfMemory("use", None, _mib(match[1]), quoted, host=True)
    if (match := _ERROR.search(line)) and _FULL.search(match[1]):
        return OutOfMemory("use", None, None, quoted)
    return None


def _more(line: str, found: OutOfMemory) -> OutOfMemory:
    """`found` with what a later line says of it."""
    if found.phase == "use" and (phase := _phase(line)):
        found = replace(found, phase=phase)
    if found.device is None and not found.host and (match := _DEVICE.search(line)):
        found = replace(found, device=int(match[1]))
    return found


def _phase(line: str) -> Phase | None:
    return next((phase for phase, pattern in _PHASES if pattern.search(line)), None)


def _mib(size: str) -> int:
    return -(-int(size) // MIB)


# -- what to reduce --------------------------------------------------------------------------------


def reduced(
    placement: Placement,
    found: OutOfMemory,
    n_layers: int | None,
    shape: Shape | None = None,
    room: Room | None = None,
    *,
    use: Use | None = None,
) -> Placement | None:
    """The placement to try after `found`; None: nothing is left that may help.

    `room`: what is free without the process that failed. With it and `shape` it is the first of
    fit.smaller() that fits; with less it is one step down from what had no room. `n_layers`: of the
    model, without its output; None: not known. `use`: the room's, where there is no room to tell.
    """
    use = room.use if room else use or Use()
    if found.host:
        # Less of a context or a batch is less on the host too; its weights are what GPUs left.
        return (
            next(_steps(placement, found.phase, None, use), None)
            if found.phase != "weights"
            else None
        )
    if shape is None or room is None or not room.gpus or shape.unknown:
        return next(_steps(placement, found.phase, n_layers, use), None)
    count = by_header(shape, room)
    was = count(placement)
    missing = _missing(placement, found, count, room)
    for one in smaller(shape, placement, use):
        now = count(one)
        saved = [before.total_mib - after.total_mib for before, after in zip(was, now, strict=True)]
        if _saves(saved, found.device, missing) and fits(count, one, room):
            return one
    return None


def _missing(placement: Placement, found: OutOfMemory, count: Count, room: Room) -> int:
    """MiB that must be saved beside what the accounting says: where it sees no shortage, it has
    been proven wrong, and what was asked for comes on top."""
    if not fits(count, placement, room):
        return 1
    return found.asked_mib if found.asked_mib and found.phase == "use" else UNSAID_MIB


def _saves(saved: Sequence[int], device: int | None, missing: int) -> bool:
    if device is not None and device < len(saved):
        return saved[device] >= missing
    return min(saved) >= missing


def _steps(
    placement: Placement, phase: Phase, n_layers: int | None, use: Use
) -> Iterator[Placement]:
    """One step down each, those first that make most room for what had none."""
    if phase == "weights":
        yield from _fewer_layers(placement, n_layers)
        return
    if phase in ("compute", "use") and placement.n_batch > SMALL_BATCH:
        yield replace(placement, n_batch=SMALL_BATCH)
    if placement.kv_type == KV_TYPES[0] and (coarser := kinds_below(placement, use)):
        yield replace(placement, kv_type=coarser[0])
    if placement.n_ctx // 2 >= SMALLEST_CTX:
        yield replace(placement, n_ctx=placement.n_ctx // 2)
    yield from _fewer_layers(placement, n_layers)


def _fewer_layers(placement: Placement, n_layers: int | None) -> Iterator[Placement]:
    """Three of four."""
    layers = placement.n_gpu_layers
    if n_layers is not None and (layers < 0 or layers > n_layers):
        layers = n_layers + 1
    if layers > 1:
        yield replace(placement, n_gpu_layers=layers * 3 // 4)
