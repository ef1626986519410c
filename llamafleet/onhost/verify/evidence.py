"""What one verification finds out, each thing once: asked for by the checks that need it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Literal, TypeVar

from llamafleet.onhost import elf
from llamafleet.onhost.verify import known, synth, weights
from llamafleet.onhost.verify.child import Children, Outcome
from llamafleet.onhost.verify.gpu import Gpu, Nvml
from llamafleet.onhost.verify.imported import Imported, is_foreign, own_folder
from llamafleet.onhost.verify.measuring import Patience
from llamafleet.onhost.verify.present import Present, is_instance
from llamafleet.protocol import models
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import BuildProduct, Stamp, read_json
from llamafleet.protocol.result import BuildSummary, Check, ModelFile, failed
from llamafleet.protocol.verify import VerifyConfig

MIB = 1 << 20
EVIDENCE_CONTEXT = 1024
"""Context of the run that offload, vram and busy look at."""
SMALL = "tiny"
"""Shape of the models for logits and control; all its rows are whole blocks of every type."""
FREE_SHARE = 0.95
"""Of the free memory, what weights and KV cache may take in an estimate."""
CUDA_ERROR = "CUDA error"
"""How llama.cpp begins the last words of a process that CUDA refuses something (ggml-cuda.cu)."""

Need = Literal["model", "small model"]
"""What a check can't do without, and the library with it, which loads a model."""
NO_LIBRARY = "not tried: the library can't be loaded"

Kind = Literal["gpu", "all", "unnamed", "cpu"]
"""One GPU; all of several together; what CUDA shows where NVML names none; the CPU."""
T = TypeVar("T")


def once(method: Callable[[Any], T]) -> Callable[[Any], T]:
    """Keep a method's answer, or its exception: what failed once is not tried again."""
    name = f"_once_{method.__name__}"

    @functools.wraps(method)
    def kept(self: Any) -> T:
        # Several GPUs are looked at at once: who comes second waits for the first one's answer.
        with self.__dict__.setdefault(f"{name}_lock", RLock()):
            if name not in self.__dict__:
                try:
                    self.__dict__[name] = method(self)
                except Exception as error:
                    self.__dict__[name] = error
        answer = self.__dict__[name]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    return kept


def quietly(method: Callable[[], T]) -> T | None:
    """The answer; None where there is none. What went wrong stands in a check by now."""
    try:
        return method()
    except Exception:
        return None


@dataclass(frozen=True)
class Faults:
    """Faults that a person plants to see a check go red."""

    n_gpu_layers: str = ""
    """A number, or half; empty: all layers."""
    abort_in: str = ""
    """A task of worker.py that ends by abort()."""

    def layers(self, model: Model) -> int:
        """All layers, unless a fault is planted."""
        if self.n_gpu_layers == "half":
            return (model.weights.layers + 1) // 2
        return int(self.n_gpu_layers) if self.n_gpu_layers else -1

    def request(self, task: str) -> dict[str, Any]:
        return {"abort": True} if self.abort_in == task else {}


@dataclass(frozen=True)
class Model:
    """A model to load."""

    name: str
    path: Path
    sha256: str | None
    """Of synthetic models; a model of the user's may be too big to be read through every time."""
    weights: weights.Weights

    @property
    def synthetic(self) -> bool:
        return self.sha256 is not None

    def described(self) -> ModelFile:
        size = sum(file.stat().st_size for file in self.weights.files)
        return ModelFile(self.name, str(self.path), size, self.sha256, self.weights.layers)


@dataclass(frozen=True)
class Device:
    """One of ggml's devices, as the probe tells it."""

    name: str
    description: str
    bus_id: str | None = None


@dataclass(frozen=True)
class Probed:
    """As much of the probe's reply as is read here."""

    libraries: tuple[str, ...] = ()
    """Paths, with " (deleted)" where the file is no longer there."""
    devices: tuple[Device, ...] = ()
    runtime_libraries: tuple[str, ...] = ()
    """The same of CUDA's and the driver's."""


def _sha256_of(path: str) -> str:
    """Of a library; the words for one that can't be read are no hash, so that it differs."""
    try:
        return synth.sha256_of(Path(path))
    except (OSError, ValueError):
        return "not to be read"


