"""The driver lists GPUs and CUDA, inside llama.cpp, sees them."""

from __future__ import annotations

from collections.abc import Sequence

from llamafleet.onhost.verify import hidden, known
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import NO_LIBRARY, Evidence
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.onhost.verify.hidden import VARIABLE
from llamafleet.onhost.verify.place import Place
from llamafleet.onhost.verify.present import Missing, is_instance
from llamafleet.protocol.result import Check, failed, passed, skipped

NAME = "gpus_visible"


def judge_gpus(
    nvml_gpus: Sequence[str],
    nvml_problem: str | None,
    cuda_gpus: Sequence[str],
    visible: str | None,
    *,
    missing: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> Check:
    """All that the driver lists and the settings choose; `visible`: the CUDA_VISIBLE_DEVICES that
    may hide one."""
    expected = "at least one NVIDIA GPU, the same number through NVML and through CUDA"
    restriction = "" if visible is None else f", {VARIABLE}={visible!r}"
    seen = f"NVML: {nvml_problem or _names(nvml_gpus)}; CUDA: {_names(cuda_gpus)}{restriction}"
    if left_out:
        there = len(nvml_gpus) + len(missing)
        seen = f"{there} of {there + len(left_out)} GPUs, as the settings choose; {seen}"
    if nvml_problem:
        return failed(
            NAME,
            seen,
            expected,
            "run `nvidia-smi -L`; if it fails too, install or repair the NVIDIA driver (in a "
            "container: --gpus all)",
        )
    if missing:
        return failed(NAME, f"{seen}; missing: {'; '.join(missing)}", expected, SEE)
    if not nvml_gpus:
        return failed(NAME, seen, expected, "run `lspci -d 10de:` and `nvidia-smi -L`")
    if not cuda_gpus:
        return failed(
            NAME,
            seen,
            expected,
            f"unset {VARIABLE}"
            if visible is not None
            else "check the build (library_cuda), `ls -l /dev/nvidia*` and "
            "`lsmod | grep nvidia_uvm`",
        )
    if len(cuda_gpus) < len(nvml_gpus):
        return failed(NAME, seen, expected, SEE if visible is None else f"unset {VARIABLE}")
    if len(cuda_gpus) > len(nvml_gpus) and not left_out:
        # One of them would be judged by nobody.
        return failed(NAME, seen, expected, "compare `nvidia-smi -L` with `ls -l /dev/nvidia*`")
    return passed(NAME, seen, expected)


SEE = "see the GPU of which gpus_visible is red; or leave it out by the setting gpus"


def judge_gpu(
    gpu: str, bus_id: str, shown: Sequence[str] | None, *, there: bool, why: tuple[str, str] | None
) -> Check:
    """One GPU; `shown`: bus ids of CUDA's devices, None where llama.cpp does not tell them.

    `why`: what hides it, and what to do about that; None: not known.
    """
    expected = f"{gpu} at {bus_id or 'an unknown address'} among CUDA's devices"
    if there and shown is None:
        found = "CUDA shows as many GPUs as NVML, without their addresses"
        return passed(NAME, found, expected)
    found = f"CUDA shows {_names(shown or ())}"
    if there:
        return passed(NAME, found, expected)
    if why:
        return failed(NAME, f"{found}; {why[0]}", expected, why[1])
    advice = "run `nvidia-smi` and look for a GPU in an error state, in MIG mode or in compute mode"
    return failed(NAME, found, expected, advice)


def judge_missing(missing: Missing) -> Check:
    """One that NVML does not give."""
    gpu = missing.gpu
    where = f" at {gpu.bus_id}" if gpu.bus_id else ""
    name = f"{gpu.name} {gpu.uuid}".rstrip()
    return failed(NAME, missing.found, f"{name}{where} among NVML's GPUs", missing.advice)


def _names(gpus: Sequence[str]) -> str:
    return f"{len(gpus)} ({', '.join(gpus)})" if gpus else "none"


def _host(evidence: Evidence) -> Check:
    causes = [hidden.cause(gpu, _visible(evidence), evidence.nvml) for gpu in evidence.gpus]
    seen = evidence.there.missing or any(causes)
    if evidence.nvml_problem is None and evidence.probe().reply is None and not seen:
        return skipped(NAME, NO_LIBRARY)
    visible, there = _visible(evidence), evidence.there
    if visible is not None and all(hidden.named(visible, gpu) for gpu in evidence.gpus):
        visible = None
    check = judge_gpus(
        [str(gpu) for gpu in evidence.gpus],
        evidence.nvml_problem,
        evidence.cuda_devices(),
        visible,
        missing=[one.gpu.uuid or one.gpu.bus_id or one.gpu.name for one in there.missing],
        left_out=there.left_out,
    )
    if evidence.nvml_problem:
        return known.explained(check, evidence.nvml_problem, stages=("detection",))
    died = evidence.whole().problem if evidence.singles() else None
    if check.status == "pass" and died and not any(map(is_instance, evidence.gpus)):
        expected = "a process that sees all of them, too"
        check = failed(NAME, f"each alone: {check.found}; all: {died}", expected, SEE)
    return check if visible is not None else known.explained(check, evidence.whole().log)


def _visible(evidence: Evidence) -> str | None:
    """What the process that loads llama.cpp is told; this process's own reaches it not."""
    return evidence.config.environment.get(VARIABLE)


def _place(place: Place) -> Check:
    if place.missing:
        return judge_missing(place.missing)
    (gpu,) = place.gpus
    evidence = place.evidence
    there, visible = _shown(evidence, gpu), _visible(evidence)
    why = None if there else hidden.cause(gpu, visible, evidence.nvml)
    if why is None and evidence.probe().reply is None:
        return skipped(NAME, NO_LIBRARY)
    check = judge_gpu(str(gpu), gpu.bus_id, evidence.cuda_bus_ids(), there=there, why=why)
    place.hidden = not there
    return check if why else known.explained(check, evidence.log_of(gpu))


def _shown(evidence: Evidence, gpu: Gpu) -> bool:
    """Of an instance the variable is judged by itself: its own process was given another one."""
    visible = _visible(evidence)
    told = visible is None or not evidence.singles() or hidden.named(visible, gpu)
    return told and evidence.shows(gpu)


SPEC = Spec(NAME, host=_host, place=_place, on=frozenset({"gpu"}))
