"""The GPUs as the driver's management library (NVML) shows them, from outside the process.

pynvml (package nvidia-ml-py) is imported when it is used: a host without it, or without a driver,
gets a finding and no exception.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from llamafleet.onhost.verify import owners
from llamafleet.onhost.verify.answering import Answering
from llamafleet.protocol.throttle import IDLE

MIB = 1 << 20
NO_PERMISSION = 4
"""NVML_ERROR_NO_PERMISSION of nvml.h. nvmlDeviceGetCount_v2 counts such GPUs too, says its text."""
LOST = frozenset({15, 16})
"""NVML_ERROR_GPU_IS_LOST and NVML_ERROR_RESET_REQUIRED: whatever is asked then, the card is ill."""

WIDE = frozenset({2, 3})
"""nvmlValueType_t of 64 bits without a sign."""
MEMORY_V2 = 0x02000028
"""nvmlMemory_v2 of nvml.h: the form that tells the driver's own reserve from what is in use."""

Ask = Callable[..., Any]
"""A question to one GPU: a function's name as pynvml has it, and its arguments after the device.
The answer is None where this GPU, driver, pynvml or permission gives none."""


class NvmlUnavailable(Exception):
    """NVML can't be used; the text says why."""


class NvmlHangs(NvmlUnavailable):
    """It gave no answer: some GPU is ill."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of the host."""

    index: int
    """NVML's own; of a MIG device one beyond those."""
    name: str
    uuid: str
    bus_id: str
    """As 0000:01:00.0, in lower case; "": not told."""
    compute_capability: str
    vram_mib: int
    parent: str = ""
    """Of a MIG device: the UUID of the GPU that is divided."""

    def __str__(self) -> str:
        return f"{self.name}, {self.compute_capability}"

    @property
    def identity(self) -> str:
        """As a verification's inputs name it."""
        return f"{self.name} {self.uuid}"


COMPUTE, GRAPHICS, MPS = "compute", "graphics", "MPS"
PROCESS_LISTS = {
    COMPUTE: "nvmlDeviceGetComputeRunningProcesses",
    GRAPHICS: "nvmlDeviceGetGraphicsRunningProcesses",
    MPS: "nvmlDeviceGetMPSComputeRunningProcesses",
}
POWER_LIMITS = ("nvmlDeviceGetPowerManagementLimit", "nvmlDeviceGetEnforcedPowerLimit")
NVML_CLOCK_MEM = 2
MOST_CARDS, MOST_INSTANCES = 1000, 64


@dataclass(frozen=True)
class _Device:
    """Two of NVML's handles."""

    handle: Any
    card: Any
    """The same, or of a MIG device the GPU that is divided."""


@dataclass(frozen=True)
class OnGpu:
    """A process in one of NVML's lists."""

    pid: int
    kind: str
    """Of PROCESS_LISTS."""
    memory_mib: float | None
    user: str = ""
    command: str = ""
    ours: bool = False
    """Of this verification."""


@dataclass(frozen=True)
class Moment:
    """One GPU at one moment. None: NVML does not tell it here."""

    processes: tuple[OnGpu, ...] | None = None
    total_used_mib: float | None = None
    """Memory that can't be had, the driver's own reserve among it."""
    used_mib: float | None = None
    """Memory in use by processes; with a driver before 510 the reserve as well."""
    utilisation: float | None = None
    """Per cent; a MIG device has none."""
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    """The lower one of what is set and what is enforced."""
    temperature_c: float | None = None
    throttle: int | None = None
    """Bits of protocol.throttle; 0 while the GPU is idle."""
    pcie_generation: int | None = None
    pcie_width: int | None = None


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
    moments: tuple[Moment, ...] = ()
    """Each of these GPUs by itself."""