class Evidence:
    """The host's: its build, its GPUs, the model."""

    def __init__(
        self,
        config: VerifyConfig,
        faults: Faults,
        children: Children,
        nvml: Nvml | str | None,
        there: Present | None = None,
    ) -> None:
        """`nvml`: opened; why it can't be; or None for a build that needs none. `there`: the GPUs
        to judge."""
        self.config, self.faults, self.children = config, faults, children
        self.nvml = None if isinstance(nvml, str) else nvml
        self.nvml_problem = nvml if isinstance(nvml, str) else None
        self._writing = Lock()
        """Models are written one after the other: two places may want the same."""
        self.there = there or Present()
        self.gpus = self.there.gpus
        """Those to judge that NVML gives."""
        self.stamp, self.product = _stamped(Path(config.stamp))
        self.refused = False
        """The check `model` is red: nothing is tried with that model."""
        self.patience = Patience(60.0 * config.busy_minutes)

    def build(self) -> BuildSummary:
        """What the result repeats of the build."""
        stamp, product = self.stamp, self.product
        if stamp is None or product is None:
            return BuildSummary()
        return BuildSummary(
            inputs=stamp.inputs,
            wall_s=stamp.wall_s,
            cpu_s=stamp.cpu_s,
            phases=stamp.phases,
            wheel_bytes=product.wheel_bytes,
            llama_cpp_python=product.llama_cpp_python,
            retried=str(stamp.retry) if stamp.retry else None,
            nvcc=product.nvcc,
        )

    @once
    def whole(self) -> Outcome:
        """What is loaded, and which devices a process has that is limited to none."""
        return self._probed()

    @once
    def singles(self) -> dict[str, Outcome]:
        """The same of processes that are limited to one GPU each, by UUID.

        Only where one process can't show them all: it has but one instance of a divided GPU, and
        it ends by a GPU that takes no process (compute mode). Empty where it can.
        """
        whole = self.whole()
        died = whole.reply is None and CUDA_ERROR in whole.log
        if not died and not any(map(is_instance, self.gpus)):
            return {}
        return {one.uuid: self._probed(one) for one in self.gpus}

    @once
    def probe(self) -> Outcome:
        """What is loaded: of the first process of these that answers."""
        answers = (one for one in (self.whole(), *self.singles().values()) if one.reply)
        return next(answers, self.whole())

    def _probed(self, gpu: Gpu | None = None) -> Outcome:
        """Its reply, if there is one, is a `Probed`."""
        outcome = self.children.run("probe", gpu=gpu)
        try:
            decode(Probed, outcome.reply or {})
        except DecodeError as error:
            return replace(outcome, reply=None, problem=f"a reply that can't be read: {error}")
        return outcome

    @once
    def imported(self) -> Imported:
        """Which llama_cpp the worker imports; nothing where it does not say."""
        try:
            return decode(Imported, self.probe().imported or {})
        except DecodeError:
            return Imported()

    def package(self) -> Path:
        """Where the build's own llama_cpp lies."""
        made = self.product.libraries if self.product else {}
        return own_folder(Path(self.config.prefix), made)

    def foreign(self) -> bool:
        """Another llama_cpp is in front of the build's own."""
        return is_foreign(self.imported(), self.package())

    def variables(self) -> dict[str, str]:
        """Of the worker's environment, those that steer llama.cpp and CUDA."""
        return self.config.environment | self.imported().variables

    def no_library(self) -> str:
        """Why nothing can be tried with the build's llama.cpp; "": it can."""
        if self.foreign():
            return "not tried: llama_cpp is not the build's own, see library_origin"
        return "" if self.probe().reply is not None else NO_LIBRARY

    def missing(self, needs: Collection[Need]) -> str:
        """Why what a check needs is not there; "": it is."""
        if why := self.no_library() if needs else "":
            return why
        if "model" in needs and (self.refused or quietly(self.model) is None):
            return "not tried: the model can't be used, see model"
        if "small model" in needs and quietly(self.compared) is None:
            return "not tried: there are no small models, see model"
        return ""

    @once
    def probed_libraries(self) -> dict[str, str]:
        """sha256 by path of the libraries in the process; none where it did not answer."""
        found = {}
        for path in (self.probe().reply or {}).get("libraries", ()):
            real = path.removesuffix(" (deleted)")
            found[path] = _sha256_of(path) if real == path else "replaced on disk"
        return found

    def made_libraries(self) -> dict[str, str]:
        """sha256 by path of the libraries that the build made, as they lie there now."""
        prefix = Path(self.config.prefix).resolve()
        made = self.product.libraries if self.product else {}
        return {str(prefix / name): _sha256_of(str(prefix / name)) for name in made}

    def libraries(self) -> dict[str, str]:
        """Of those in the process. Raises TaskProblem where the process did not answer."""
        _ = self.probe().result
        return self.probed_libraries()

    def cuda_folders(self) -> list[Path]:
        """Where the build's CUDA library looks for the toolkit's. Raises ElfError, OSError."""
        prefix = Path(self.config.prefix).resolve()
        names = [name for name in self.made_libraries() if name.endswith("/libggml-cuda.so")]
        return [folder for name in names for folder in elf.read(prefix / name).folders]

    def strays(self) -> list[str]:
        """Libraries of CUDA in the process that are none of the build's toolkit's or the driver's.

        Raises TaskProblem, ElfError, OSError.
        """
        probed = decode(Probed, self.probe().result)
        return elf.strays(probed.runtime_libraries, self.cuda_folders())

    @once
    def _devices(self) -> list[dict[str, Any]]:
        """CUDA's devices, each once."""
        if not self.singles():
            return _cuda(self.whole())
        return [
            device
            for gpu in self.gpus
            for device in _cuda(self.singles()[gpu.uuid])
            if device.get("bus_id") in (gpu.bus_id, None)
        ]

    def shows(self, gpu: Gpu) -> bool:
        """CUDA shows it; where llama.cpp tells no addresses: as many as NVML lists."""
        if single := self.singles().get(gpu.uuid):
            return [one.get("bus_id") or gpu.bus_id for one in _cuda(single)] == [gpu.bus_id]
        ids = self.cuda_bus_ids()
        return ids is None or gpu.bus_id in ids

    def log_of(self, gpu: Gpu) -> str:
        """What the process said that looked for it."""
        return self.singles().get(gpu.uuid, self.whole()).log

    def cuda_devices(self) -> list[str]:
        """Names of the GPUs that CUDA shows."""
        return [device["description"] for device in self._devices()]

    def cuda_bus_ids(self) -> list[str] | None:
        """Their PCI addresses; None: not told, and there are as many as NVML lists."""
        ids = [device.get("bus_id") for device in self._devices()]
        if None in ids and len(ids) == len(self.gpus):
            return None
        return [bus_id or "an unknown address" for bus_id in ids]

    @once
    def model(self) -> Model:
        """That of the settings. Raises ModelError."""
        try:
            model = self._model(self.config.inputs.model)
        except ImportError as error:
            found = f"the build's own package gguf can't be imported: {error}"
            raise synth.ModelError(
                found, f"remove {self.config.prefix} and deploy again"
            ) from error
        except OSError as error:
            path = self.config.inputs.model
            advice = f"read it by hand: `cksum {path}`; look at `dmesg`"
            raise synth.ModelError(f"{path} can't be read: {error}", advice) from error
        if not model.synthetic:
            self._loadable(model)
        return model

    def _loadable(self, model: Model) -> None:
        """Raises ModelError where llama.cpp itself refuses the model, be it never so whole."""
        if self.no_library():
            return
        ended = self.children.run("outline", model=str(model.path))
        if ended.reply is not None:
            return
        match = known.of_task(ended)
        raise synth.ModelError(
            f"{ended.problem}{f'; {match}' if match else ''}",
            match.fix if match else f"read {ended.log_path}; set another model",
            "a model that this llama.cpp can load",
        )

    @once
    def compared(self) -> tuple[Model, ...]:
        """A small model of each type in which a GPU is compared with the CPU."""
        return tuple(self._synthetic(SMALL, type_) for type_ in models.COMPARED)

    def model_for(self, gpus: tuple[Gpu, ...]) -> Model:
        """That of the settings; where it is too big for one GPU of several: a synthetic one."""
        model = self.model()
        if len(gpus) != 1 or len(self.gpus) < 2:
            return model
        (gpu,) = gpus
        needed = model.weights.total_bytes + model.weights.kv_bytes_per_token * EVIDENCE_CONTEXT
        if needed / MIB <= FREE_SHARE * gpu.vram_mib:
            return model
        return self._model(models.for_vram(gpu.vram_mib))

    def _model(self, name: str) -> Model:
        named = models.parse(name)
        if named is None:
            path = Path(name)
            return Model(path.name, path, None, weights.read(path))
        return self._synthetic(*named)

    def _synthetic(self, shape: str, type_: str) -> Model:
        def on_tensor(done: int, of: int) -> None:
            self.children.on_step(done, of, f"writing the synthetic model {shape} {type_}")

        with self._writing:
            path, about = synth.ensure(Path(self.config.models), shape, type_, on_tensor)
        return Model(models.name(shape, type_), path, about["sha256"], weights.read(path))

    @once
    def control(self) -> Outcome:
        """The small models on the CPU."""
        paths = [str(model.path) for model in self.compared()]
        fault = self.faults.request("control")
        # One that is limited to none would end as `whole` did.
        seen = [gpu for gpu in self.gpus if self.shows(gpu)] if self.whole().reply is None else []
        one = next(iter(seen), None)
        return self.children.run("logits", "control", one, models=paths, n_gpu_layers=0, **fault)

    def first_after_build(self) -> bool:
        """No verification of this build has ended: kernels may still be compiled or paged in."""
        build = self.config.inputs.fingerprint
        return not any(Path(self.config.results).glob(f"*-{build}.json"))


def _stamped(path: Path) -> tuple[Stamp | None, BuildProduct | None]:
    """How the build ended and what it made; None where that can't be read."""
    data = read_json(path)
    try:
        return decode(Stamp, data), decode(BuildProduct, data)
    except DecodeError:
        return None, None


def _cuda(outcome: Outcome) -> list[dict[str, Any]]:
    """The GPUs that a process saw."""
    devices = (outcome.reply or {}).get("devices", [])
    return [device for device in devices if device["name"].startswith("CUDA")]


def task_failed(name: str, outcome: Outcome) -> Check:
    """A check whose task ended without a reply."""
    check = failed(
        name,
        outcome.problem or "no reply",
        f"task {outcome.task} of the worker ends with a reply",
        f"read {outcome.log_path}",
    )
    return known.with_match(check, known.of_task(outcome))
