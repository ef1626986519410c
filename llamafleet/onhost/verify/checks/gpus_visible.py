"""The driver lists GPUs and CUDA, inside llama.cpp, sees them."""

from __future__ import annotations

from collections.abc import Sequence

from llamafleet.onhost.verify import known
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import NO_LIBRARY, Evidence, Place
from llamafleet.protocol.result import Check, failed, passed, skipped

NAME = "gpus_visible"


def judge_gpus(
    nvml_gpus: Sequence[str],
    nvml_problem: str | None,
    cuda_gpus: Sequence[str],
    visible: str | None,
) -> Check:
    """All that the driver lists; `visible` is CUDA_VISIBLE_DEVICES."""
    expected = "at least one NVIDIA GPU, the same number through NVML and through CUDA"
    restriction = "" if visible is None else f", CUDA_VISIBLE_DEVICES={visible!r}"
    seen = f"NVML: {nvml_problem or _names(nvml_gpus)}; CUDA: {_names(cuda_gpus)}{restriction}"
    if nvml_problem:
        return failed(
            NAME,
            seen,
            expected,
            "run `nvidia-smi -L`; if it fails too, install or repair the NVIDIA driver (in a "
            "container: --gpus all)",
        )
    if not nvml_gpus:
        return failed(NAME, seen, expected, "run `lspci -d 10de:` and `nvidia-smi -L`")
    if not cuda_gpus:
        return failed(
            NAME,
            seen,
            expected,
            "unset CUDA_VISIBLE_DEVICES"
            if visible is not None
            else "check the build (library_cuda), `ls -l /dev/nvidia*` and "
            "`lsmod | grep nvidia_uvm`",
        )
    if len(cuda_gpus) < len(nvml_gpus):
        return failed(NAME, seen, expected, _advice(visible))
    if len(cuda_gpus) > len(nvml_gpus):
        # One of them would be judged by nobody.
        return failed(NAME, seen, expected, "compare `nvidia-smi -L` with `ls -l /dev/nvidia*`")
    return passed(NAME, seen, expected)


def judge_gpu(gpu: str, bus_id: str, shown: Sequence[str] | None, visible: str | None) -> Check:
    """One GPU; `shown`: bus ids of CUDA's devices, None where llama.cpp does not tell them."""
    expected = f"{gpu} at {bus_id or 'an unknown address'} among CUDA's devices"
    if shown is None:
        found = "CUDA shows as many GPUs as NVML, without their addresses"
        return passed(NAME, found, expected)
    found = f"CUDA shows {_names(shown)}"
    if bus_id in shown:
        return passed(NAME, found, expected)
    if visible is not None:
        found += f", CUDA_VISIBLE_DEVICES={visible!r}"
    return failed(NAME, found, expected, _advice(visible))


def _advice(visible: str | None) -> str:
    """What to do about a GPU that is hidden among others."""
    if visible is not None:
        return "unset CUDA_VISIBLE_DEVICES"
    return "run `nvidia-smi` and look for a GPU in an error state, in MIG mode or in compute mode"


def _names(gpus: Sequence[str]) -> str:
    return f"{len(gpus)} ({', '.join(gpus)})" if gpus else "none"


def _host(evidence: Evidence) -> Check:
    if evidence.nvml_problem is None and evidence.probe().reply is None:
        return skipped(NAME, NO_LIBRARY)
    visible = _visible(evidence)
    names = [str(gpu) for gpu in evidence.gpus]
    check = judge_gpus(names, evidence.nvml_problem, evidence.cuda_devices(), visible)
    if evidence.nvml_problem:
        return known.explained(check, evidence.nvml_problem, stages=("detection",))
    return _explained(check, evidence, visible)


def _visible(evidence: Evidence) -> str | None:
    """What the process that loads llama.cpp is told; this process's own reaches it not."""
    return evidence.config.environment.get("CUDA_VISIBLE_DEVICES")


def _place(place: Place) -> Check:
    (gpu,) = place.gpus
    if place.evidence.probe().reply is None:
        return skipped(NAME, NO_LIBRARY)
    shown, visible = place.evidence.cuda_bus_ids(), _visible(place.evidence)
    check = judge_gpu(str(gpu), gpu.bus_id, shown, visible)
    place.hidden = check.status == "fail"
    return _explained(check, place.evidence, visible)


def _explained(check: Check, evidence: Evidence, visible: str | None) -> Check:
    """Why CUDA shows none; a variable that is seen to hide GPUs is the better answer."""
    return check if visible is not None else known.explained(check, evidence.probe().log)


SPEC = Spec(NAME, host=_host, place=_place, on=frozenset({"gpu"}))
