"""A verification for Prometheus: llamafleet.prom beside latest.json, read by node_exporter.

Where there is no verdict, as while a verification runs or after a driver update, the file says NOT
VERIFIED: what was proven before is never shown as of now. docs/monitoring.md lists each figure; a
test compares. Names are as Prometheus asks: https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import get_args

from llamafleet.onhost.exposition import Gauge, page
from llamafleet.protocol.conditions import Conditions
from llamafleet.protocol.job import write_whole
from llamafleet.protocol.result import NOT_VERIFIED, Benchmark, Check, GpuRow, Result, Verdict
from llamafleet.protocol.verify import VerifyConfig

ALL, CPU = "all", "cpu"
"""Of the label gpu, where several GPUs worked together, or none; else it is a UUID, or the address
on the bus where a GPU tells none."""
MHZ, MIB = 1e6, 2**20


def keep(config: VerifyConfig, result: Result | None) -> None:
    """Write the file; None: there is no verdict. That it can't be written changes no verdict, and
    leaves none there."""
    try:
        write_whole(config.prom, page_of(config, result), public=True)
    except OSError as error:
        # A full disk takes no new page, and what the old one says is no longer so.
        with suppress(OSError):
            config.prom.unlink(missing_ok=True)
        if config.prom.parent.is_dir():  # Else those say it who need the folder for more.
            print(
                f"metrics: found that {config.prom} can't be written ({error}); expected a file "
                f"for node_exporter; next: ls -ld {config.prom}",
                file=sys.stderr,
            )


def page_of(config: VerifyConfig, result: Result | None) -> bytes:
    """What is told of a result; None: there is no verdict."""
    families = Families()
    families.timer(config)
    if result is None:
        families.verdict(NOT_VERIFIED, good=False)
    else:
        families.result(result)
    return page(families)


class Families:
    """All of one host."""

    def __init__(self) -> None:
        self._verdict = Gauge(
            "llamafleet_verdict", "1 for the verdict on the host: the worst of all its GPUs."
        )
        self._good = Gauge(
            "llamafleet_verified", "1: the verdict is PASS, or another that the settings allow."
        )
        self._timer = Gauge(
            "llamafleet_verification_timer", "1: a timer verifies again; 0: none does."
        )
        self._ended = Gauge(
            "llamafleet_verification_timestamp_seconds", "When the verification ended."
        )
        self._took = Gauge(
            "llamafleet_verification_duration_seconds", "How long the verification took."
        )
        self._info = Gauge(
            "llamafleet_verification_info",
            "Always 1; its labels tell which build was verified, on which driver.",
        )
        self._red = Gauge("llamafleet_check_failed", "1 for each check that is red.")
        self._gpu = Gauge("llamafleet_gpu_info", "Always 1; its labels tell which GPU it is.")
        self._of_gpu = Gauge("llamafleet_gpu_verdict", "1 for the verdict on the GPU.")
        self._rate = Gauge(
            "llamafleet_benchmark_tokens_per_second",
            "Median of prompt processing (pp) and token generation (tg); none where it is BUSY.",
        )
        self._load = Gauge("llamafleet_benchmark_load_seconds", "To load the model.")
        self._peak = Gauge(
            "llamafleet_benchmark_memory_peak_bytes", "The most GPU memory that was in use."
        )
        self._hot = Gauge("llamafleet_benchmark_temperature_celsius", "Of the GPU, at its highest.")
        self._limit = Gauge("llamafleet_benchmark_power_limit_watts", "Power limit in force.")
        self._clock = Gauge(
            "llamafleet_benchmark_sm_clock_hertz", "Median clock of the multiprocessors."
        )
        self._slow = Gauge(
            "llamafleet_benchmark_throttled_seconds",
            "How long the GPU was held below its clocks while it was measured, by reason.",
        )
        self._lanes = Gauge("llamafleet_benchmark_pcie_lanes", "PCIe lanes in use.")

    def __iter__(self) -> Iterator[Gauge]:
        return iter([one for one in vars(self).values() if isinstance(one, Gauge)])

    def timer(self, config: VerifyConfig) -> None:
        self._timer.set(config.timer)

    def verdict(self, verdict: Verdict, *, good: bool) -> None:
        for one in get_args(Verdict):
            self._verdict.set(one == verdict, verdict=one)
        self._good.set(good)

    def result(self, result: Result) -> None:
        self.verdict(result.verdict, good=result.good)
        self._ended.set(result.finished)
        if result.started:
            self._took.set(result.finished - result.started)
        self._about(result)
        self._failed("", result.checks)
        together = ALL if result.gpus else CPU
        model = result.inputs.model
        self._measured(together, model, result.benchmark, busy=result.measured_busy)
        # By the label `gpu` rules join what is told of one: none is told of twice.
        by_label: dict[str, GpuRow] = {}
        for gpu in result.gpus:
            by_label.setdefault(gpu.uuid or gpu.bus_id, gpu)
        for label, gpu in by_label.items():
            self._gpu.set(
                1,
                gpu=label,
                name=gpu.name,
                bus_id=gpu.bus_id,
                compute_capability=gpu.compute_capability,
            )
            for one in get_args(Verdict):
                self._of_gpu.set(one == gpu.verdict, gpu=label, verdict=one)
            self._failed(label, gpu.checks)
            self._measured(label, gpu.model or model, gpu.benchmark, busy=bool(gpu.busy))

    def _about(self, result: Result) -> None:
        inputs = result.build.inputs or {}
        self._info.set(
            1,
            host=result.host,
            driver=result.system.driver or result.inputs.driver or "",
            cuda=result.system.cuda or "",
            toolkit=str(inputs.get("toolkit") or ""),
            fingerprint=result.fingerprint,
            llama_cpp_python=result.build.llama_cpp_python or "",
            model=result.inputs.model,
        )

    def _failed(self, gpu: str, checks: Iterable[Check]) -> None:
        for check in checks:
            if check.status == "fail":
                self._red.set(1, gpu=gpu, check=check.name)

    def _measured(self, gpu: str, model: str, benchmark: Benchmark | None, *, busy: bool) -> None:
        if benchmark is None:
            return
        for test, rates in (("pp", benchmark.pp), ("tg", benchmark.tg)):
            # Model and tokens are labels: with others it is another series, and no slower GPU.
            if not busy:
                named = {"gpu": gpu, "test": test, "tokens": str(rates.n), "model": model}
                self._rate.set(rates.median_ts, **named)
        self._load.set(benchmark.load_s, gpu=gpu)
        self._peak.set(_times(benchmark.peak_vram_mib, MIB), gpu=gpu)
        if gpu != ALL:  # What one of them was like is told of it alone.
            for one in benchmark.conditions:
                self._conditions(gpu, one)

    def _conditions(self, gpu: str, found: Conditions) -> None:
        self._hot.set(found.temperature_c, gpu=gpu)
        self._limit.set(found.power_limit_w, gpu=gpu)
        self._clock.set(_times(found.sm_clock_mhz, MHZ), gpu=gpu)
        self._lanes.set(found.pcie_width, gpu=gpu)
        for reason, seconds in found.throttled_s.items():
            self._slow.set(seconds, gpu=gpu, reason=reason)


def _times(figure: float | None, unit: float) -> float | None:
    return None if figure is None else figure * unit
