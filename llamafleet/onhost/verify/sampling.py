"""NVML read again and again while a child process works, and what of it goes into a result."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from llamafleet.onhost.verify.gpu import Gpu, Nvml, Sample
from llamafleet.protocol.result import Load
from llamafleet.protocol.throttle import decode_throttle

INTERVAL_S = 0.2
"""Time between two samples; NVML's own utilisation is a mean over 1/6 s to 1 s."""


@dataclass
class Recording:
    """Samples of one child process, and one more at each mark that the child set."""

    samples: list[Sample] = field(default_factory=list)
    marks: dict[str, Sample] = field(default_factory=dict)
    pid: int = 0
    """Of the child; 0: not known."""

    def between(self, start: str, end: str, settle_s: float = 0.0) -> list[Sample]:
        """Samples from `settle_s` seconds after mark `start` until mark `end`."""
        if start not in self.marks or end not in self.marks:
            return []
        first, last = self.marks[start].at + settle_s, self.marks[end].at
        return [sample for sample in self.samples if first <= sample.at <= last]

    def growth_mib(self, start: str, end: str) -> float | None:
        """Memory that the process took between two marks; by everyone where its pid is hidden.

        None where a mark is missing or NVML tells no memory.
        """
        a, b = self.marks.get(start), self.marks.get(end)
        if a is None or b is None:
            return None
        if a.process_mib is not None and b.process_mib is not None:
            return b.process_mib - a.process_mib
        if a.used_mib is None or b.used_mib is None:
            return None
        return b.used_mib - a.used_mib

    def peak_mib(self) -> float | None:
        """Largest memory of the process; where its pid is hidden, the largest growth of all."""
        own = [s.process_mib for s in self.samples if s.process_mib is not None]
        if own:
            return max(own)
        used = [s.used_mib for s in self.samples if s.used_mib is not None]
        return max(used) - used[0] if used else None


class Sampler:
    """Reads NVML in a thread of the parent while a child works."""

    def __init__(
        self, nvml: Nvml, pid: int, gpus: Sequence[Gpu] = (), interval_s: float = INTERVAL_S
    ) -> None:
        self.recording = Recording(pid=pid)
        self._nvml, self._pid, self._gpus, self._interval_s = nvml, pid, gpus, interval_s
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    def start(self) -> None:
        self.recording.samples.append(self._sample())
        self._thread.start()

    def mark(self, name: str) -> None:
        """Read now, and keep it under `name`. The child waits meanwhile."""
        self.recording.marks[name] = self._sample()

    def stop(self) -> Recording:
        """Raises what ended the reading: with half the samples nobody was seen."""
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error
        return self.recording

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                self.recording.samples.append(self._sample())
        except Exception as error:
            self._error = error

    def _sample(self) -> Sample:
        return self._nvml.sample(self._pid, self._gpus)


def summary(samples: Iterable[Sample]) -> Load | None:
    """Means and peaks for a result; None without samples."""
    taken = list(samples)
    if not taken:
        return None
    bits = 0
    for sample in taken:
        bits |= sample.throttle

    def values(name: str) -> list[float]:
        return [v for s in taken if (v := getattr(s, name)) is not None]

    def mean(name: str) -> float | None:
        return round(fmean(values(name)), 1) if values(name) else None

    return Load(
        utilisation_mean=mean("utilisation"),
        utilisation_max=max(values("utilisation"), default=None),
        sm_clock_mhz=mean("sm_clock_mhz"),
        power_w=mean("power_w"),
        temperature_c=max(values("temperature_c"), default=None),
        throttle_reasons=tuple(decode_throttle(bits)),
    )


def busy_utilisation(recording: Recording, start: str, end: str, settle_s: float) -> list[float]:
    """Utilisation samples between two marks, without the first seconds after the first one."""
    samples = recording.between(start, end, settle_s)
    return [s.utilisation for s in samples if s.utilisation is not None]
