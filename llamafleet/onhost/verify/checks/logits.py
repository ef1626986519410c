"""The GPU computes what the CPU computes, on a small model of each type of weights."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.checks.control import judge_control
from llamafleet.onhost.verify.checks.offload import judge_offload
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.child import Outcome
from llamafleet.onhost.verify.evidence import task_failed
from llamafleet.onhost.verify.graph import UNSEEN, Graph
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.decode import decode
from llamafleet.protocol.models import COMPARED
from llamafleet.protocol.result import Check, failed, passed

NAME = "logits"


@dataclass(frozen=True)
class Limit:
    """Of the differences between a GPU's and the CPU's logits, in standard deviations of the
    CPU's."""

    largest: float
    rms: float
    """Root of the mean square."""


LIMITS = {
    "q4_0": Limit(0.1, 0.012),
    "q8_0": Limit(0.21, 0.044),
    "q4_K": Limit(0.71, 0.07),
    "q6_K": Limit(0.42, 0.07),
    "iq2_xs": Limit(0.43, 0.077),
    "iq3_s": Limit(0.52, 0.076),
    "mxfp4": Limit(0.28, 0.049),
}
"""By type of the weights: twice the largest of twelve models on an H200 (CUDA 13.0, 2026-11-26,
llama-cpp-python 0.3.36; tests/onhost/data/logits-h200.json). Left out is one of q4_0, 0.36: the
model that is compared here, the first, has 0.023 there as on an H100, and 0.019 between two CPUs.

CPU and GPU add in another order, the GPU's attention works in 16 bit, and activations are rounded
to 8 bit, on the CPU in blocks of 256 for the types of q4_K to iq3_s, on the GPU of 32; a GPU that
rounds none of them would differ by at most half of each limit (numpy). With one byte of quants
wrong in each row of each matrix every type is beyond its limit; a kernel of iq3_s that lacks its
mask is off by 7 and more."""

FP4_MXFP4 = Limit(4.6, 0.75)
"""Of mxfp4 where the GPU multiplies in 4 bit: activations, too, are then rounded to 4 bit
(ggml_cuda_mmq_get_prec_src1), on the CPU to 8 bit.

Twice the largest of an emulation, 2.3 and 0.374 over six models: numpy, activations rounded as by
quantize_mmq_mxfp4; UNVERIFIED on such a GPU. Logits that have nothing to do with each other differ
by 5.5 and 1.41."""
FP4_CAPABILITY = "12."
"""blackwell_mma_available: compute capabilities that begin so."""


@dataclass(frozen=True)
class LogitsDifference:
    """GPU against CPU over all positions of the same tokens."""

    max_abs: float
    rms_abs: float
    std: float
    """Standard deviation of the CPU's logits."""
    top1: float
    """Share of positions with the same most likely token."""
    positions: int

    @property
    def largest(self) -> float:
        return self.max_abs / self.std if self.std > 0 else math.inf

    @property
    def rms(self) -> float:
        return self.rms_abs / self.std if self.std > 0 else math.inf

    def within(self, limit: Limit) -> bool:
        return self.largest <= limit.largest and self.rms <= limit.rms


def compare_logits(cpu: Sequence[float], gpu: Sequence[float], n_vocab: int) -> LogitsDifference:
    """Compare two runs, position by position. Raises ValueError where they can't be compared."""
    if n_vocab <= 0 or len(cpu) != len(gpu) or not cpu or len(cpu) % n_vocab:
        raise ValueError(f"{len(cpu)} and {len(gpu)} logits with a vocabulary of {n_vocab}")
    if not all(map(math.isfinite, cpu)) or not all(map(math.isfinite, gpu)):
        raise ValueError("a logit is not a finite number")
    mean = math.fsum(cpu) / len(cpu)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in cpu) / len(cpu))
    positions = len(cpu) // n_vocab
    same = 0
    for start in range(0, len(cpu), n_vocab):
        a, b = cpu[start : start + n_vocab], gpu[start : start + n_vocab]
        same += a.index(max(a)) == b.index(max(b))
    differences = [abs(a - b) for a, b in zip(cpu, gpu, strict=True)]
    rms = math.sqrt(math.fsum(x * x for x in differences) / len(differences))
    return LogitsDifference(max(differences), rms, std, same / positions, positions)


def limits(capabilities: Iterable[str]) -> dict[str, Limit]:
    """By type of the weights, for GPUs of these compute capabilities."""
    fp4 = any(capability.startswith(FP4_CAPABILITY) for capability in capabilities)
    return LIMITS | ({"mxfp4": FP4_MXFP4} if fp4 else {})


