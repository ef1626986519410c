"""The model of the settings is whole, llama.cpp knows it, and the GPUs have room for it."""

from __future__ import annotations

from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import MIB, Evidence, Model
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol import models
from llamafleet.protocol.result import Check, failed, passed

NAME = "model"
EXPECTED = "a whole model, which llama.cpp knows"


def judge_room(model: str, device_mib: float, free_mib: float, all_mib: float, gpus: int) -> Check:
    """All layers must fit into the GPUs' memory as it is before anything is loaded.

    `device_mib`: what a full offload puts there; `free_mib` and `all_mib`: of all `gpus` together.
    The KV cache is not counted: how much of it fits is what the check `context` says.
    """
    on = "the GPU" if gpus == 1 else f"all {gpus} GPUs together"
    expected = f"at most {free_mib:,.0f} MiB, which are free on {on} ({all_mib:,.0f} MiB in all)"
    found = f"{model} takes {device_mib:,.0f} MiB of GPU memory with every layer offloaded"
    if device_mib > all_mib:
        return failed(NAME, f"too big: {found}", expected, f"set model to a smaller one: {SMALLER}")
    if device_mib > free_mib:
        advice = (
            f"end the processes that `nvidia-smi` lists; or set model to a smaller one: {SMALLER}"
        )
        return failed(NAME, f"no room: {found}", expected, advice)
    return passed(NAME, found, expected)


SMALLER = f"another quantisation, or {models.PREFIX}1b-q4_0"


def _host(evidence: Evidence) -> Check:
    check = _judged(evidence)
    evidence.refused = check.status == "fail"
    return check


def _judged(evidence: Evidence) -> Check:
    try:
        evidence.compared()
        model = evidence.model()
    except ModelError as error:
        return failed(NAME, str(error), error.expected, error.next)
    gpus = evidence.gpus
    # A GPU that shares the host's memory tells none of its own; of one that NVML has lost meanwhile
    # health is red.
    nvml = evidence.nvml
    if nvml and gpus and all(gpu.vram_mib and not nvml.why_silent(gpu) for gpu in gpus):
        return _room(model, gpus, nvml.free_mib(gpus))
    files = f"{len(model.weights.files)} files, " if len(model.weights.files) > 1 else ""
    found = f"{model.name}: {files}{model.weights.total_bytes / MIB:,.0f} MiB of weights"
    return passed(NAME, found, EXPECTED)


def _room(model: Model, gpus: tuple[Gpu, ...], free_mib: float) -> Check:
    total = float(sum(gpu.vram_mib for gpu in gpus))
    return judge_room(model.name, model.weights.device_bytes / MIB, free_mib, total, len(gpus))


SPEC = Spec(NAME, host=_host)
