"""GPU figures: from a recording of NVML's answers, and from a host without NVML."""

from __future__ import annotations

import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llamafleet.onhost.verify import sampling
from llamafleet.onhost.verify.checks import busy
from llamafleet.onhost.verify.gpu import MIB, Nvml, NvmlUnavailable, Sample
from llamafleet.onhost.verify.sampling import Recording, Sampler
from llamafleet.protocol.throttle import decode_throttle
from tests.fakenvml import Fake, fake_nvml, fake_nvml_library
from tests.fakenvml import uuid as card_uuid

__all__ = ["fake_nvml", "fake_nvml_library"]

PID = 4242


class NVMLError(Exception):
    pass


class Recorded(ModuleType):
    """NVML's answers, in pynvml's form, of a host with one RTX 4090; without a pid: with nothing at
    work."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, count: int = 1, pid: int | None = PID) -> None:
        super().__init__("recorded")
        self.count = count
        self.pid = pid
        self.used = 0 if pid is None else 1000
        self.reasons = 0x4
        self.utilisation = 0 if pid is None else 97

    def nvmlInit(self) -> None:
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlSystemGetDriverVersion(self) -> str:
        self._must_be_open()
        return "580.159.04"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        self._must_be_open()
        return 13000

    def _must_be_open(self) -> None:
        if not self.open:
            raise NVMLError(1)  # NVML_ERROR_UNINITIALIZED

    def nvmlDeviceGetName(self, device: int) -> str:
        return "NVIDIA GeForce RTX 4090"

    def nvmlDeviceGetUUID(self, device: int) -> bytes:
        return f"GPU-{device}".encode()

    def nvmlDeviceGetPciInfo(self, device: int) -> Any:
        return SimpleNamespace(busId=f"00000000:{device + 1:02X}:00.0".encode())

    def nvmlDeviceGetCudaComputeCapability(self, device: int) -> tuple[int, int]:
        return (8, 9)

    def nvmlDeviceGetMemoryInfo(self, device: int, version: int | None = None) -> Any:
        total = 24564 * MIB
        return SimpleNamespace(total=total, used=self.used * MIB, free=total - self.used * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:
        other = SimpleNamespace(pid=1, usedGpuMemory=600 * MIB)
        own = SimpleNamespace(pid=self.pid, usedGpuMemory=400 * MIB)
        return [] if self.pid is None else [other, own]

    def nvmlDeviceGetComputeMode(self, device: int) -> int:
        return 0

    def nvmlDeviceGetMigMode(self, device: int) -> list[int]:
        raise NVMLError(3)  # NVML_ERROR_NOT_SUPPORTED

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
        return SimpleNamespace(gpu=self.utilisation if device == 0 else 0)

    def nvmlDeviceGetClockInfo(self, device: int, kind: int) -> int:
        return 2520

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:
        return 380500

    def nvmlDeviceGetTemperature(self, device: int, kind: int) -> int:
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: int) -> int:
        return self.reasons


def test_what_the_driver_tells() -> None:
    nvml = Nvml(Recorded(count=2))
    assert (nvml.driver(), nvml.cuda()) == ("580.159.04", "13.0")
    first, second = nvml.gpus()
    assert (first.name, first.compute_capability) == ("NVIDIA GeForce RTX 4090", "8.9")
    assert (first.vram_mib, second.uuid, second.index) == (24564, "GPU-1", 1)


def test_a_sample_of_two_gpus() -> None:
    sample = Nvml(Recorded(count=2)).sample(PID)
    assert (sample.used_mib, sample.process_mib) == (2000, 800)
    assert (sample.utilisation, sample.power_w) == (97, 761)
    assert decode_throttle(sample.throttle) == ["sw_power_cap"]


def test_figures_that_a_gpu_does_not_give_are_none() -> None:
    module = Recorded()

    def refuse(*_: object) -> None:
        raise NVMLError("Not Supported")

    for name in ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"):
        setattr(module, name, refuse)
    nvml = Nvml(module)
    sample = nvml.sample(PID)
    assert sample.utilisation is None and sample.used_mib is None
    assert sample.power_w == 380.5
    assert nvml.gpus()[0].vram_mib == 0


def test_an_idle_gpu_does_not_throttle() -> None:
    module = Recorded()
    module.reasons = 0x1
    assert Nvml(module).sample(PID).throttle == 0
    assert decode_throttle(0x1 | 0x40 | 0x10000) == ["hw_thermal_slowdown", "unknown_0x10000"]


def test_a_host_without_nvml_is_a_finding() -> None:
    module = Recorded()

    def missing() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    setattr(module, "nvmlInit", missing)  # noqa: B010
    with pytest.raises(NvmlUnavailable, match="Shared Library Not Found"):
        Nvml(module)


def test_a_venv_without_pynvml_is_a_finding() -> None:
    code = (
        "import sys; sys.modules['pynvml'] = None\n"
        "from llamafleet.onhost.verify.gpu import Nvml, NvmlUnavailable\n"
        "try: Nvml()\n"
        "except NvmlUnavailable as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no pynvml" in said.stdout


def sample(at: float, used: float | None, own: float | None, util: float | None = 50) -> Sample:
    return Sample(at, used, own, util, 2000.0, 100.0, 60.0, 0)


def test_growth_is_the_process_own_where_its_pid_is_shown() -> None:
    recording = Recording([], {"a": sample(0, 1000, 400), "b": sample(1, 1500, 4400)})
    assert recording.growth_mib("a", "b") == 4000


def test_growth_is_of_all_where_the_pid_is_hidden() -> None:
    recording = Recording([], {"a": sample(0, 1000, None), "b": sample(1, 1500, None)})
    assert recording.growth_mib("a", "b") == 500
    assert recording.growth_mib("a", "c") is None
    blind = Recording([], {"a": sample(0, None, None), "b": sample(1, None, None)})
    assert blind.growth_mib("a", "b") is None


def test_what_came_before_is_no_utilisation() -> None:
    samples = [sample(at, 0, 0, util) for at, util in [(0.1, 99), (0.9, 80), (1.5, 0), (2.5, 0)]]
    recording = Recording(samples, {"a": sample(0, 0, 0), "b": sample(2, 0, 0)})
    assert sampling.busy_utilisation(recording, "a", "b", settle_s=1.0) == [0]
    assert sampling.busy_utilisation(recording, "a", "z", settle_s=1.0) == []


def test_summary_and_peak() -> None:
    recording = Recording([sample(0, 100, None, 10), sample(1, 700, None, 30)])
    told = sampling.summary(recording.samples)
    assert told is not None
    assert (told.utilisation_mean, told.utilisation_max) == (20, 30)
    assert recording.peak_mib() == 600
    assert sampling.summary([]) is None
    assert Recording().peak_mib() is None


def test_a_reading_that_breaks_off_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the thread died, and who came after that was not seen."""
    sampler = Sampler(Nvml(Recorded()), PID, interval_s=0.01)
    sampler.start()
    monkeypatch.setattr(Recorded, "nvmlDeviceGetUtilizationRates", lambda *_: 1 / 0)
    sampler._thread.join(5)
    with pytest.raises(ZeroDivisionError):
        sampler.stop()


