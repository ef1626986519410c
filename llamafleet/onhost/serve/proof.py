"""Whether a loaded model lies where it should: llama.cpp's own log, and NVML where that sees us.

That a token came proves nothing: llama.cpp answers from the CPU when it finds no GPU.
"""

from __future__ import annotations

from collections.abc import Callable

from llamafleet.onhost.verify import gpu, llama_log
from llamafleet.protocol.result import Backend

LEAST_SHARE = 0.8
"""Of the model's memory that the process must hold by NVML, which counts in other units and at
another time."""


def judge(
    log: str, backend: Backend, n_gpu_layers: int, held_mib: Callable[[], float | None]
) -> str:
    """Why it is not where it should be; "": it is. `held_mib`: memory of this process by NVML."""
    if backend == "cpu" or n_gpu_layers == 0:
        return ""
    found = llama_log.parse(log)
    expected = len(found.layers) if n_gpu_layers == -1 else min(n_gpu_layers, len(found.layers))
    advice = "next: nvidia-smi; llamafleet deploy verifies the host"
    if found.init_error:
        return f"found no CUDA ({found.init_error}); expected {expected} layers on it; {advice}"
    if not found.layers or found.cuda_layers < expected:
        where = llama_log.listed(found.layers_per_device)
        return f"found layers on {where}; expected {expected or 'all'} on CUDA devices; {advice}"
    if not found.cuda_model_mib:
        where = llama_log.listed(found.model_mib)
        return f"found the weights in {where}; expected them on CUDA devices; {advice}"
    held = held_mib()
    if held is not None and held < LEAST_SHARE * found.cuda_model_mib:
        return (
            f"found {held:.0f} MiB of this process on the GPUs, by NVML; "
            f"expected {found.cuda_model_mib:.0f} MiB and more; {advice}"
        )
    return ""


def held_by(pid: int) -> float | None:
    """MiB of a process on all GPUs by NVML; None: it does not say, as in a container."""
    try:
        nvml = gpu.Nvml()
    except gpu.NvmlUnavailable:
        return None
    try:
        return nvml.sample(pid).process_mib
    except gpu.NvmlUnavailable:
        return None
    finally:
        nvml.close()
