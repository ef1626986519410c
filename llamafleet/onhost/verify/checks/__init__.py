"""The checks, one module each, and their registry: the order in which they run and are reported."""

from __future__ import annotations

from llamafleet.onhost.verify.checks import (
    benchmark,
    busy,
    context,
    control,
    gpus_visible,
    health,
    library_cuda,
    library_origin,
    logits,
    machine_code,
    model,
    offload,
    vram,
)
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Kind

REGISTRY: tuple[Spec, ...] = (
    gpus_visible.SPEC,
    library_origin.SPEC,
    library_cuda.SPEC,
    model.SPEC,
    control.SPEC,
    machine_code.SPEC,
    offload.SPEC,
    vram.SPEC,
    busy.SPEC,
    logits.SPEC,
    context.SPEC,
    benchmark.SPEC,
    health.SPEC,
)

NAMES = tuple(spec.name for spec in REGISTRY)
OF_HOST = tuple(spec.name for spec in REGISTRY if spec.host)

ON_CPU = frozenset({library_origin.NAME, model.NAME, control.NAME, context.NAME, benchmark.NAME})
"""Checks that say something about a CPU build; the others are skipped there."""


def of(kind: Kind) -> tuple[str, ...]:
    """Names of the checks of one kind of place."""
    if kind == "cpu":  # Those of a GPU are there as skipped.
        return tuple(spec.name for spec in REGISTRY if not spec.host)
    return tuple(spec.name for spec in REGISTRY if kind in spec.on)
