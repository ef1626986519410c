"""The GPUs as the driver's management library (NVML) shows them, from outside the process.

pynvml (package nvidia-ml-py) is imported when it is used: a host without it, or without a driver,
gets a finding and no exception.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import ModuleType
from typing import Any

from llamafleet.protocol.result import Load

MIB = 1 << 20
NO_PERMISSION = 4
"""NVML_ERROR_NO_PERMISSION of nvml.h. nvmlDeviceGetCount_v2 counts such GPUs too, says its text."""
INTERVAL_S = 0.2
"""Time between two samples; NVML's own utilisation is a mean over 1/6 s to 1 s."""

THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""Bits of nvmlClocksEventReasons in nvml.h."""


class NvmlUnavailable(Exception):
    """NVML can't be used; the text says why."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of the host."""

    index: int
    name: str
    uuid: str
    bus_id: str
    """As 0000:01:00.0, in lower case; "": not told."""
    compute_capability: str
    vram_mib: int

    def __str__(self) -> str:
        return f"{self.name}, {self.compute_capability}"

    @property
    def identity(self) -> str:
        """As a verification's inputs name it."""
        return f"{self.name} {self.uuid}"


@dataclass(frozen=True)
class Sample:
    """The watched GPUs at one moment. None: NVML does not tell it here."""

    at: float
    """time.monotonic()."""
    used_mib: float | None
    """Memory in use by anyone, over all GPUs."""
    process_mib: float | None
    """Memory in use by the watched process; None also where its pid is hidden (containers)."""
    utilisation: float | None
    """Per cent, of the busiest GPU."""
    sm_clock_mhz: float | None
    power_w: float | None
    """Sum over all GPUs."""
    temperature_c: float | None
    throttle: int
    """Bits of all GPUs that are not idle."""


def decode_throttle(bits: int) -> list[str]:
    """Names of the reasons why clocks are below their maximum; idleness is none."""
    known = [name for bit, name in THROTTLE_REASONS.items() if bits & bit and name != "gpu_idle"]
    rest = bits & ~sum(THROTTLE_REASONS)
    return known + ([f"unknown_{rest:#x}"] if rest else [])