def judge_logits(
    differences: Mapping[str, LogitsDifference | str], allowed: Mapping[str, Limit]
) -> Check:
    """GPU and CPU compute the same in every type that has a limit: by type the difference, or why
    there is none.

    Agreement of the top token is told, not judged: with random weights the two best tokens are
    often closer than the limit.
    """
    told, bad = [], []
    for type_, limit in allowed.items():
        found = differences.get(type_, "not compared")
        if isinstance(found, str):
            told.append(f"{type_} {found}")
            bad.append(type_)
            continue
        told.append(f"{type_} {found.largest:.4f} (rms {found.rms:.4f})")
        bad += [] if found.within(limit) else [type_]
    same = [found.top1 for found in differences.values() if not isinstance(found, str)]
    text = (
        f"largest difference in standard deviations: {', '.join(told)}; the top token agrees at "
        f"{min(same, default=0):.1%} of the positions or more"
    )
    at_most = ", ".join(
        f"{type_} {limit.largest:g} (rms {limit.rms:g})" for type_, limit in allowed.items()
    )
    if bad:
        return failed(
            NAME,
            f"wrong: {', '.join(bad)}; {text}",
            f"at most {at_most}",
            "the GPU computes something else than the CPU: rebuild with another toolkit version, "
            "and run `nvidia-smi -q -d ECC` for memory errors",
        )
    return passed(NAME, text, f"at most {at_most}")


@dataclass(frozen=True)
class Answer:
    """What the worker says of one model."""

    n_vocab: int = 0
    logits: str = ""
    """As `floats` reads them."""
    error: str = ""
    """Why there are none."""
    graph: Graph = UNSEEN


@dataclass(frozen=True)
class _Reply:
    models: tuple[Answer, ...]


@dataclass(frozen=True)
class _Run:
    """One model's part of what a process said."""

    answer: Answer
    placed: llama_log.Placement


def _runs(outcome: Outcome, wanted: int) -> list[_Run]:
    """One for each model. Raises TaskProblem, and ValueError where the process is at odds with its
    log."""
    answers = decode(_Reply, outcome.result).models
    logs = llama_log.by_model(outcome.log)
    if not len(answers) == len(logs) == wanted:
        raise ValueError(
            f"{len(answers)} answers and {len(logs)} logs of {wanted} models in {outcome.log_path}"
        )
    return [_Run(answer, llama_log.parse(log)) for answer, log in zip(answers, logs, strict=True)]


def _difference(cpu: Answer, gpu: Answer) -> LogitsDifference | str:
    """Or why there is none."""
    if cpu.error or gpu.error:
        return f"on the CPU: {cpu.error}" if cpu.error else gpu.error
    try:
        return compare_logits(floats(cpu.logits), floats(gpu.logits), cpu.n_vocab)
    except ValueError as error:
        return str(error)


def _place(place: Place) -> Check:
    compared = place.evidence.compared()
    run = place.logits()
    begun = len(llama_log.by_model(run.log))
    if run.problem and begun:
        check = task_failed(NAME, run)
        at = compared[min(begun, len(compared)) - 1].name
        return replace(check, found=f"at {at}: {check.found}")
    on_gpu = _runs(run, len(compared))
    on_cpu = _runs(place.evidence.control(), len(compared))
    for model, ours, reference in zip(compared, on_gpu, on_cpu, strict=True):
        held = model.weights
        placed = judge_offload(ours.answer.graph, ours.placed, held, place.gpus)
        if placed.status == "fail" and not ours.answer.error:
            # Two runs on the CPU agree very well, and so do two on the GPU.
            found = f"the run of {model.name} was not on the GPU: {placed.found}"
            return failed(NAME, found, placed.expected, "see offload")
        placed = judge_control(reference.answer.graph, reference.placed, held)
        if placed.status != "pass" and not reference.answer.error:
            found = f"the run of {model.name} to compare with was not on the CPU: {placed.found}"
            return failed(NAME, found, placed.expected, "see control")
    told = {gpu.compute_capability for gpu in place.gpus}
    return judge_logits(
        {
            type_: _difference(reference.answer, ours.answer)
            for type_, reference, ours in zip(COMPARED, on_cpu, on_gpu, strict=True)
        },
        limits(told or on_gpu[0].placed.capabilities),
    )


def floats(encoded: str) -> array[float]:
    """Logits as the worker sends them."""
    return array("f", base64.b64decode(encoded))


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "unnamed"}), needs=frozenset({"small model"}))
