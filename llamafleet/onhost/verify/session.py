"""One run of a verification: every check of the registry, at the host and at each place.

The host's come first. Then each GPU is looked at by itself, side by side with the others as far as
cores and memory go; then one place after the other gets the checks that need the whole host for
themselves, which are those that measure, and at last all GPUs together are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from llamafleet.onhost import driver
from llamafleet.onhost.cards import cards
from llamafleet.onhost.job import ProgressFile
from llamafleet.onhost.verify import checks, gpu, synth
from llamafleet.onhost.verify.beside import room, shares, side_by_side, usable_cores
from llamafleet.onhost.verify.checks import REGISTRY, gpus_visible
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.child import Children, TaskProblem
from llamafleet.onhost.verify.evidence import Evidence, Faults, quietly, task_failed
from llamafleet.onhost.verify.hidden import VARIABLE
from llamafleet.onhost.verify.place import Place, places
from llamafleet.onhost.verify.present import Present, is_instance, present
from llamafleet.protocol.fingerprint import fingerprint
from llamafleet.protocol.job import machine_id
from llamafleet.protocol.result import (
    Check,
    GpuRow,
    Result,
    System,
    failed,
    judge,
    skipped,
    worst,
)
from llamafleet.protocol.verify import VerifyConfig, VerifyInputs


class Verification:
    """One run: it asks each check, and none can keep the others, or the result, from being made."""

    def __init__(self, config: VerifyConfig, faults: Faults) -> None:
        self.config = config = _limited(config)
        self.started = time.time()
        opened = _open_nvml() if config.backend == "cuda" else None
        nvml = None if isinstance(opened, str) else opened
        # Asked now: NVML is closed before the result is written.
        self.system = System(nvml.driver() if nvml else None, nvml.cuda() if nvml else None)
        self.there = _present(nvml, config) if nvml else Present()
        self.inputs = self._inputs(nvml)
        self.key = fingerprint(asdict(self.inputs))
        self.progress = ProgressFile(Path(config.job), "verify", self.key)
        children = Children(
            Path(config.job),
            nvml,
            config.environment,
            gpus=self.there.gpus,
            on_step=self.progress.step,
        )
        self.evidence = Evidence(config, faults, children, opened, self.there)
        self.places = places(self.evidence)
        self.checks: dict[str, Check] = {}
        """The host's own."""

    def _inputs(self, nvml: gpu.Nvml | None) -> VerifyInputs:
        """Those of the plan, with driver and GPUs as they are now: what is judged is no other."""
        planned = self.config.inputs
        if self.config.backend == "cpu":
            return planned
        if nvml is None:
            return replace(planned, driver=driver.loaded_driver()[0])
        gpus = self.there.identities(planned.gpus)
        return replace(planned, driver=self.system.driver, gpus=gpus)

    def run(self) -> None:
        for spec in REGISTRY:
            if spec.host:
                check = self._check(spec, partial(spec.host, self.evidence))
                self.checks[spec.name] = check
                print(check.line(), flush=True)
        each = [place for place in self.places if place.gpu]
        side_by_side(each, self._shares(len(each)), self._look)
        for place in self.places:
            if not place.gpu:
                self._look(place)
            self._run_at(place, [spec for spec in REGISTRY if spec.alone])
            # Whole blocks: lines of several places would mix.
            print(*place.lines, sep="\n", flush=True)

    def _shares(self, count: int) -> list[frozenset[int]]:
        """The cores of each GPU that is looked at beside others; empty where none is."""
        model = quietly(self.evidence.model)
        return shares(count, usable_cores(), room(model.weights.total_bytes if model else 0))

    def _look(self, place: Place, cores: frozenset[int] = frozenset()) -> None:
        """All checks that bear others beside them."""
        place.cores = cores
        self._run_at(place, [spec for spec in REGISTRY if not spec.alone])
        # What follows has the host to itself.
        place.cores = frozenset()

    def _run_at(self, place: Place, specs: Sequence[Spec]) -> None:
        for spec in specs:
            if spec.place and spec.name in checks.of(place.kind):
                label, judge_it = _label(place), partial(spec.place, place)
                untried = self._beside_hidden(place) or _untried(place, spec)
                check = self._check(spec, judge_it, label, untried)
                place.checks[spec.name] = check
                place.lines.append(f"{label + ': ' if label else ''}{check.line()}")

    def _beside_hidden(self, place: Place) -> str:
        """Why all GPUs together are not looked at: one that is hidden is red by itself."""
        gpus = [one.gpu for one in self.places if one.hidden and not one.missing and one.gpu]
        names = ", ".join(f"GPU {gpu.index}" for gpu in gpus)
        return f"not tried: CUDA does not show {names}" if names and place.kind == "all" else ""

    def _check(
        self, spec: Spec, judge_it: Callable[[], Check], label: str = "", untried: str = ""
    ) -> Check:
        """One check; a crash is its failure. `untried`: why it is not made."""
        name = spec.name
        self.progress.phase(name, label)
        if self.config.backend == "cpu" and name not in checks.ON_CPU:
            return self._without_gpu(name)
        if untried := untried or quietly(partial(self.evidence.missing, spec.needs)) or "":
            return skipped(name, untried)
        return self._guarded(name, judge_it)

    def _guarded(self, name: str, judge_it: Callable[[], Check]) -> Check:
        try:
            return judge_it()
        except TaskProblem as problem:
            return task_failed(name, problem.outcome)
        except gpu.NvmlUnavailable as error:
            return failed(name, str(error), "figures from NVML", "see gpus_visible")
        except synth.ModelError as error:
            return failed(name, str(error), error.expected, error.next)
        except Exception as error:
            return failed(
                name,
                f"the check itself failed: {type(error).__name__}: {error}",
                "an answer",
                f"read {self.config.job}/worker-*.log",
            )

    def _without_gpu(self, name: str) -> Check:
        if name == "gpus_visible" and not self.config.allow_cpu_only:
            return failed(
                name,
                "a build with the CPU backend",
                "a CUDA build: CPU ONLY is not allowed for this host",
                'set accelerator = "cuda", or "auto" to allow a host without a GPU',
            )
        return skipped(name, "the build has the CPU backend")

    def close(self) -> None:
        if self.evidence.nvml:
            self.evidence.nvml.close()

    # -- the result ------------------------------------------------------------------------------

    def result(self) -> Result:
        """All that was found; what was not reached is red."""
        evidence, config = self.evidence, self.config
        rows = tuple(self._row(place) for place in self.places if place.gpu)
        # Places that are no row's speak of the host: the CPU, all GPUs, GPUs that NVML hides.
        own, names = dict(self.checks), set(checks.OF_HOST)
        measured = None
        for place in self.places:
            if not place.gpu:
                own |= place.checks
                names |= set(checks.of(place.kind))
                measured = place.measured
        found = self._ordered(own, names)
        host = judge(config.backend, found, names)
        probed, model = quietly(evidence.probe), quietly(evidence.model)
        probe = (probed and probed.reply) or {}
        return Result(
            host=config.host,
            started=self.started,
            finished=time.time(),
            verdict=worst([host, *(row.verdict for row in rows)]),
            fingerprint=self.inputs.fingerprint,
            key=self.key,
            inputs=self.inputs,
            build=evidence.build(),
            system=replace(
                self.system,
                system_info=probe.get("system_info"),
                libraries=quietly(evidence.probed_libraries) or {},
            ),
            model=model.described() if model else None,
            checks=found,
            benchmark=measured,
            gpus=rows,
            timings=dict(probe.get("timings", {})),
            machine_id=machine_id(),
            left_out=self.there.left_out,
            allow_busy=config.allow_busy,
            prefix=config.prefix,
        )

    def _row(self, place: Place) -> GpuRow:
        (one,) = place.gpus
        names = checks.of("gpu")
        found = self._ordered(place.checks, set(names))
        return GpuRow(
            uuid=one.uuid,
            bus_id=one.bus_id,
            name=one.name,
            compute_capability=one.compute_capability,
            vram_mib=one.vram_mib,
            verdict=judge("cuda", found, names),
            checks=found,
            benchmark=place.measured,
            model=place.loaded.name if place.loaded else "",
            timings=place.timings(),
        )

    def _ordered(self, found: dict[str, Check], names: set[str]) -> tuple[Check, ...]:
        def of(name: str) -> Check:
            said = "the verification broke off before this check"
            return found.get(name) or failed(name, said, "an answer", f"read {self.config.job}")

        return tuple(of(name) for name in checks.NAMES if name in names)


