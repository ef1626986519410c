"""What llama.cpp's log says about where a model went, and the judgement whether it is on the GPU.

The lines are those of llama.cpp 0.5.0-dev (llama-cpp-python 0.3.36): src/llama-model.cpp
(load_tensors), src/llama-kv-cache.cpp, src/llama-context.cpp, ggml/src/ggml-cuda/ggml-cuda.cu.
The device is written "CUDA0" there; the older spelling "CUDA:0" is read as the same device.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from llamafleet.onhost.verify.checks import Check, failed, passed

MIB = 1 << 20
ROUNDING_MIB = 0.005
"""The log gives a buffer's size with two decimals."""

_DEVICE = r"[^\s,]+"
_LAYER = re.compile(rf"load_tensors: layer +(\d+) assigned to device ({_DEVICE})")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUFFER = re.compile(rf"({_DEVICE}) (model|KV|compute) buffer size = *([\d.]+) MiB")
_INIT_ERROR = re.compile(r"failed to initialize CUDA: (.*)")
_FOUND = re.compile(r"found (\d+) CUDA devices")
_CAPABILITY = re.compile(r"Device (\d+): (.*), compute capability (\d+)\.(\d+)")
_CUDA = re.compile(r"CUDA\d+")
_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|cannot allocate memory|bad_alloc"
    r"|alloc_tensor_range: failed|cudaMalloc failed|attempted to allocate",
    re.IGNORECASE,
)
_TROUBLE = re.compile(
    r"error|fail|abort|out of memory|no kernel image|cannot|can't|unable|invalid|corrupt"
    r"|incomplete|not found",
    re.IGNORECASE,
)
_ROUTINE = re.compile(r"preferred buffer type|set_abort_callback")
"""Lines that sound like trouble and are written by every good run."""


@dataclass(frozen=True)
class Evidence:
    """Placement of one loaded model, as the log tells it. Sizes are in MiB."""

    layers: dict[int, str]
    """Layer number -> device; the output layer has the number n_layer."""
    requested: tuple[int, int] | None
    """The "offloaded N/M" line. N is what was asked for, not what was done: no proof."""
    model_mib: dict[str, float]
    """Model buffers by name: CUDA0, CPU_Mapped, ..."""
    kv_mib: dict[str, float]
    compute_mib: dict[str, float]
    init_error: str | None
    devices_found: int | None
    capabilities: tuple[str, ...]
    """Compute capability of each device CUDA shows, in CUDA's order, as "8.9"."""

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


def parse(log: str) -> Evidence:
    """Read the log of one process that loaded one model."""
    buffers: dict[str, dict[str, float]] = {"model": {}, "KV": {}, "compute": {}}
    for name, kind, mib in _BUFFER.findall(log):
        sizes, device = buffers[kind], device_name(name)
        if kind == "compute":
            # Written again at every reservation: the last one counts, buffers don't add up.
            sizes[device] = float(mib)
        else:
            sizes[device] = sizes.get(device, 0.0) + float(mib)
    requested = _OFFLOADED.findall(log)
    errors = _INIT_ERROR.findall(log)
    found = _FOUND.findall(log)
    return Evidence(
        layers={int(number): device_name(device) for number, device in _LAYER.findall(log)},
        requested=(int(requested[-1][0]), int(requested[-1][1])) if requested else None,
        model_mib=buffers["model"],
        kv_mib=buffers["KV"],
        compute_mib=buffers["compute"],
        init_error=errors[-1].strip() if errors else None,
        devices_found=int(found[-1]) if found else None,
        capabilities=tuple(f"{major}.{minor}" for _, _, major, minor in _CAPABILITY.findall(log)),
    )


def judge_offload(evidence: Evidence, n_layer: int, device_bytes: int) -> Check:
    """The whole model is on CUDA devices.

    `n_layer` is the model's number of repeating layers; with the output layer n_layer + 1 must be
    assigned to CUDA devices. `device_bytes` is the size of the tensors that a full offload puts on
    the GPU (all but the input embedding); the CUDA model buffers must hold at least that much.
    Neither the "offloaded N/M" line nor llama_supports_gpu_offload() counts: both are also right
    with every layer on the CPU.
    """
    wanted = n_layer + 1
    mib = device_bytes / MIB
    found = (
        f"{evidence.cuda_layers} of {wanted} layers on CUDA devices "
        f"({_listed(evidence.layers_per_device)}), CUDA model buffers "
        f"{evidence.cuda_model_mib:.2f} MiB ({_listed(evidence.model_mib)})"
    )
    expected = (
        f"{wanted} of {wanted} layers on CUDA devices, at least {mib:.2f} MiB in their buffers"
    )
    if evidence.init_error:
        return failed(
            "offload",
            f"CUDA did not start: {evidence.init_error}; {found}",
            expected,
            _init_advice(evidence.init_error),
        )
    everywhere = set(evidence.layers) == set(range(wanted))
    if not everywhere and not evidence.layers:
        return failed(
            "offload",
            "no line that assigns a layer to a device",
            expected,
            "read the worker's log beside progress.json; another version of llama.cpp may write "
            "other lines",
        )
    rounding = ROUNDING_MIB * max(1, len(evidence.model_mib))
    if evidence.cuda_layers != wanted or not everywhere:
        return failed(
            "offload",
            found,
            expected,
            "set n_gpu_layers = -1; if it is: use a smaller model or context, as layers stay on "
            "the CPU when the GPU's memory is short",
        )
    if evidence.cuda_model_mib + rounding < mib:
        return failed(
            "offload",
            found,
            expected,
            "the log assigns the layers but the memory is not on the GPU: rebuild, and compare "
            "with the worker's log beside progress.json",
        )
    return passed("offload", found, expected)


def judge_control(evidence: Evidence, n_layer: int, device_bytes: int) -> Check:
    """A run with n_gpu_layers=0 turns `judge_offload` red: proof that the judgement can fail here.

    Red alone is not enough, an unreadable log is red too: the log must say of every layer that it
    is on the CPU.
    """
    verdict = judge_offload(evidence, n_layer, device_bytes)
    expected = "with n_gpu_layers=0 the offload check is red and all layers are on the CPU"
    found = (
        f"offload is {'red' if verdict.status == 'fail' else 'not red: ' + verdict.status}, "
        f"layers: {_listed(evidence.layers_per_device)}"
    )
    on_cpu = evidence.layers_per_device == {"CPU": n_layer + 1}
    if verdict.status == "fail" and on_cpu:
        return passed("control", found, expected)
    return failed(
        "control",
        found,
        expected,
        "the offload check proves nothing on this host: report it with the worker's logs",
    )


def out_of_memory(log: str) -> bool:
    """The log speaks of an allocation that failed."""
    return _OUT_OF_MEMORY.search(log) is not None


def last_words(log: str, count: int = 4) -> str:
    """The last lines that speak of trouble, else the last lines; one line of text."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    trouble = [line for line in lines if _TROUBLE.search(line) and not _ROUTINE.search(line)]
    return " | ".join((trouble or lines)[-count:]) or "no output"


def _listed(values: dict[str, int] | dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items()) or "none"


def _init_advice(error: str) -> str:
    if "no CUDA-capable device" in error:
        return (
            "unset CUDA_VISIBLE_DEVICES, then compare `nvidia-smi -L` with `ls -l /dev/nvidia*` "
            "(a container needs --gpus all)"
        )
    if "driver version is insufficient" in error:
        return "the driver is older than the toolkit of this build: update it, or build anew"
    return "run `nvidia-smi`, then `ls -l /dev/nvidia*` and `lsmod | grep nvidia_uvm`"