class Nvml:
    """An open NVML. Close it when done.

    Raises NvmlUnavailable where pynvml or the driver is missing.
    """

    def __init__(self, module: ModuleType | None = None) -> None:
        try:
            self._nvml: Any = module or importlib.import_module("pynvml")
        except ImportError as error:
            raise NvmlUnavailable(f"no pynvml: {error}") from error
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML does not start: {error}") from error
        self.lost: dict[int, str] = {}
        """GPUs of this host that NVML counts and does not give, by index: why. The others are not
        to suffer."""
        self._devices = self._open_devices()

    def _open_devices(self) -> list[Any]:
        """By index; None: it is not given."""
        try:
            return [self._open(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        except self._nvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML lists no GPUs: {error}") from error

    def _open(self, index: int) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as error:
            # NVML counts all of the machine's: one that was not given to this container is none of
            # this host's. Of a unit of the machine itself the PCI bus tells.
            if getattr(error, "value", None) != NO_PERMISSION:
                self.lost[index] = str(error)
            return None

    def close(self) -> None:
        self._ask(self._nvml.nvmlShutdown)

    def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """The answer; None where this GPU, driver or permission does not give one."""
        try:
            return function(*args)
        except self._nvml.NVMLError:
            return None

    def driver(self) -> str:
        return _text(self._ask(self._nvml.nvmlSystemGetDriverVersion))

    def cuda(self) -> str:
        """The newest CUDA version of the driver, as "13.0"."""
        version = self._ask(self._nvml.nvmlSystemGetCudaDriverVersion_v2)
        return f"{version // 1000}.{version % 1000 // 10}" if version else ""

    def gpus(self) -> list[Gpu]:
        result = []
        for index, device in enumerate(self._devices):
            if device is None:
                continue
            capability = self._ask(self._nvml.nvmlDeviceGetCudaComputeCapability, device)
            memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, device)
            result.append(
                Gpu(
                    index=index,
                    name=_text(self._ask(self._nvml.nvmlDeviceGetName, device)),
                    uuid=_text(self._ask(self._nvml.nvmlDeviceGetUUID, device)),
                    bus_id=_bus_id(self._ask(self._nvml.nvmlDeviceGetPciInfo, device)),
                    compute_capability=".".join(map(str, capability)) if capability else "",
                    vram_mib=memory.total // MIB if memory else 0,
                )
            )
        return result

    def _of(self, gpus: Sequence[Gpu]) -> list[Any]:
        """Handles of these GPUs; of all where none is named."""
        opened = [device for device in self._devices if device is not None]
        return [self._devices[gpu.index] for gpu in gpus] or opened

    def compute_mode(self, gpu: Gpu) -> str:
        """Which processes may use it, as nvidia-smi writes it; "": any, or not told."""
        modes = {1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
        device = self._devices[gpu.index]
        return modes.get(self._ask(self._nvml.nvmlDeviceGetComputeMode, device) or 0, "")

    def processes(self, gpu: Gpu) -> list[int]:
        """Pids that compute on it, as far as they are shown here."""
        device = self._devices[gpu.index]
        found = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, device)
        return [process.pid for process in found or []]

    def divided(self, gpu: Gpu) -> bool:
        """MIG is on: what computes is an instance of it."""
        mode = self._ask(self._nvml.nvmlDeviceGetMigMode, self._devices[gpu.index])
        return bool(mode and mode[0])

    def free_mib(self, gpus: Sequence[Gpu] = ()) -> float:
        """Free memory of these GPUs together, or of all."""
        memory = [self._ask(self._nvml.nvmlDeviceGetMemoryInfo, d) for d in self._of(gpus)]
        return sum(float(m.free) for m in memory if m) / MIB

    def sample(self, pid: int, gpus: Sequence[Gpu] = ()) -> Sample:
        """Read these GPUs, or all, with the memory of process `pid`."""
        nvml = self._nvml
        used: list[float] = []
        own: list[float] = []
        values: dict[str, list[float]] = {"util": [], "clock": [], "power": [], "temp": []}
        throttle = 0
        for device in self._of(gpus):
            memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, device)
            if memory:
                used.append(memory.used / MIB)
            for process in self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, device) or []:
                if process.pid == pid and process.usedGpuMemory is not None:
                    own.append(process.usedGpuMemory / MIB)
            rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, device)
            _add(values["util"], rates.gpu if rates else None)
            _add(
                values["clock"], self._ask(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM)
            )
            _add(values["power"], self._ask(nvml.nvmlDeviceGetPowerUsage, device))
            _add(
                values["temp"],
                self._ask(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
            )
            # The name of this call before driver 535; it answers the same in later ones.
            bits = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device) or 0
            throttle |= 0 if bits & 0x1 else bits
        return Sample(
            at=time.monotonic(),
            used_mib=sum(used) if used else None,
            process_mib=sum(own) if own else None,
            utilisation=max(values["util"], default=None),
            sm_clock_mhz=max(values["clock"], default=None),
            power_w=sum(values["power"]) / 1000 if values["power"] else None,
            temperature_c=max(values["temp"], default=None),
            throttle=throttle,
        )


@dataclass
class Recording:
    """Samples of one child process, and one more at each mark that the child set."""

    samples: list[Sample] = field(default_factory=list)
    marks: dict[str, Sample] = field(default_factory=dict)

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
        self.recording = Recording()
        self._nvml, self._pid, self._gpus, self._interval_s = nvml, pid, gpus, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    def start(self) -> None:
        self.recording.samples.append(self._sample())
        self._thread.start()

    def mark(self, name: str) -> None:
        """Read now, and keep it under `name`. The child waits meanwhile."""
        self.recording.marks[name] = self._sample()

    def stop(self) -> Recording:
        self._stop.set()
        self._thread.join()
        return self.recording

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.recording.samples.append(self._sample())

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


def _text(value: Any) -> str:
    """What NVML says, without what a terminal would obey."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
    return "".join(c for c in text if c.isprintable())


def _bus_id(pci: Any) -> str:
    """NVML writes the domain with eight digits, CUDA and Linux with four."""
    domain, _, place = _text(pci.busId if pci else "").lower().partition(":")
    return f"{domain[-4:]}:{place}" if place else ""


def _add(values: list[float], value: float | None) -> None:
    if value is not None:
        values.append(float(value))
