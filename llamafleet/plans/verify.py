"""When must a host be verified again, with which model, and how."""

from __future__ import annotations

from dataclasses import asdict

from llamafleet.facts.host import HostSnapshot, Job
from llamafleet.layout import AS_ACCOUNT, USER, VERIFY_TIMER, VERIFY_UNIT, Layout
from llamafleet.plans.gpus import chosen, identity
from llamafleet.plans.plan import BuildPlan, JobPlan, Problem, VerifyPlan
from llamafleet.protocol import models
from llamafleet.protocol.fingerprint import explain_difference, fingerprint
from llamafleet.protocol.result import BUSY, PASS, WANTED, Backend, Result, Verdict
from llamafleet.protocol.verify import (
    INSTANCE,
    UNIT_S_OWN,
    BenchSettings,
    VerifyConfig,
    VerifyInputs,
)
from llamafleet.received import Unreadable
from llamafleet.settings import Settings

RUNNING = ("activating", "active", "reloading", "deactivating")
"""States of a unit that runs."""
DAY_S = 86_400
PERIODS_S = {
    "minutely": 60,
    "hourly": 3_600,
    "daily": DAY_S,
    "weekly": 7 * DAY_S,
    "monthly": 31 * DAY_S,
    "quarterly": 92 * DAY_S,
    **dict.fromkeys(("semiannually", "semi-annually", "biannually", "bi-annually"), 184 * DAY_S),
    **dict.fromkeys(("yearly", "annually", "anually"), 366 * DAY_S),
}
"""Longest time between two of systemd's named times: systemd.time(7). Of other times none is known
here; that the timer started one which left no result is seen all the same."""


def resolve_model(settings: Settings, snapshot: HostSnapshot, backend: Backend) -> str:
    """The model of the settings; for "auto" a synthetic one that fits the smallest GPU."""
    if settings.model != "auto":
        return settings.model
    if backend == "cpu":
        return models.FOR_CPU
    # A GPU that does not tell its memory shares the host's. Of one that is divided into instances
    # which nvidia-smi does not tell, the memory says nothing.
    told = any(gpu.uuid.startswith(INSTANCE) for gpu in snapshot.gpus)
    if snapshot.driver.mig and not told:
        return models.for_vram(0)
    gpus = chosen(settings, snapshot).gpus
    sizes = [gpu.vram_mib or snapshot.memory_mib for gpu in gpus]
    return models.for_vram(min(sizes, default=0))


def model_problem(settings: Settings, snapshot: HostSnapshot) -> Problem | None:
    """A model of the settings that a verification could not open, said before a build begins.

    A host that was recorded for other settings says nothing of it.
    """
    return gguf_problem(settings.model, "model", settings, snapshot, "or set model to auto")


def gguf_problem(
    path: str, key: str, settings: Settings, snapshot: HostSnapshot, other: str = ""
) -> Problem | None:
    """The same of any file of the settings; `key` names it there, `other`: what helps too."""
    if path not in snapshot.unreadable:
        return _unseen_model(path, key, settings, snapshot)
    there = path in snapshot.extra_there
    reader = USER if settings.scope == "system" else snapshot.user
    return Problem(
        key,
        found=f"{path}, which the account {reader} can't read" if there else f"no file {path}",
        expected="a GGUF file that it can read, and folders above it that it can enter",
        next=f"namei -l {path}; then chmod o+rX those that it needs, or set another model"
        if there
        else f"bring the file to the host{f', {other}' if other else ''}",
    )


def _unseen_model(
    path: str, key: str, settings: Settings, snapshot: HostSnapshot
) -> Problem | None:
    """A model that the account can read, and not from within a unit."""
    if settings.scope != "system" or snapshot.init != "systemd":
        return None
    own = [folder for folder in UNIT_S_OWN if path.startswith(f"{folder}/")]
    if not own:
        return None
    return Problem(
        key,
        found=f"{path}: its unit has a {own[0]} of its own, without it",
        expected="a GGUF file elsewhere",
        next=f"move it out of {own[0]}, as to /srv, and set {key} to where it is then",
    )


