"""The GPU's memory grew by the model's size."""

from __future__ import annotations

from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.checks.offload import graph_of
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import MIB
from llamafleet.onhost.verify.gpu import NvmlUnavailable
from llamafleet.onhost.verify.imported import UNIFIED_MEMORY
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.result import Check, failed, passed

NAME = "vram"

VRAM_SHARE = 0.9
"""Least growth of the GPU's memory, as a share of what must be there. NVML counts in steps of
2 MiB per allocation and other processes may free memory meanwhile; a model of which a tenth or
more stayed on the CPU is below it."""


def judge_vram(weights_mib: float, growth_load: float, needed_mib: float, growth: float) -> Check:
    """The GPU's memory, as NVML counts it, grew by the weights and then by the KV cache.

    Both growths start after the CUDA context was made, so that its 0.3 to 0.5 GiB can't hide a
    model that stayed on the CPU. Sizes in MiB; `needed_mib` is weights and KV cache together.
    """
    found = (
        f"{growth_load:.0f} MiB by loading the model, {growth:.0f} MiB with the context "
        f"(weights {weights_mib:.0f}, weights and KV cache {needed_mib:.0f})"
    )
    expected = (
        f"at least {VRAM_SHARE * weights_mib:.0f} and {VRAM_SHARE * needed_mib:.0f} MiB "
        f"({VRAM_SHARE:.0%} of what must be there)"
    )
    if growth_load < VRAM_SHARE * weights_mib or growth < VRAM_SHARE * needed_mib:
        return failed(
            NAME,
            found,
            expected,
            "the model is not, or not all, in the GPU's memory: see offload; unset "
            "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
        )
    return passed(NAME, found, expected)


def judge_unified(value: str) -> Check:
    """Memory that the host lends: no figure tells any more where a weight lies."""
    return failed(
        NAME,
        f"{UNIFIED_MEMORY}={value} in the environment of llama.cpp",
        "that variable unset: with it, set to whatever, what does not fit on the GPU is silently "
        "the host's memory",
        f"unset {UNIFIED_MEMORY}, and deploy again: it writes the settings without it",
    )


def _place(place: Place) -> Check:
    unified = place.evidence.variables().get(UNIFIED_MEMORY)
    if unified is not None:
        return judge_unified(unified)
    ended = place.watched()
    needed = place.model().weights.device_bytes / MIB
    at_load = ended.recording.growth_mib("initialised", "loaded")
    at_end = ended.recording.growth_mib("initialised", "ready")
    if at_load is None or at_end is None:
        raise NvmlUnavailable("NVML tells no memory figures")
    kv = sum(llama_log.parse(ended.log).kv_mib.values())
    if not kv:  # The log says nothing of it.
        kv = sum(row.bytes for row in graph_of(ended.reply).of("cache")) / MIB
    return judge_vram(needed, at_load, needed + kv, at_end)


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "all", "unnamed"}), needs=frozenset({"model"}))
