"""One run of a verification: the checks in order, and what they found out on the way."""

from __future__ import annotations

import base64
import os
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafleet.onhost import driver
from llamafleet.onhost.job import ProgressFile
from llamafleet.onhost.verify import checks, fatbin, gpu, synth, weights
from llamafleet.onhost.verify import llama_log as evidence
from llamafleet.onhost.verify.checks import Check, failed, skipped
from llamafleet.onhost.verify.child import Children, Outcome, TaskProblem, cure
from llamafleet.onhost.verify.llama_log import MIB
from llamafleet.protocol import models
from llamafleet.protocol.fingerprint import fingerprint
from llamafleet.protocol.job import read_json
from llamafleet.protocol.verify import Config

EVIDENCE_CONTEXT = 1024
"""Context of the run that offload, vram and busy look at."""
SETTLE_S = 1.0
"""NVML's utilisation is a mean over up to a second: what came before must have left it."""
SMALL_MODEL = ("tiny", "q4_0")
"""For logits and control: q4_0 takes the kernels that the big synthetic models take."""
CONTEXT_STEP = 256
"""llama.cpp rounds a context up to a multiple of this (src/llama-context.cpp)."""
CONTEXT_TRIES = 6


@dataclass(frozen=True)
class Faults:
    """Faults that a person plants to see a check go red."""

    n_gpu_layers: str = ""
    """A number, or half; empty: all layers."""
    abort_in: str = ""
    """A task of worker.py that ends by abort()."""


@dataclass(frozen=True)
class Model:
    """The model under test."""

    name: str
    path: Path
    sha256: str | None
    """Of synthetic models; a model of the user's may be too big to be read through every time."""
    weights: weights.Weights

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": str(self.path),
            "bytes": sum(part.stat().st_size for part in weights.parts(self.path)),
            "sha256": self.sha256,
            "layers": self.weights.layers,
        }


