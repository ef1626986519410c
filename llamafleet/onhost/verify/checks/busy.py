"""The GPU worked while tokens were generated."""

from __future__ import annotations

from collections.abc import Sequence

from llamafleet.onhost.verify import gpu
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Place
from llamafleet.protocol.result import Check, failed, passed

NAME = "busy"
SETTLE_S = 1.0
"""NVML's utilisation is a mean over up to a second: what came before must have left it."""


def judge_busy(samples: Sequence[float]) -> Check:
    """`samples` are NVML's utilisation in per cent."""
    expected = "utilisation above 0 % while generating"
    if not samples:
        return failed(
            NAME,
            "NVML gave no utilisation",
            expected,
            "run `nvidia-smi --query-gpu=utilization.gpu --format=csv`; a MIG device has none",
        )
    mean = sum(samples) / len(samples)
    found = f"mean {mean:.0f} %, highest {max(samples):.0f} % of {len(samples)} samples"
    if mean <= 0:
        return failed(NAME, found, expected, "tokens are made on the CPU: see offload")
    return passed(NAME, found, expected)


def _place(place: Place) -> Check:
    recording = place.watched().recording
    return judge_busy(gpu.busy_utilisation(recording, "generating", "generated", SETTLE_S))


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "all", "unnamed"}), needs=frozenset({"model"}))