def _present(nvml: gpu.Nvml, config: VerifyConfig) -> Present:
    """One of which NVML tells not even the UUID is as good as lost."""
    listed = nvml.gpus()
    silent = {one.index: nvml.why_silent(one) or "no UUID" for one in listed if not one.uuid}
    told = [one for one in listed if one.uuid]
    return present(told, cards(), config, nvml.lost | silent)


def _limited(config: VerifyConfig) -> VerifyConfig:
    """With a choice of GPUs no process sees another one: one that is sick must not end it."""
    if not config.gpus or config.backend == "cpu":
        return config
    chosen = {VARIABLE: ",".join(config.gpus)}
    return replace(config, environment=chosen | config.environment)


def _untried(place: Place, spec: Spec) -> str:
    """Why a check is not made at a place; "": it is."""
    if not place.hidden:
        return ""
    if place.missing:
        made = spec.name == gpus_visible.NAME
        return "" if made else "not tried: the driver does not give this GPU"
    return "" if spec.of_hidden else "not tried: CUDA does not show this GPU"


def _label(place: Place) -> str:
    """Names the place where there are several."""
    there = place.evidence.there
    if place.kind == "all":
        return "all GPUs"
    if not place.gpu or len(there.gpus) + len(there.missing) < 2:
        return ""
    if place.missing or is_instance(place.gpu):
        return f"GPU {place.gpu.uuid or place.gpu.bus_id or '?'}"
    return f"GPU {place.gpu.index}"


def _open_nvml() -> gpu.Nvml | str:
    """NVML, or why it can't be used."""
    try:
        return gpu.Nvml()
    except gpu.NvmlUnavailable as error:
        return str(error)
