"""What llama.cpp's log says about where a model went.

The lines are those of llama.cpp 0.5.0-dev (llama-cpp-python 0.3.36): src/llama-model.cpp
(load_tensors), src/llama-kv-cache.cpp, src/llama-context.cpp, ggml/src/ggml-cuda/ggml-cuda.cu.
The device is written "CUDA0" there; the older spelling "CUDA:0" is read as the same device.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

# Each part has a bound: whatever the log holds, it is read in time that grows with its length.
_COUNT = r"([0-9]{1,6})"
_DEVICE = r"([^\s,]{1,80})"
_LAYER = re.compile(rf"layer {{1,8}}{_COUNT} assigned to device {_DEVICE}")
_OFFLOADED = re.compile(rf"offloaded {_COUNT}/{_COUNT} layers to GPU")
_BUFFER = re.compile(
    rf"(?<![^\s,]){_DEVICE} (model|KV) buffer size = *([0-9]{{1,12}}(?:\.[0-9]{{1,6}})?) MiB"
)
_INIT_ERROR = re.compile(r"failed to initialize CUDA: (.{0,300})")
_CAPABILITY = re.compile(
    r"Device [0-9]{1,4}: .{1,200}?, compute capability ([0-9]{1,3})\.([0-9]{1,3})(?![0-9])"
)
_CUDA = re.compile(r"CUDA\d+")
_TROUBLE = re.compile(
    r"error|fail|abort|out of memory|no kernel image|cannot|can't|unable|invalid|corrupt"
    r"|incomplete|not found",
    re.IGNORECASE,
)
_ROUTINE = re.compile(r"preferred buffer type|set_abort_callback")
"""Lines that sound like trouble and are written by every good run."""
_MARK = "llamafleet: model"
_LONGEST = 300
"""Characters of a line that are quoted."""
GRAPH_MARK = "llamafleet: graph"
"""The line that the worker writes before it makes the context whose graph it looks at: what follows
is of that context, which has a cache of its own."""


@dataclass(frozen=True)
class Placement:
    """Placement of one loaded model, as the log tells it. Sizes are in MiB."""

    layers: dict[int, str]
    """Layer number -> device; the output layer has the number n_layer."""
    requested: tuple[int, int] | None
    """The "offloaded N/M" line. N is what was asked for, not what was done: no proof."""
    model_mib: dict[str, float]
    """Model buffers by name: CUDA0, CPU_Mapped, ..."""
    kv_mib: dict[str, float]
    init_error: str | None
    capabilities: tuple[str, ...]
    """Compute capability of each device CUDA shows, in CUDA's order, as "8.9"."""
    models: int = 1
    """How many models were loaded, a draft model beside the main one among them: of several, no
    line says which it is about."""

    @property
    def layers_per_device(self) -> dict[str, int]:
        return dict(sorted(Counter(self.layers.values()).items()))

    @property
    def cuda_layers(self) -> int:
        return sum(1 for device in self.layers.values() if is_cuda(device))

    @property
    def cuda_model_mib(self) -> float:
        return sum(mib for name, mib in self.model_mib.items() if is_cuda(name))


def device_name(text: str) -> str:
    """The one spelling of a device or buffer: "CUDA:0" becomes "CUDA0"."""
    return re.sub(r"^CUDA:(\d+)$", r"CUDA\1", text.rstrip(":,"))


def is_cuda(name: str) -> bool:
    """A buffer or device in a GPU's memory; CUDA_Host, the pinned host memory, is none."""
    return _CUDA.fullmatch(name) is not None


def parse(log: str) -> Placement:
    """Read the log of one process that loaded one model."""
    log = printable(log).partition(GRAPH_MARK)[0]
    buffers: dict[str, dict[str, float]] = {"model": {}, "KV": {}}
    for name, kind, mib in _BUFFER.findall(log):
        sizes, device = buffers[kind], device_name(name)
        sizes[device] = sizes.get(device, 0.0) + float(mib)
    requested = _OFFLOADED.findall(log)
    errors = _INIT_ERROR.findall(log)
    layers = [(int(number), device_name(device)) for number, device in _LAYER.findall(log)]
    begun = sum(1 for (one, _), (after, _) in pairwise(layers) if after <= one)
    return Placement(
        layers=dict(layers),
        requested=(int(requested[-1][0]), int(requested[-1][1])) if requested else None,
        model_mib=buffers["model"],
        kv_mib=buffers["KV"],
        init_error=errors[-1].strip() if errors else None,
        capabilities=tuple(f"{major}.{minor}" for major, minor in _CAPABILITY.findall(log)),
        models=1 + begun,
    )


def mark(number: int) -> str:
    """The line that the worker writes before it loads one of several models."""
    return f"\n{_MARK} {number}\n"


def by_model(log: str) -> list[str]:
    """The log of a process that loaded several models, cut at the worker's marks; what it wrote
    before the first stands at the head of each."""
    head, *rest = re.split(rf"^{_MARK} [0-9]{{1,3}}$", log, flags=re.MULTILINE)
    return [head + part for part in rest]


def last_words(log: str, count: int = 4) -> str:
    """The last lines that speak of trouble, else the last lines; one line of text."""
    lines = [line.strip()[:_LONGEST] for line in printable(log).split("\n") if line.strip()]
    trouble = [line for line in lines if _TROUBLE.search(line) and not _ROUTINE.search(line)]
    return " | ".join((trouble or lines)[-count:]) or "no output"


def printable(log: str) -> str:
    """The lines without what a terminal would obey: what is quoted of them ends up on one."""
    return "".join(c if c == "\n" or c.isprintable() else " " for c in log)


def listed(values: dict[str, int] | dict[str, float]) -> str:
    """As "CPU 1, CUDA0 12"."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items()) or "none"
