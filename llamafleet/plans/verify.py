"""When must a host be verified again, and with which model."""

from __future__ import annotations

from typing import Any

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.plan import Backend, BuildPlan, VerifyPlan
from llamafleet.protocol.fingerprint import explain_difference, fingerprint
from llamafleet.settings import Settings

SMALLEST_VRAM_FOR_7B_MIB = 8000
"""A 7B Q4_0 model is 3.8 GB (measured), and its context and CUDA's own memory come on top."""

VERDICT: dict[Backend, str] = {"cuda": "PASS", "cpu": "CPU ONLY"}
"""The verdict after which nothing needs to be verified again."""


def resolve_model(settings: Settings, snapshot: HostSnapshot, backend: Backend) -> str:
    """The model of the settings; for "auto" a synthetic one that fits the smallest GPU."""
    if settings.model != "auto":
        return settings.model
    if backend == "cpu":
        return "synthetic:160m-q4_0"
    # CUDA sees but one of a GPU's instances. A GPU that does not tell its memory shares the host's.
    sizes = [gpu.vram_mib or snapshot.memory_mib for gpu in snapshot.gpus]
    if not snapshot.driver.mig and all(size >= SMALLEST_VRAM_FOR_7B_MIB for size in sizes):
        return "synthetic:7b-q4_0"
    return "synthetic:1b-q4_0"


def verification_inputs(
    settings: Settings, snapshot: HostSnapshot, backend: Backend, build: str
) -> dict[str, Any]:
    """Everything that a verdict and a benchmark depend on; `build` is its fingerprint."""
    cuda = backend == "cuda"
    driver = snapshot.driver
    return {
        "fingerprint": build,
        "driver": (driver.smi or driver.module or driver.library) if cuda else None,
        "gpus": [f"{gpu.name} {gpu.uuid}" for gpu in snapshot.gpus] if cuda else [],
        "model": resolve_model(settings, snapshot, backend),
        "bench": {
            "prompt": settings.bench_prompt,
            "gen": settings.bench_gen,
            "repetitions": settings.bench_repetitions,
        },
        "context": settings.context,
    }


def plan_verify(
    settings: Settings, snapshot: HostSnapshot, backend: Backend, build: BuildPlan
) -> VerifyPlan:
    """The verification of this build on this host as it is now."""
    inputs = verification_inputs(settings, snapshot, backend, build.fingerprint)
    key = fingerprint(inputs)
    reason = _why(snapshot, backend, build, key, inputs)
    return VerifyPlan(
        key=key, inputs=inputs, needed=bool(reason), reason=reason or "verified as it is now"
    )


def _why(
    snapshot: HostSnapshot,
    backend: Backend,
    build: BuildPlan,
    key: str,
    inputs: dict[str, Any],
) -> str:
    """Why it must be verified; "": it need not."""
    result = snapshot.result
    if not result:
        return "never verified, or the last verification did not end"
    if result.get("key") != key:
        changed = explain_difference(result.get("inputs") or {}, inputs)
        return f"changed since the last one: {changed}"
    if build.action != "none":
        return f"the library changes (build: {build.action})"
    if result.get("verdict") != VERDICT[backend]:
        return f"the last verdict is {result.get('verdict')}"
    return ""
