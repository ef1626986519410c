"""Why CUDA does not show a GPU that NVML gives, and what to type."""

from __future__ import annotations

from llamafleet.onhost.cards import cards, closed
from llamafleet.onhost.verify.gpu import Gpu, Nvml
from llamafleet.onhost.verify.present import is_instance

VARIABLE = "CUDA_VISIBLE_DEVICES"


def named(value: str, gpu: Gpu) -> bool:
    """CUDA_VISIBLE_DEVICES has it by the beginning of its UUID. A number tells none: CUDA counts in
    an order of its own."""
    return any(one and gpu.uuid.startswith(one) for one in value.split(","))


def cause(gpu: Gpu, variable: str | None, nvml: Nvml | None) -> tuple[str, str] | None:
    """In words, with what to do; None: none of those that can be seen.

    `variable`: CUDA_VISIBLE_DEVICES of the processes that load llama.cpp.
    """
    if variable is not None and not named(variable, gpu):
        return f"{VARIABLE}={variable!r}", f"unset {VARIABLE}"
    card = next((card for card in cards() if card.bus_id == gpu.bus_id), None)
    if problem := closed(card) if card else None:
        return problem
    return _mode(gpu, nvml) if nvml else None


def _mode(gpu: Gpu, nvml: Nvml) -> tuple[str, str] | None:
    mode = nvml.compute_mode(gpu)
    anyone = f"sudo nvidia-smi -i {gpu.bus_id or gpu.uuid} -c DEFAULT"
    if mode == "Prohibited":
        return "its compute mode is Prohibited: it takes no process", anyone
    pids = nvml.processes(gpu)
    if mode and pids:
        taken = f"pid {', '.join(map(str, pids))} has it"
        return f"its compute mode is {mode}, and {taken}", f"end that process, or: {anyone}"
    if mode:
        return f"its compute mode is {mode}, and another process may have it", anyone
    if not is_instance(gpu) and nvml.divided(gpu):
        off = f"sudo nvidia-smi -i {gpu.bus_id or gpu.uuid} -mig 0"
        return "MIG is on, and it has no instance that computes", f"nvidia-smi -L; or: {off}"
    return None