def verification_inputs(
    settings: Settings, snapshot: HostSnapshot, backend: Backend, build: str
) -> VerifyInputs:
    """Everything that a verdict and a benchmark depend on; `build` is its fingerprint."""
    cuda = backend == "cuda"
    driver = snapshot.driver
    return VerifyInputs(
        fingerprint=build,
        driver=(driver.smi or driver.module or driver.library) if cuda else None,
        gpus=tuple(map(identity, chosen(settings, snapshot).gpus)) if cuda else (),
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
    inputs = verification_inputs(settings, snapshot, build.inputs.backend, build.fingerprint)
    key = fingerprint(asdict(inputs))
    config = _config(host, settings, snapshot, layout, build=build, inputs=inputs)
    running = snapshot.verifying if snapshot.verifying and snapshot.verifying.alive else None
    # Each of its steps starts from the file that was replaced: it would judge with both.
    broken = running is not None and other_code
    attach = running is not None and running.key == key and not broken
    unproven = why_unproven(settings, snapshot, build, key, inputs)
    reason = unproven or _why_doubtful(settings, snapshot)
    if broken:
        reason = reason or "the code of one that runs was replaced"
    return VerifyPlan(
        key=key,
        config=config,
        job=JobPlan(
            kind="verify",
            key=key,
            folder=config.job,
            config=layout.verify_config,
            python=build.config.python,
            minutes=settings.verify_minutes,
            start=not attach,
        ),
        needed=bool(reason),
        proven=not unproven,
        reason=reason or "verified as it is now",
        stop=None if attach else _other(snapshot, running),
    )


def _config(
    host: str,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    build: BuildPlan,
    inputs: VerifyInputs,
) -> VerifyConfig:
    """What a verification is told: also what its verdict does not depend on."""
    return VerifyConfig(
        version=1,
        host=host,
        inputs=inputs,
        backend=build.inputs.backend,
        toolkit=build.inputs.toolkit,
        prefix=build.config.prefix,
        stamp=build.proof,
        job=layout.job("verify", "run"),
        results=layout.results,
        models=layout.models,
        compute_capabilities=tuple(settings.compute_capabilities or ()),
        allow_cpu_only=settings.accelerator != "cuda",
        gpus=_named(settings, snapshot, build.inputs.backend),
        busy_minutes=settings.busy_minutes,
        allow_busy=settings.allow_busy,
        timer=settings.schedule is not None,
        environment=variables(build, layout),
        as_account=AS_ACCOUNT if layout.scope == "system" else (),
    )


def _named(settings: Settings, snapshot: HostSnapshot, backend: Backend) -> tuple[str, ...]:
    """UUIDs of the GPUs that the settings name; none: they leave out none."""
    if settings.gpus is None or backend == "cpu":
        return ()
    return tuple(gpu.uuid for gpu in chosen(settings, snapshot).gpus)


def _other(snapshot: HostSnapshot, running: Job | None) -> int | None:
    """The process of a verification that must end: two would measure each other.

    One of a unit ends with the unit, which is started again.
    """
    if running is None or running.progress is None:
        return None
    return None if snapshot.init == "systemd" else running.progress.pid


def variables(build: BuildPlan, layout: Layout) -> dict[str, str]:
    """What llama.cpp needs of the variables that the build has, and a place for compiled PTX."""
    libraries = build.config.environment.get("LD_LIBRARY_PATH")
    toolkit = {"LD_LIBRARY_PATH": libraries} if libraries else {}
    return {"CUDA_CACHE_PATH": layout.compiled} | toolkit


def why_unproven(
    settings: Settings,
    snapshot: HostSnapshot,
    build: BuildPlan,
    key: str,
    inputs: VerifyInputs,
) -> str:
    """Why the result that is there does not prove the planned build; "": it does."""
    result = snapshot.result
    if result is None:
        return "never verified, or the last verification did not end"
    if isinstance(result, Unreadable):
        return f"the last result can't be understood ({result.reason})"
    if result.key != key:
        changed = explain_difference(asdict(result.inputs), asdict(inputs))
        return f"changed since the last one: {changed}"
    if other := _other_machine(settings, snapshot, result):
        return other
    if build.action != "none":
        return f"the library changes (build: {build.action})"
    if other := _other_build(result, build.config.prefix):
        return other
    if result.verdict not in proving(build.inputs.backend):
        return f"the last verdict is {result.verdict}"
    if result.red:
        return f"the last verdict is {result.verdict} beside a red check: {result.red[0][1].name}"
    return _unproven_gpus(result, inputs)


def proving(backend: Backend) -> tuple[Verdict, ...]:
    """The verdicts that prove a build: BUSY lacks the figures alone."""
    wanted = WANTED[backend]
    return (wanted, BUSY) if wanted == PASS else (wanted,)


def _unproven_gpus(result: Result, inputs: VerifyInputs) -> str:
    """Which GPUs of the plan have no row that proves them; "": none."""
    rows = {gpu.uuid: gpu.verdict for gpu in result.gpus}
    planned = inputs.uuids
    listed = [uuid for uuid in planned if rows.get(uuid) not in (PASS, BUSY)]
    listed += [uuid for uuid in rows if uuid not in planned]
    return f"not verified by themselves: {', '.join(listed)}" if listed else ""


def why_of_another(
    settings: Settings, snapshot: HostSnapshot, result: Result, config: VerifyConfig
) -> str:
    """Why a result with the key of this verification is of another one; "": it is of this."""
    return _other_machine(settings, snapshot, result) or _other_build(result, config.prefix)


def _other_machine(settings: Settings, snapshot: HostSnapshot, result: Result) -> str:
    """A home may be shared: older code did not say which machine it verified."""
    if result.machine_id != snapshot.machine_id and (result.machine_id or settings.scope == "user"):
        return "the last result is of another machine, or does not say of which"
    return ""


def _other_build(result: Result, prefix: str) -> str:
    """Older code had one build of a fingerprint, in the folder of that name."""
    found = result.prefix or f"{prefix.rpartition('/')[0]}/{result.inputs.fingerprint}"
    return "" if found == prefix else f"the last result is on another build ({found})"


def _why_doubtful(settings: Settings, snapshot: HostSnapshot) -> str:
    """Why a result that proves the build may be out of date; "": it is not."""
    result = snapshot.result
    running = snapshot.verifying is not None and snapshot.verifying.alive
    if not isinstance(result, Result) or running:
        return ""
    if result.verdict == BUSY and not settings.allow_busy:
        return "the last verdict is BUSY: its figures are not those of a free GPU"
    unit, timer = snapshot.units.get(VERIFY_UNIT), snapshot.units.get(VERIFY_TIMER)
    if unit and unit.active in RUNNING:
        return ""
    if unit and (unit.active == "failed" or unit.result not in ("", "success")):
        status = f", status {unit.status}" if unit.status is not None else ""
        return f"{VERIFY_UNIT} failed ({unit.result or 'no result'}{status})"
    if timer and timer.triggered and timer.triggered > result.finished:
        return f"{VERIFY_TIMER} started a verification that left no result"
    age = snapshot.time - result.finished
    period = PERIODS_S.get((settings.schedule or "").lower())
    if snapshot.time and period and age > 2 * period:
        return f"the last one is {round(age / DAY_S, 1):g} days old ({settings.verify_schedule})"
    if snapshot.time and -age > DAY_S:
        return "the last result is from the future, by the host's clock"
    return ""
