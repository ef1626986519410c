"""Why CUDA does not show a GPU: each cause that can be seen, and what to do about it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.onhost.verify import hidden
from llamafleet.onhost.verify.gpu import Nvml
from tests.onhost.test_cards import Bus, bus
from tests.onhost.verify.test_gpu import Recorded

__all__ = ["bus"]


class Modes(Recorded):
    """NVML of two GPUs in these modes."""

    def __init__(
        self, compute: int = 0, mig: int | None = None, pids: tuple[int, ...] = ()
    ) -> None:
        super().__init__(count=2)
        self.compute, self.mig, self.pids = compute, mig, pids

    def nvmlDeviceGetComputeMode(self, device: int) -> int:
        return self.compute if device == 1 else 0

    def nvmlDeviceGetMigMode(self, device: int) -> list[int]:
        if self.mig is None:
            raise self.NVMLError(3)
        return [self.mig, self.mig]

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in self.pids]


def cause(variable: str | None = None, **modes: Any) -> tuple[str, str] | None:
    nvml = Nvml(Modes(**modes))
    return hidden.cause(nvml.gpus()[1], variable, nvml)


@pytest.fixture(autouse=True)
def _machine(bus: Bus) -> None:
    bus.machine()


def test_none_that_can_be_seen() -> None:
    assert cause() is None and cause(compute=0, mig=0, pids=(7,)) is None


@pytest.mark.parametrize("value", ["", "0", "GPU-0", "GPU-0,MIG-1", "-1", "NoDevFiles"])
def test_a_variable_that_does_not_name_it(value: str) -> None:
    assert cause(value, compute=2) == (
        f"CUDA_VISIBLE_DEVICES={value!r}",
        "unset CUDA_VISIBLE_DEVICES",
    )


@pytest.mark.parametrize("value", ["GPU-1", "GPU-0,GPU-1", "GPU-"])
def test_a_variable_that_names_it_is_not_the_cause(value: str) -> None:
    assert cause(value) is None


def test_a_device_file_that_a_cgroup_forbids(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.card("0000:02:00.0", 5)
    bus.node(5)

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    found = cause(compute=2)
    assert found and found[0] == "/dev/nvidia5 can't be opened: Operation not permitted"
    assert "systemctl show -p DevicePolicy -p DeviceAllow llamafleet-verify.service" in found[1]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError(13, "Permission denied"), "ls -l /dev/nvidia5"),
        (FileNotFoundError(2, "No such file or directory"), "sudo nvidia-modprobe -c 5"),
        (OSError(5, "Input/output error"), "ls -l /dev/nvidia5"),
    ],
)
def test_a_device_file_that_can_not_be_opened(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, error: OSError, advice: str
) -> None:
    bus.card("0000:02:00.0", 5)

    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    found = cause()
    assert found and found[0].startswith("/dev/nvidia5 can't be opened: ")
    assert found[1].startswith(advice)


def test_a_mode_that_takes_no_process() -> None:
    found = cause(compute=2)
    assert found == (
        "its compute mode is Prohibited: it takes no process",
        "sudo nvidia-smi -i 0000:02:00.0 -c DEFAULT",
    )


def test_a_mode_of_one_process_that_another_one_has() -> None:
    found = cause(compute=3, pids=(77, 78))
    assert found and found[0] == "its compute mode is Exclusive_Process, and pid 77, 78 has it"
    found = cause(compute=3)
    assert found and found[0].endswith("and another process may have it")


def test_mig_without_instances() -> None:
    found = cause(mig=1)
    assert found and "MIG is on" in found[0] and found[1].endswith("-mig 0")


def test_without_nvml_the_file_still_tells(tmp_path: Path) -> None:
    assert hidden.cause(Nvml(Modes()).gpus()[1], None, None) is None