class Nvml:
    """An open NVML. Close it when done.

    Raises NvmlUnavailable where pynvml or the driver is missing.
    """

    def __init__(self, module: ModuleType | None = None, answer_s: float | None = None) -> None:
        try:
            self._nvml: Any = Answering(module or importlib.import_module("pynvml"), answer_s)
        except ImportError as error:
            raise NvmlUnavailable(f"no pynvml: {error}") from error
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            kind = NvmlHangs if self._nvml.hung else NvmlUnavailable
            raise kind(f"NVML does not start: {error}") from error
        self.lost: dict[int, str] = {}
        """GPUs of this host that NVML counts and does not give, by index: why. The others are not
        to suffer."""
        self._devices = self._open_devices()

    def _open_devices(self) -> dict[int, _Device]:
        """GPUs by NVML's index; in place of each divided one its MIG devices."""
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML lists no GPUs: {error}") from error
        devices = {}
        for index in range(count):
            card = self._open(index)
            if card is None:
                continue
            instances = self._instances(card)
            for number, handle in enumerate(instances):
                # Beyond any index of a card.
                devices[MOST_CARDS * (index + 1) + number] = _Device(handle, card)
            if not instances:
                devices[index] = _Device(card, card)
        return devices

    def _open(self, index: int) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as error:
            # NVML counts all of the machine's: one that was not given to this container is none of
            # this host's. Of a unit of the machine itself the PCI bus tells.
            if getattr(error, "value", None) != NO_PERMISSION:
                self.lost[index] = str(error)
            return None

    def _instances(self, card: Any) -> list[Any]:
        """MIG devices of a card; their numbers may have gaps."""
        ask = self._of_handle(card)
        if not self._divided(card):
            return []
        most = min(ask("nvmlDeviceGetMaxMigDeviceCount") or 0, MOST_INSTANCES)
        found = (ask("nvmlDeviceGetMigDeviceHandleByIndex", index) for index in range(most))
        return [handle for handle in found if handle is not None]

    def _divided(self, card: Any) -> bool:
        mode = self._call("nvmlDeviceGetMigMode", card)
        return bool(mode and mode[0])

    def close(self) -> None:
        self._call("nvmlShutdown")
        self._nvml.done()

    def _call(self, name: str, *args: Any) -> Any:
        """The answer; None where this GPU, driver, pynvml or permission does not give one."""
        function = getattr(self._nvml, name, None)
        if function is None:
            return None
        try:
            return function(*args)
        except self._nvml.NVMLError:
            return None
        except Exception as error:
            # pynvml's word for a driver that lacks the newest form of a function is no NVMLError.
            if type(error).__name__ == "NVMLLibraryMismatchError":
                return None
            raise

    def _of_handle(self, handle: Any) -> Ask:
        return lambda name, *args: self._call(name, handle, *args)

    def asker(self, gpu: Gpu) -> Ask:
        """For questions to this GPU, or MIG device."""
        return self._of_handle(self._devices[gpu.index].handle)

    def card_asker(self, gpu: Gpu) -> Ask:
        """For questions to the card itself: clocks, limits and health are a whole card's."""
        return self._of_handle(self._devices[gpu.index].card)

    def fields(self, gpu: Gpu, names: Mapping[str, str]) -> dict[str, int]:
        """Whole numbers of the card's fields, by the key that stands for pynvml's name; those that
        it gives."""
        numbers = {key: getattr(self._nvml, name, None) for key, name in names.items()}
        asked = {key: number for key, number in numbers.items() if number is not None}
        told = self.card_asker(gpu)("nvmlDeviceGetFieldValues", list(asked.values())) or ()
        return {
            key: _whole(one) for key, one in zip(asked, told, strict=False) if one.nvmlReturn == 0
        }

    def why_silent(self, gpu: Gpu) -> str:
        """Why NVML does not answer for this card; "": it does.

        It keeps a UUID that it has read once: also asked are figures that change.
        """
        nvml, card = self._nvml, self._devices[gpu.index].card
        if nvml.hung:
            return self._hang()
        try:
            nvml.nvmlDeviceGetUUID(card)
        except nvml.NVMLError as error:
            return _text(str(error)) or "an unknown error"
        asked = (
            ("nvmlDeviceGetMemoryInfo",),
            ("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        )
        for name, *more in asked:
            try:
                getattr(nvml, name)(card, *more)
            except nvml.NVMLError as error:
                if getattr(error, "value", None) in LOST:
                    return _text(str(error))
        return ""

    def _hang(self) -> str:
        """With the GPU that was asked about when NVML answered no more."""
        about = self._nvml.about
        found = (n for n, d in self._devices.items() if about is d.handle or about is d.card)
        culprit = next(found, None)
        return f"{self._nvml.why()}" + (
            f", asked about GPU {culprit}" if culprit is not None else ""
        )

    def driver(self) -> str:
        return _text(self._call("nvmlSystemGetDriverVersion"))

    def cuda(self) -> str:
        """The newest CUDA version of the driver, as "13.0"."""
        version = self._call("nvmlSystemGetCudaDriverVersion_v2")
        return f"{version // 1000}.{version % 1000 // 10}" if version else ""

    def gpus(self) -> list[Gpu]:
        """GPUs, and in place of each divided one its MIG devices."""
        return [self._gpu(index, device) for index, device in self._devices.items()]

    def _gpu(self, index: int, device: _Device) -> Gpu:
        own, card = self._of_handle(device.handle), self._of_handle(device.card)
        capability = card("nvmlDeviceGetCudaComputeCapability")
        memory = own("nvmlDeviceGetMemoryInfo")
        return Gpu(
            index=index,
            name=_text(own("nvmlDeviceGetName") or card("nvmlDeviceGetName")),
            uuid=_text(own("nvmlDeviceGetUUID")),
            bus_id=_bus_id(card("nvmlDeviceGetPciInfo")),
            compute_capability=".".join(map(str, capability)) if capability else "",
            vram_mib=memory.total // MIB if memory else 0,
            parent=_text(card("nvmlDeviceGetUUID")) if device.handle is not device.card else "",
        )

    def _of(self, gpus: Sequence[Gpu]) -> list[_Device]:
        """These GPUs; all where none is named."""
        return [self._devices[gpu.index] for gpu in gpus] or list(self._devices.values())

    def compute_mode(self, gpu: Gpu) -> str:
        """Which processes may use it, as nvidia-smi writes it; "": any, or not told."""
        modes = {1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
        return modes.get(self.card_asker(gpu)("nvmlDeviceGetComputeMode") or 0, "")

    def processes(self, gpu: Gpu) -> list[int]:
        """Pids that compute on it, as far as they are shown here."""
        found = self.asker(gpu)("nvmlDeviceGetComputeRunningProcesses")
        return [process.pid for process in found or []]

    def divided(self, gpu: Gpu) -> bool:
        """MIG is on: what computes is an instance of it."""
        return self._divided(self._devices[gpu.index].card)

    def free_mib(self, gpus: Sequence[Gpu] = ()) -> float:
        """Free memory of these GPUs together, or of all."""
        memory = [self._call("nvmlDeviceGetMemoryInfo", d.handle) for d in self._of(gpus)]
        return sum(float(m.free) for m in memory if m) / MIB

    def sample(self, pid: int, gpus: Sequence[Gpu] = ()) -> Sample:
        """Read these GPUs, or all, with the memory of process `pid`."""
        moments = tuple(self._moment(device) for device in self._of(gpus))

        def told(name: str) -> list[float]:
            return [v for m in moments if (v := getattr(m, name)) is not None]

        used, power = told("total_used_mib"), told("power_w")
        own = [
            process.memory_mib
            for moment in moments
            for process in moment.processes or ()
            if process.pid == pid and process.kind == COMPUTE and process.memory_mib is not None
        ]
        throttle = 0
        for moment in moments:
            throttle |= moment.throttle or 0
        return Sample(
            at=time.monotonic(),
            used_mib=sum(used) if used else None,
            process_mib=sum(own) if own else None,
            utilisation=max(told("utilisation"), default=None),
            sm_clock_mhz=max(told("sm_clock_mhz"), default=None),
            power_w=sum(power) if power else None,
            temperature_c=max(told("temperature_c"), default=None),
            throttle=throttle,
            moments=moments,
        )

    def moment(self, gpu: Gpu) -> Moment:
        """One GPU now."""
        return self._moment(self._devices[gpu.index])

    def _moment(self, device: _Device) -> Moment:
        nvml, own = self._nvml, self._of_handle(device.handle)
        card = self._of_handle(device.card)
        memory, exact = own("nvmlDeviceGetMemoryInfo"), own("nvmlDeviceGetMemoryInfo", MEMORY_V2)
        rates, power = own("nvmlDeviceGetUtilizationRates"), card("nvmlDeviceGetPowerUsage")
        # The name of this call before driver 535; it answers the same in later ones.
        bits = card("nvmlDeviceGetCurrentClocksThrottleReasons")
        limits = [card(name) for name in POWER_LIMITS]
        return Moment(
            processes=self._processes(own),
            total_used_mib=memory.used / MIB if memory else None,
            used_mib=(exact or memory).used / MIB if exact or memory else None,
            utilisation=_number(rates and rates.gpu),
            sm_clock_mhz=_number(card("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)),
            memory_clock_mhz=_number(card("nvmlDeviceGetClockInfo", NVML_CLOCK_MEM)),
            power_w=power / 1000 if power is not None else None,
            power_limit_w=min((one / 1000 for one in limits if one), default=None),
            temperature_c=_number(card("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)),
            throttle=None if bits is None else 0 if bits & IDLE else bits,
            pcie_generation=card("nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_width=card("nvmlDeviceGetCurrPcieLinkWidth"),
        )

    def _processes(self, ask: Ask) -> tuple[OnGpu, ...] | None:
        """Of all kinds; None: NVML lists none of them here."""
        found: list[OnGpu] = []
        told = False
        for kind, name in PROCESS_LISTS.items():
            listed = ask(name)
            if listed is None:  # A driver before 510 has but the second form.
                listed = ask(f"{name}_v2")
            told = told or listed is not None
            for one in listed or ():
                used = None if one.usedGpuMemory is None else one.usedGpuMemory / MIB
                # Now: a process that has ended tells nobody whose it was.
                whose = owners.described(one.pid)
                found.append(OnGpu(one.pid, kind, used, *whose, ours=owners.ours(one.pid)))
        return tuple(found) if told else None


def _text(value: Any) -> str:
    """What NVML says, without what a terminal would obey."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
    return "".join(c for c in text if c.isprintable())


def _bus_id(pci: Any) -> str:
    """NVML writes the domain with eight digits, CUDA and Linux with four."""
    domain, _, place = _text(pci.busId if pci else "").lower().partition(":")
    return f"{domain[-4:]}:{place}" if place else ""


def _whole(field: Any) -> int:
    """A field's value: of 32 bits, unless its type says more."""
    wide = field.valueType in WIDE
    return int(field.value.ullVal if wide else field.value.uiVal)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
