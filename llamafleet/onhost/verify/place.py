"""Where a model is loaded, one GPU, several, or the CPU, and what was seen there."""

from __future__ import annotations

import os
from typing import Any

from llamafleet.onhost.verify import sampling
from llamafleet.onhost.verify.child import Outcome
from llamafleet.onhost.verify.conditions import Watch
from llamafleet.onhost.verify.evidence import (
    EVIDENCE_CONTEXT,
    FREE_SHARE,
    MIB,
    Evidence,
    Kind,
    Model,
    once,
    quietly,
)
from llamafleet.onhost.verify.gpu import Gpu, NvmlUnavailable
from llamafleet.onhost.verify.measuring import Measured, Patience, at_rest, judged, until_free
from llamafleet.onhost.verify.present import Missing, is_instance
from llamafleet.protocol.result import Benchmark, Check, Rates


class Place:
    """Where a model is loaded, and what was seen there."""

    def __init__(self, evidence: Evidence, kind: Kind, gpus: tuple[Gpu, ...] = ()) -> None:
        self.evidence, self.kind, self.gpus = evidence, kind, gpus
        self.checks: dict[str, Check] = {}
        """Those that were made here so far."""
        self.missing: Missing | None = None
        """NVML does not give this GPU either."""
        self.hidden = False
        """CUDA does not show this GPU: nothing can be tried on it."""
        self.offloaded = kind == "cpu"
        """The model was seen where it belongs: what builds on that may be tried."""
        self.lines: list[str] = []
        """What was found here, for people, and not said yet."""
        self.cores: frozenset[int] = frozenset()
        """Those for its processes while other GPUs are looked at; empty: all."""
        self.measured: Benchmark | None = None
        self._bench: Outcome | None = None
        self.loaded: Model | None = None

    @property
    def gpu(self) -> Gpu | None:
        """The one GPU that a process is limited to; None: it takes what it sees."""
        return self.gpus[0] if self.kind == "gpu" else None

    @once
    def model(self) -> Model:
        self.loaded = self.evidence.model_for(self.gpus)
        return self.loaded

    def _run(self, task: str, model: Model, **request: Any) -> Outcome:
        evidence = self.evidence
        return evidence.children.run(
            task,
            gpu=self.gpu,
            cores=self.cores,
            model=str(model.path),
            n_gpu_layers=evidence.faults.layers(model),
            **request,
            **evidence.faults.request(task),
        )

    @once
    def generate(self) -> Outcome:
        """The whole model, loaded and generating."""
        return self._run("generate", self.model(), n_ctx=EVIDENCE_CONTEXT)

    def watched(self) -> Outcome:
        """The same, with NVML's figures. Raises NvmlUnavailable and TaskProblem."""
        if self.evidence.nvml is None:
            raise NvmlUnavailable(self.evidence.nvml_problem)
        _ = self.generate().result
        return self.generate()

    @once
    def logits(self) -> Outcome:
        """The small models here."""
        compared = self.evidence.compared()
        return self._run("logits", compared[0], models=[str(one.path) for one in compared])

    def context(self, n_ctx: int) -> Outcome:
        limit = not self.evidence.cuda_devices()
        return self._run("context", self.model(), n_ctx=n_ctx, limit_memory=limit)

    def tokens_that_fit(self) -> float:
        """Tokens for which the free memory is enough, by the KV cache's size alone."""
        evidence, held = self.evidence, self.model().weights
        if evidence.nvml and evidence.cuda_devices():
            free = evidence.nvml.free_mib(self.gpus) * MIB
        else:
            free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return max(0.0, FREE_SHARE * free - held.total_bytes) / held.kv_bytes_per_token

    def bench(self) -> Outcome:
        """The task that measures, as it ended last."""
        if self._bench is None:
            sizes = self.evidence.config.inputs.bench
            bench = {"prompt": sizes.prompt, "gen": sizes.gen, "repetitions": sizes.repetitions}
            settle = self.kind != "cpu"
            discard = 1 if self.evidence.first_after_build() else 0
            request = {"bench": bench, "discard": discard, "settle": settle}
            self._bench = self._run("bench", self.model(), **request)
        return self._bench

    def _measure(self) -> Measured:
        """One benchmark, with its conditions where NVML tells them."""
        nvml, self._bench = self.evidence.nvml, None
        watch = Watch(nvml, self.gpus) if nvml and self.gpus else None
        ended = self.bench()
        report, peak = ended.result, ended.recording.peak_mib()
        benchmark = Benchmark(
            pp=Rates(**report["pp"]),
            tg=Rates(**report["tg"]),
            threads=report["threads"],
            load_s=report["timings"]["load_s"],
            peak_vram_mib=round(peak) if peak is not None else None,
            gpu=sampling.summary(ended.recording.between("measuring", "measured")),
            conditions=watch.ended(ended.recording) if watch else (),
        )
        return judged(benchmark, self.gpus) if watch else Measured(benchmark)

    @once
    def measuring(self) -> Measured:
        """The benchmark, repeated until its GPUs are free or there is no time left.

        Where a check of this place is red already, no waiting makes its verdict better.
        """
        nvml = self.evidence.nvml
        red = any(check.status == "fail" for check in self.checks.values())
        measured = until_free(
            self._measure,
            Patience(0.0) if red else self.evidence.patience,
            lambda: nvml is None or at_rest(nvml, self.gpus),
            lambda line: self.evidence.children.on_step(0, 1, line),
        )
        self.measured = measured.benchmark
        return measured

    def timings(self) -> dict[str, float]:
        """Seconds of the first run with the model; empty where there was none."""
        ended = quietly(self.generate) if self.loaded else None
        return dict(((ended and ended.reply) or {}).get("timings", {}))


def places(evidence: Evidence) -> tuple[Place, ...]:
    """Each GPU by itself; where there are several, also all of them together.

    Not those of which CUDA shows but one to a process: instances of divided GPUs.
    """
    if evidence.config.backend == "cpu":
        return (Place(evidence, "cpu"),)
    gpus = evidence.gpus
    each = [Place(evidence, "gpu", (gpu,)) for gpu in gpus]
    for missing in evidence.there.missing:
        place = Place(evidence, "gpu", (missing.gpu,))
        place.missing, place.hidden = missing, True
        each.append(place)
    if not gpus:
        each.append(Place(evidence, "unnamed"))
    elif len(gpus) > 1 and not any(map(is_instance, gpus)):
        each.append(Place(evidence, "all", gpus))
    return tuple(each)
