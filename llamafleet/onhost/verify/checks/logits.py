"""The GPU computes what the CPU computes, on a small model of each type of weights."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.checks.control import judge_control
from llamafleet.onhost.verify.checks.offload import judge_offload
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.child import Outcome
from llamafleet.onhost.verify.evidence import Place
from llamafleet.onhost.verify.graph import UNSEEN, Graph
from llamafleet.protocol.decode import decode
from llamafleet.protocol.models import COMPARED
from llamafleet.protocol.result import Check, failed, passed

NAME = "logits"

TOLERANCES = {
    "q4_0": 0.05,
    "q8_0": 0.05,
    "q4_K": 0.2,
    "q6_K": 0.2,
    "iq2_xs": 0.2,
    "iq3_s": 0.2,
    "mxfp4": 0.2,
}
"""Type of the weights -> largest difference between a GPU's and the CPU's logit, in standard
deviations of the CPU's."""


@dataclass(frozen=True)
class LogitsDifference:
    """GPU against CPU over all positions of the same tokens."""

    max_abs: float
    std: float
    """Standard deviation of the CPU's logits."""
    top1: float
    """Share of positions with the same most likely token."""
    positions: int

    @property
    def relative(self) -> float:
        return self.max_abs / self.std if self.std > 0 else math.inf


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
    worst = max(abs(a - b) for a, b in zip(cpu, gpu, strict=True))
    return LogitsDifference(worst, std, same / positions, positions)


def judge_logits(differences: Mapping[str, LogitsDifference | str]) -> Check:
    """GPU and CPU compute the same in every type: by type the difference, or why there is none.

    Agreement of the top token is told, not judged: with random weights the two best tokens are
    often closer than the tolerance.
    """
    told = {type_: _told(of) for type_, of in differences.items()}
    bad = [type_ for type_, of in differences.items() if not _within(type_, of)]
    bad += [f"{type_} (not compared)" for type_ in TOLERANCES if type_ not in differences]
    limits = ", ".join(f"{type_} {limit:g}" for type_, limit in TOLERANCES.items())
    expected = f"differences in standard deviations of at most {limits}"
    found = "largest difference in standard deviations: " + ", ".join(
        f"{type_} {text}" for type_, text in told.items()
    )
    if bad:
        return failed(
            NAME,
            f"wrong: {', '.join(bad)}; {found}",
            expected,
            "the GPU computes something else than the CPU: rebuild with another toolkit version, "
            "and run `nvidia-smi -q -d ECC` for memory errors",
        )
    return passed(NAME, found, expected)


def _within(type_: str, difference: LogitsDifference | str) -> bool:
    # "not >" would let a difference that is no number pass.
    return not isinstance(difference, str) and difference.relative <= TOLERANCES[type_]


def _told(difference: LogitsDifference | str) -> str:
    if isinstance(difference, str):
        return f"({difference})"
    return f"{difference.relative:.4f} (top token {difference.top1:.0%})"


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
    on_gpu = _runs(place.logits(), len(compared))
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
    return judge_logits(
        {
            type_: _difference(reference.answer, ours.answer)
            for type_, reference, ours in zip(COMPARED, on_cpu, on_gpu, strict=True)
        }
    )


def floats(encoded: str) -> array[float]:
    """Logits as the worker sends them."""
    return array("f", base64.b64decode(encoded))


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "unnamed"}), needs=frozenset({"small model"}))