class Verification:
    """One run: the checks, in order, and what they found out on the way."""

    def __init__(self, config: Config, faults: Faults) -> None:
        self.config, self.faults = config, faults
        self.cuda = config.backend == "cuda"
        self.checks: dict[str, Check] = {}
        self.benchmark: dict[str, Any] | None = None
        self.timings: dict[str, Any] = {}
        self.started = time.time()
        self.stamp = read_json(config.stamp) or {}
        self.nvml, self.nvml_problem = _open_nvml() if self.cuda else (None, None)
        self.gpus = self.nvml.gpus() if self.nvml else []
        # Asked now: NVML is closed before the result is written.
        self.system = {
            "driver": self.nvml.driver() if self.nvml else None,
            "cuda": self.nvml.cuda() if self.nvml else None,
            "gpus": [vars(one) for one in self.gpus],
        }
        self.inputs = self._inputs()
        self.key = fingerprint(self.inputs)
        self.progress = ProgressFile(config.job, "verify", self.key)
        cache = gpu.cache_environment(dict(os.environ), str(config.job / "cuda-cache"))
        self.children = Children(config.job, self.nvml, cache, on_step=self.progress.step)
        self.model: Model | None = None
        self.model_error: synth.ModelError | None = None
        self.probe: Outcome | None = None
        self.libraries: dict[str, str] = {}
        self.broken = "not reached"

    def _inputs(self) -> dict[str, Any]:
        """Those of the plan, with driver and GPUs as they are now: what is judged is no other."""
        if not self.cuda:
            return self.config.inputs
        if self.nvml is None:
            return self.config.inputs | {"driver": driver.loaded_driver()[0]}
        gpus = [one.identity for one in self.gpus]
        return self.config.inputs | {"driver": self.system["driver"], "gpus": gpus}

    def run(self) -> None:
        """Every check; none of them can keep the others, or the result, from being written."""
        self._phase("probe", self._run_probe)
        self._check("gpus_visible", self._gpus_visible)
        self._check("library_origin", self._library_origin)
        self._check("library_cuda", self._library_cuda)
        self._check("machine_code", self._machine_code)
        self._phase("model", self._get_model)
        self._phase("evidence", self._evidence)
        self._phase("logits", self._logits)
        self._phase("context", lambda: self._check("context", self._context))
        self._phase("benchmark", lambda: self._check("benchmark", self._benchmark))

    def _phase(self, name: str, step: Callable[[], object]) -> None:
        """Run a step; an exception turns the checks that it left open red, at the end."""
        self.progress.phase(name)
        try:
            step()
        except Exception as error:
            self.broken = f"step {name} broke off: {type(error).__name__}: {error}"

    def _check(self, name: str, judge: Callable[[], Check]) -> Check:
        """Run one check; a crash is that check's failure."""
        if not self.cuda and name in checks.GPU_ONLY:
            check = self._without_gpu(name)
        else:
            try:
                check = judge()
            except TaskProblem as problem:
                check = _task_failed(name, problem.outcome)
            except gpu.NvmlUnavailable as error:
                check = failed(name, str(error), "figures from NVML", "see gpus_visible")
            except synth.ModelError as error:
                check = failed(name, str(error), "a model that is whole", error.next)
            except Exception as error:
                check = failed(
                    name,
                    f"the check itself failed: {type(error).__name__}: {error}",
                    "an answer",
                    f"read {self.config.job}/worker-*.log",
                )
        self.checks[name] = check
        print(check.line(), flush=True)
        return check

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
        """Every check that was not reached is red."""
        for name in checks.NAMES:
            if name not in self.checks:
                self._check(name, self._not_reached)
        if self.nvml:
            self.nvml.close()

    def _not_reached(self) -> Check:
        raise RuntimeError(self.broken)

    # -- the build, without a model --------------------------------------------------------------

    def _run_probe(self) -> None:
        self.probe = self.children.run("probe")
        if self.probe.reply:
            self.timings |= self.probe.reply["timings"]
            for path in self.probe.reply["libraries"]:
                real = path.removesuffix(" (deleted)")
                self.libraries[path] = (
                    synth.sha256_of(Path(real)) if real == path else "replaced on disk"
                )

    def _probed(self) -> dict[str, Any]:
        assert self.probe is not None, "no probe"
        return self.probe.result

    def _cuda_devices(self) -> list[str]:
        devices = self.probe.reply["devices"] if self.probe and self.probe.reply else []
        return [d["description"] for d in devices if d["name"].startswith("CUDA")]

    def _gpus_visible(self) -> Check:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [str(one) for one in self.gpus]
        return checks.judge_gpus(names, self.nvml_problem, self._cuda_devices(), visible)

    def _library_origin(self) -> Check:
        self._probed()
        listed = self.stamp.get("libraries")
        prefix = str(self.config.prefix.resolve())
        return checks.judge_origin(self.libraries, prefix, listed, str(self.config.stamp))

    def _library_cuda(self) -> Check:
        probe = self._probed()
        return checks.judge_cuda(
            probe["libraries"], probe["system_info"], probe["supports_gpu_offload"]
        )

    def _machine_code(self) -> Check:
        """The library that was loaded, or the one that should have been."""
        loaded = [path for path in self.libraries if "/libggml-cuda" in path]
        there = sorted(map(str, self.config.prefix.rglob("libggml-cuda*.so*")))
        capabilities = self._capabilities()
        expected = f"machine code that runs on compute capability {', '.join(capabilities)}"
        cure = "build with -DGGML_CUDA=on"
        if not loaded and not there:
            found = f"no libggml-cuda.so below {self.config.prefix}"
            return failed("machine_code", found, expected, cure)
        try:
            code = fatbin.read(Path((loaded or there)[0]))
        except fatbin.FatbinError as error:
            return failed("machine_code", str(error), expected, cure)
        return fatbin.judge_machine_code(code, capabilities)

    def _capabilities(self) -> tuple[str, ...]:
        """Of the GPUs that CUDA shows; else of those NVML shows; else as configured."""
        shown = evidence.parse(self.probe.log).capabilities if self.probe else ()
        listed = tuple(one.compute_capability for one in self.gpus if one.compute_capability)
        return shown or listed or self.config.compute_capabilities

    # -- the model -------------------------------------------------------------------------------

    def _get_model(self) -> None:
        try:
            self.model = self._find_model()
        except synth.ModelError as error:
            self.model_error = error
        except (OSError, ValueError, ImportError) as error:
            advice = "set model to a whole GGUF file or to synthetic:<shape>-<type>"
            self.model_error = synth.ModelError(str(error), advice)

    def _find_model(self) -> Model:
        if self.config.model.startswith("/"):
            path = Path(self.config.model)
            return Model(path.name, path, None, weights.read(path))
        named = models.parse(self.config.model)
        if named is None:
            raise ValueError(f"found model {self.config.model!r}")
        return self._synthetic(*named)

    def _synthetic(self, shape: str, type_: str) -> Model:
        def on_tensor(done: int, of: int) -> None:
            self.progress.step(done, of, f"writing the synthetic model {shape} {type_}")

        path, about = synth.ensure(self.config.models, shape, type_, on_tensor)
        return Model(f"synthetic:{shape}-{type_}", path, about["sha256"], weights.read(path))

    def _needed(self) -> Model:
        if self.model is None:
            raise self.model_error or RuntimeError(self.broken)
        return self.model

    # -- evidence from a run with the whole model ------------------------------------------------

    def _gpu_layers(self, model: Model) -> int:
        """All layers, unless a fault is planted."""
        asked = self.faults.n_gpu_layers
        if asked == "half":
            return (model.weights.layers + 1) // 2
        return int(asked) if asked else -1

    def _fault(self, task: str) -> dict[str, Any]:
        return {"abort": True} if self.faults.abort_in == task else {}

    def _evidence(self) -> None:
        run: Outcome | None = None
        if self.model is not None and self.cuda:
            run = self.children.run(
                "generate",
                model=str(self.model.path),
                n_gpu_layers=self._gpu_layers(self.model),
                n_ctx=EVIDENCE_CONTEXT,
                **self._fault("generate"),
            )
            for name, seconds in (run.reply or {}).get("timings", {}).items():
                self.timings.setdefault(name, seconds)

        def outcome() -> tuple[Model, Outcome]:
            model = self._needed()
            assert run is not None
            return model, run

        def watched() -> tuple[Model, Outcome]:
            if self.nvml is None:
                raise gpu.NvmlUnavailable(self.nvml_problem)
            model, ended = outcome()
            if ended.reply is None:
                raise TaskProblem(ended)
            return model, ended

        def offload() -> Check:
            model, ended = outcome()
            found = evidence.parse(ended.log)
            check = evidence.judge_offload(found, model.weights.layers, model.weights.device_bytes)
            # A run that died is no proof, however well its layers were placed.
            if ended.problem and (check.status == "pass" or not found.layers):
                return _task_failed("offload", ended)
            return check

        def vram() -> Check:
            model, ended = watched()
            needed = model.weights.device_bytes / MIB
            at_load = ended.recording.growth_mib("initialised", "loaded")
            at_end = ended.recording.growth_mib("initialised", "ready")
            if at_load is None or at_end is None:
                raise gpu.NvmlUnavailable("NVML tells no memory figures")
            kv = sum(evidence.parse(ended.log).kv_mib.values())
            return checks.judge_vram(needed, at_load, needed + kv, at_end)

        def busy() -> Check:
            ended = watched()[1]
            samples = gpu.busy_utilisation(ended.recording, "generating", "generated", SETTLE_S)
            return checks.judge_busy(samples)

        self._check("offload", offload)
        self._check("vram", vram)
        self._check("busy", busy)

    def _logits(self) -> None:
        """The small model on the GPU and on the CPU; the CPU run is the control as well."""
        runs: dict[str, Outcome] = {}

        def control() -> Check:
            small = self._synthetic(*SMALL_MODEL)
            runs["cpu"] = self.children.run(
                "logits", "control", model=str(small.path), n_gpu_layers=0, **self._fault("control")
            )
            _ = runs["cpu"].result
            found = evidence.parse(runs["cpu"].log)
            return evidence.judge_control(found, small.weights.layers, small.weights.device_bytes)

        def logits() -> Check:
            small = self._synthetic(*SMALL_MODEL)
            run = self.children.run(
                "logits",
                model=str(small.path),
                n_gpu_layers=self._gpu_layers(small),
                **self._fault("logits"),
            )
            on_gpu = run.result
            placed = evidence.judge_offload(
                evidence.parse(run.log), small.weights.layers, small.weights.device_bytes
            )
            if placed.status != "pass":
                # Two runs on the CPU agree very well.
                found = f"the run to compare was not on the GPU: {placed.found}"
                return failed("logits", found, placed.expected, "see offload")
            on_cpu = runs["cpu"].result
            difference = checks.compare_logits(
                _floats(on_cpu["logits"]), _floats(on_gpu["logits"]), on_cpu["n_vocab"]
            )
            return checks.judge_logits(difference)

        self._check("control", control)
        self._check("logits", logits)

    # -- context and speed -----------------------------------------------------------------------

    def _offloaded(self) -> bool:
        return not self.cuda or self.checks["offload"].status == "pass"

    def _context(self) -> Check:
        model = self._needed()
        wanted = self.config.context
        expected = f"the model and a context of {wanted} tokens fit"
        if not self._offloaded():
            return skipped("context", "not tried: offload is red")
        first = self._try_context(model, wanted)
        if first.reply:
            return checks.passed("context", f"{first.reply['n_ctx']} tokens fit", expected)
        if not evidence.out_of_memory(first.log):
            return _task_failed("context", first)
        words = evidence.last_words(first.log, 2)
        guess = self._context_guess(model)
        if not self._cuda_devices():
            # No search on a CPU: it would fill the host's memory several times.
            return failed(
                "context",
                f"out of memory: {wanted} tokens do not fit into memory: {words}",
                expected,
                f"set context = {guess} or less (an estimate)",
            )
        fits = largest_context(
            lambda n: self._try_context(model, n).reply is not None, wanted, guess
        )
        if not fits:
            return failed(
                "context",
                f"out of memory: not even {CONTEXT_STEP} tokens fit into the GPU's memory: {words}",
                expected,
                "use a smaller model, and end other processes that `nvidia-smi` lists",
            )
        return failed(
            "context",
            f"out of memory: {wanted} tokens do not fit into the GPU's memory, {fits} do: {words}",
            expected,
            f"set context = {fits}",
        )

    def _try_context(self, model: Model, n_ctx: int) -> Outcome:
        return self.children.run(
            "context",
            model=str(model.path),
            n_gpu_layers=self._gpu_layers(model),
            n_ctx=n_ctx,
            limit_memory=not self._cuda_devices(),
            **self._fault("context"),
        )

    def _context_guess(self, model: Model) -> int:
        """Tokens for which 95 % of the free memory are enough, by the KV cache's size alone."""
        if self.nvml and self._cuda_devices():
            free = self.nvml.free_mib() * MIB
        else:
            free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        left = max(0.0, 0.95 * free - model.weights.total_bytes)
        steps = left / model.weights.kv_bytes_per_token / CONTEXT_STEP
        return int(steps) * CONTEXT_STEP

    def _benchmark(self) -> Check:
        model, config = self._needed(), self.config
        if not self._offloaded():
            return skipped("benchmark", "not measured: offload is red")
        ended = self.children.run(
            "bench",
            model=str(model.path),
            n_gpu_layers=self._gpu_layers(model),
            bench={
                "prompt": config.prompt,
                "gen": config.gen,
                "repetitions": config.repetitions,
            },
            discard=1 if self._first_after_build() else 0,
            **self._fault("bench"),
        )
        report = ended.result
        peak = ended.recording.peak_mib()
        self.benchmark = {
            "pp": report["pp"],
            "tg": report["tg"],
            "threads": report["threads"],
            "load_s": report["timings"]["load_s"],
            "peak_vram_mib": round(peak) if peak is not None else None,
            "gpu": gpu.summary(ended.recording.between("measuring", "measured")),
        }
        return checks.judge_benchmark(self.benchmark, config.repetitions)

    def _first_after_build(self) -> bool:
        """No verification of this build has ended here: kernels may still be compiled or paged."""
        return not any(self.config.results.glob(f"*-{self.config.fingerprint}.json"))

    # -- the result ------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """The result file's content."""
        config = self.config
        ordered = [self.checks[name] for name in checks.NAMES]
        probe = self.probe.reply if self.probe and self.probe.reply else {}
        return {
            "host": config.host,
            "started": self.started,
            "finished": time.time(),
            "verdict": checks.verdict(config.backend, ordered),
            "fingerprint": config.fingerprint,
            "key": self.key,
            "inputs": self.inputs,
            "build": {name: self.stamp.get(name) for name in BUILD_KEYS},
            "checks": [check.as_json() for check in ordered],
            "system": self.system
            | {
                "system_info": probe.get("system_info"),
                "libraries": self.libraries,
            },
            "model": self.model.as_json() if self.model else None,
            "benchmark": self.benchmark,
            "timings": self.timings,
        }