def test_the_sampler_reads_while_a_child_works() -> None:
    sampler = Sampler(Nvml(Recorded()), PID, interval_s=0.01)
    sampler.start()
    end = time.monotonic() + 60
    while len(sampler.recording.samples) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    sampler.mark("now")
    recording = sampler.stop()
    assert len(recording.samples) >= 3
    assert recording.marks["now"].process_mib == 400
    count = len(recording.samples)
    time.sleep(0.05)
    assert len(recording.samples) == count


# -- divided GPUs, by a fake NVML ------------------------------------------------------------------

INSTANCES = ("MIG-11111111-0000-0000-0000-000000000000", "MIG-22222222-0000-0000-0000-000000000000")


@pytest.fixture
def divided(fake_nvml: Fake) -> Fake:
    """Two cards, the first of them divided; the numbers of its instances have a gap."""
    fake_nvml.devices(2)
    for number, uuid in zip((0, 3), INSTANCES, strict=True):
        fake_nvml.mig(0, number, uuid, "NVIDIA H200 MIG 1g.18gb", 16384)
    return fake_nvml


def test_instances_stand_in_place_of_a_divided_gpu(divided: Fake) -> None:
    nvml = Nvml()
    first, second, whole = nvml.gpus()
    assert (first.uuid, second.uuid) == INSTANCES
    assert whole.uuid == card_uuid(1) and whole.index == 1 and not whole.parent
    assert first.parent == second.parent == card_uuid(0)
    assert first.bus_id == "0000:01:00.0" and first.compute_capability == "9.0"
    assert (first.name, first.vram_mib) == ("NVIDIA H200 MIG 1g.18gb", 16384)
    assert len({gpu.index for gpu in (first, second, whole)}) == 3
    assert nvml.free_mib((first,)) == 16384 - 12


def test_a_divided_gpu_without_instances_is_there_itself(fake_nvml: Fake) -> None:
    fake_nvml.say("nvmlDeviceGetMigMode", value=(1, 1))
    fake_nvml.say("nvmlDeviceGetMaxMigDeviceCount", value=7)
    nvml = Nvml()
    (gpu,) = nvml.gpus()
    assert gpu.uuid == card_uuid(0) and nvml.divided(gpu)


def test_an_instance_is_read_by_itself_and_its_card_for_the_rest(divided: Fake) -> None:
    divided.processes("Compute", (77, 900), device="0.0")
    nvml = Nvml()
    first, second, _ = nvml.gpus()
    moment = nvml.moment(first)
    assert [(one.pid, one.memory_mib) for one in moment.processes or ()] == [(77, 900)]
    assert nvml.moment(second).processes == ()
    assert (moment.utilisation, moment.memory_clock_mhz, moment.used_mib) == (None, 3201, 12)


@pytest.mark.parametrize(
    ("tokens", "held", "status"), [(80, 900, "pass"), (0, 900, "fail"), (80, 0, "fail")]
)
def test_an_instance_has_no_utilisation_and_is_busy_by_what_it_made(
    tokens: int, held: float, status: str
) -> None:
    check = busy.judge_busy((), busy.MigWork(tokens, held, 1980.0))
    assert check.status == status
    assert check.found == f"{tokens} tokens, {held:.0f} MiB held, SM clock of the card 1980 MHz"
    assert busy.judge_busy((), None).status == "fail", "of a whole GPU this is red"


def test_a_card_that_is_lost_while_it_is_read_ends_nothing(fake_nvml: Fake) -> None:
    nvml = Nvml()
    (gpu,) = nvml.gpus()
    fake_nvml.fail("*", code=15)
    assert nvml.moment(gpu).processes is None
    assert nvml.why_silent(gpu) == "GPU is lost"
