"""The GPU computes what the CPU computes, on a small model."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.checks.offload import judge_offload
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Place
from llamafleet.protocol.result import Check, failed, passed

NAME = "logits"

LOGITS_TOLERANCE = 0.05
"""Largest difference between a GPU's and the CPU's logit, in standard deviations of the CPU's.

Twice the largest measured: 0.0243, on an H100 with CUDA 13.0, by machine code and by PTX alike
(2026-11-25, llama-cpp-python 0.3.36). CPU and GPU add in another order, the GPU's attention works
in 16 bit, activations are rounded to 8 bit. A wrong kernel or layer is off by about one."""


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
        same += max(range(n_vocab), key=a.__getitem__) == max(range(n_vocab), key=b.__getitem__)
    worst = max(abs(a - b) for a, b in zip(cpu, gpu, strict=True))
    return LogitsDifference(worst, std, same / positions, positions)


def judge_logits(difference: LogitsDifference) -> Check:
    """GPU and CPU compute the same; agreement of the top token is told, not judged.

    With random weights the two best tokens are often closer than the tolerance.
    """
    found = (
        f"largest difference {difference.relative:.4f} standard deviations "
        f"({difference.max_abs:.4g} at {difference.std:.4g}), top token agrees at "
        f"{difference.top1:.1%} of {difference.positions} positions"
    )
    expected = f"at most {LOGITS_TOLERANCE} standard deviations"
    if not difference.relative <= LOGITS_TOLERANCE:
        return failed(
            NAME,
            found,
            expected,
            "the GPU computes something else than the CPU: rebuild with another toolkit version, "
            "and run `nvidia-smi -q -d ECC` for memory errors",
        )
    return passed(NAME, found, expected)


def _place(place: Place) -> Check:
    small, run = place.evidence.small(), place.logits()
    on_gpu = run.result
    placed = judge_offload(
        llama_log.parse(run.log), small.weights.layers, small.weights.device_bytes
    )
    if placed.status != "pass":
        # Two runs on the CPU agree very well.
        found = f"the run to compare was not on the GPU: {placed.found}"
        return failed(NAME, found, placed.expected, "see offload")
    on_cpu = place.evidence.control().result
    return judge_logits(
        compare_logits(floats(on_cpu["logits"]), floats(on_gpu["logits"]), on_cpu["n_vocab"])
    )


def floats(encoded: str) -> array[float]:
    """Logits as the worker sends them."""
    return array("f", base64.b64decode(encoded))


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "unnamed"}), needs=frozenset({"small model"}))