BUILD_KEYS = ("inputs", "wall_s", "cpu_s", "phases", "wheel_bytes", "llama_cpp_python")
"""What a result repeats of the build's stamp."""


def largest_context(fits: Callable[[int], bool], limit: int, guess: int) -> int:
    """The largest multiple of CONTEXT_STEP below `limit` that fits; 0 if none was found.

    Starts at `guess`, goes on in steps of an eighth until one fits and one does not, then halves
    the gap; CONTEXT_TRIES calls of `fits` at most, so the answer is a size that did fit.
    """
    low, high = 0, limit
    candidate = guess
    for _ in range(CONTEXT_TRIES):
        top = (high - 1) // CONTEXT_STEP * CONTEXT_STEP
        candidate = min(max(candidate // CONTEXT_STEP * CONTEXT_STEP, CONTEXT_STEP), top)
        if candidate <= low:
            break
        if fits(candidate):
            low = candidate
            step = max(low // 8, CONTEXT_STEP)
            candidate = low + step if high == limit else (low + high) // 2
        else:
            high = candidate
            candidate = (low + high) // 2 if low else high * 7 // 8
    return low


def _open_nvml() -> tuple[gpu.Nvml | None, str | None]:
    try:
        return gpu.Nvml(), None
    except gpu.NvmlUnavailable as error:
        return None, str(error)


def _task_failed(name: str, outcome: Outcome) -> Check:
    return failed(
        name,
        outcome.problem or "no reply",
        f"task {outcome.task} of the worker ends with a reply",
        cure(outcome),
    )


def _floats(encoded: str) -> array[float]:
    return array("f", base64.b64decode(encoded))
