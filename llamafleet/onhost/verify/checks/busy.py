"""The GPU worked while tokens were generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamafleet.onhost.verify import sampling
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.result import Check, failed, passed

NAME = "busy"
SETTLE_S = 1.0
"""NVML's utilisation is a mean over up to a second: what came before must have left it."""


def judge_busy(samples: Sequence[float], mig: MigWork | None = None) -> Check:
    """`samples` are NVML's utilisation in per cent; a MIG device has none."""
    expected = "utilisation above 0 % while generating"
    if not samples and mig:
        return _judge_mig(mig)
    if not samples:
        return failed(
            NAME,
            "NVML gave no utilisation",
            expected,
            "run `nvidia-smi --query-gpu=utilization.gpu --format=csv`",
        )
    mean = sum(samples) / len(samples)
    found = f"mean {mean:.0f} %, highest {max(samples):.0f} % of {len(samples)} samples"
    if mean <= 0:
        return failed(NAME, found, expected, "tokens are made on the CPU: see offload")
    return passed(NAME, found, expected)


@dataclass(frozen=True)
class MigWork:
    """What can be seen of a MIG device at work."""

    tokens: int
    held_mib: float
    """Memory of the device while generating."""
    clock_mhz: float | None
    """Of the whole card."""


def _judge_mig(work: MigWork) -> Check:
    """A MIG device tells no utilisation: its memory and what was made stand in for it."""
    expected = "tokens made while the MIG device holds memory (it tells no utilisation)"
    clock = f", SM clock of the card {work.clock_mhz:.0f} MHz" if work.clock_mhz else ""
    found = f"{work.tokens} tokens, {work.held_mib:.0f} MiB held{clock}"
    if work.tokens <= 0 or work.held_mib <= 0:
        return failed(NAME, found, expected, "tokens are made on the CPU: see offload")
    return passed(NAME, found, expected)


def _place(place: Place) -> Check:
    ended = place.watched()
    recording = ended.recording
    samples = sampling.busy_utilisation(recording, "generating", "generated", SETTLE_S)
    if samples or not any(one.parent for one in place.gpus):
        return judge_busy(samples)
    work = recording.between("generating", "generated", SETTLE_S)
    clocks = [one.sm_clock_mhz for one in work if one.sm_clock_mhz is not None]
    held = recording.growth_mib("initialised", "generating")
    return judge_busy((), MigWork(ended.result["tokens"], held or 0.0, max(clocks, default=None)))


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "all", "unnamed"}), needs=frozenset({"model"}))
