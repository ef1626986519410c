"""Measure until the GPU is free, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llamafleet.onhost.verify import freedom
from llamafleet.onhost.verify.conditions import in_use
from llamafleet.onhost.verify.freedom import Called, Finding
from llamafleet.onhost.verify.gpu import Gpu, Nvml
from llamafleet.protocol.result import Benchmark

POLL_S = 2.0
"""Between two looks at a GPU that is in use."""
PAUSE_S = 5.0
"""Before the next measurement of one that seems free: heat and short loads pass."""


@dataclass(frozen=True)
class Measured:
    """One benchmark and what its conditions show."""

    benchmark: Benchmark
    findings: tuple[Finding, ...] = ()

    @property
    def busy(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.weight == "busy")


def judged(benchmark: Benchmark, gpus: Sequence[Gpu]) -> Measured:
    """The benchmark with the reasons why it may not be one of free GPUs."""
    found = freedom.judge(benchmark.conditions, [_called(gpu) for gpu in gpus])
    found += freedom.spread({"pp": benchmark.pp, "tg": benchmark.tg})
    busy = tuple(one.text for one in found if one.weight == "busy")
    return Measured(replace(benchmark, busy=busy), tuple(found))


def _called(gpu: Gpu) -> Called:
    return Called(gpu.uuid if gpu.parent else f"GPU {gpu.index}", gpu.bus_id or gpu.uuid)


class Patience:
    """Time that one verification spends on waiting, of all its GPUs together: it begins to run out
    where the first is busy."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._end: float | None = None

    def left(self) -> float:
        if self._end is None:
            self._end = self._clock() + self.seconds
        return max(0.0, self._end - self._clock())


def until_free(
    measure: Callable[[], Measured],
    patience: Patience,
    free: Callable[[], bool],
    on_wait: Callable[[str], object] = lambda line: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Measured:
    """Measure; again while the GPU was busy and there is time. The last measurement.

    Each is measured twice where waiting is allowed at all: what an earlier GPU waited for is not
    this one's fault. What does not pass by itself is measured no third time. `free`: nothing is
    seen on the GPU now.
    """
    attempts, measured = 1, measure()
    while measured.busy and patience.seconds:
        standing = all(one.standing for one in measured.busy)
        if attempts > 1 and (standing or not patience.left()):
            break
        on_wait(f"measured {attempts} times, waiting: {measured.busy[0].text}")
        sleep(PAUSE_S)
        while patience.left() and not free():
            sleep(POLL_S)
        measured, attempts = measure(), attempts + 1
    return replace(measured, benchmark=replace(measured.benchmark, attempts=attempts))


def at_rest(nvml: Nvml, gpus: Sequence[Gpu]) -> bool:
    """Nothing of others is seen on these GPUs now."""
    return not any(in_use(nvml.moment(gpu)) for gpu in gpus)
