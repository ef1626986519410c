"""When must a host be verified again, with which model, and how."""

from __future__ import annotations

from dataclasses import asdict

from llamafleet.facts.host import HostSnapshot, Job
from llamafleet.layout import Layout
from llamafleet.plans.plan import BuildPlan, JobPlan, VerifyPlan
from llamafleet.protocol import models
from llamafleet.protocol.fingerprint import explain_difference, fingerprint
from llamafleet.protocol.job import STAMP
from llamafleet.protocol.result import PASS, WANTED, Backend
from llamafleet.protocol.verify import BenchSettings, VerifyConfig, VerifyInputs
from llamafleet.received import Unreadable
from llamafleet.settings import Settings


def resolve_model(settings: Settings, snapshot: HostSnapshot, backend: Backend) -> str:
    """The model of the settings; for "auto" a synthetic one that fits the smallest GPU."""
    if settings.model != "auto":
        return settings.model
    if backend == "cpu":
        return models.FOR_CPU
    # CUDA sees but one of a GPU's instances. A GPU that does not tell its memory shares the host's.
    sizes = [gpu.vram_mib or snapshot.memory_mib for gpu in snapshot.gpus]
    return models.for_vram(0 if snapshot.driver.mig else min(sizes, default=0))


def verification_inputs(
    settings: Settings, snapshot: HostSnapshot, backend: Backend, build: str
) -> VerifyInputs:
    """Everything that a verdict and a benchmark depend on; `build` is its fingerprint."""
    cuda = backend == "cuda"
    driver = snapshot.driver
    return VerifyInputs(
        fingerprint=build,
        driver=(driver.smi or driver.module or driver.library) if cuda else None,
        gpus=tuple(f"{gpu.name} {gpu.uuid}" for gpu in snapshot.gpus) if cuda else (),
        model=resolve_model(settings, snapshot, backend),
        bench=BenchSettings(settings.bench_prompt, settings.bench_gen, settings.bench_repetitions),
        context=settings.context,
    )


def plan_verify(
    host: str,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    build: BuildPlan,
    *,
    other_code: bool = False,
) -> VerifyPlan:
    """The verification of this build on this host as it is now; `host` is its name.

    `other_code`: this run replaced the code that a verification runs which was there before.
    """
    backend: Backend = build.inputs.backend
    inputs = verification_inputs(settings, snapshot, backend, build.fingerprint)
    key = fingerprint(asdict(inputs))
    config = VerifyConfig(
        version=1,
        host=host,
        inputs=inputs,
        backend=backend,
        toolkit=build.inputs.toolkit,
        prefix=layout.version(build.fingerprint),
        stamp=f"{layout.job('build', build.fingerprint)}/{STAMP}",
        job=layout.job("verify", "run"),
        results=layout.results,
        models=layout.models,
        compute_capabilities=tuple(settings.compute_capabilities or ()),
        allow_cpu_only=settings.accelerator != "cuda",
    )
    running = snapshot.verifying if snapshot.verifying and snapshot.verifying.alive else None
    # Each of its steps starts from the file that was replaced: it would judge with both.
    broken = running is not None and other_code
    attach = running is not None and running.key == key and not broken
    reason = _why(snapshot, backend, build, key, inputs)
    if broken:
        reason = reason or "the code of one that runs was replaced"
    return VerifyPlan(
        key=key,
        config=config,
        job=JobPlan(
            kind="verify",
            key=key,
            folder=config.job,
            python=build.config.python,
            minutes=settings.verify_timeout_minutes,
            start=not attach,
        ),
        needed=bool(reason),
        reason=reason or "verified as it is now",
        stop=None if attach else _other(snapshot, running),
    )


def _other(snapshot: HostSnapshot, running: Job | None) -> int | None:
    """The process of a verification that must end: two would measure each other.

    One of a unit ends with the unit, which is started again.
    """
    if running is None or running.progress is None:
        return None
    return None if snapshot.init == "systemd" else running.progress.pid


def _why(
    snapshot: HostSnapshot, backend: Backend, build: BuildPlan, key: str, inputs: VerifyInputs
) -> str:
    """Why it must be verified; "": it need not."""
    result = snapshot.result
    if result is None:
        return "never verified, or the last verification did not end"
    if isinstance(result, Unreadable):
        return f"the last result can't be understood ({result.reason})"
    if result.key != key:
        changed = explain_difference(asdict(result.inputs), asdict(inputs))
        return f"changed since the last one: {changed}"
    if build.action != "none":
        return f"the library changes (build: {build.action})"
    if result.verdict != WANTED[backend]:
        return f"the last verdict is {result.verdict}"
    unproven = [gpu.uuid for gpu in result.gpus if gpu.verdict != PASS]
    if unproven or len(result.gpus) != len(inputs.gpus):
        return f"not verified by themselves: {', '.join(unproven) or 'the GPUs'}"
    return ""
