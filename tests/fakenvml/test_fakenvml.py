"""The fake itself: faults after some calls, in this process and in another."""

from __future__ import annotations

import os
import subprocess
import sys

import pynvml
import pytest

from tests.fakenvml import MIB, Fake, fake_nvml, fake_nvml_library

__all__ = ["fake_nvml", "fake_nvml_library"]


@pytest.fixture
def device(fake_nvml: Fake) -> object:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def test_an_answer_counts_from_its_call_on(fake_nvml: Fake, device: object) -> None:
    fake_nvml.say("nvmlDeviceGetPowerUsage", value=1, after=1)
    fake_nvml.say("nvmlDeviceGetPowerUsage", value=2, after=3)
    told = [pynvml.nvmlDeviceGetPowerUsage(device) for _ in range(5)]
    assert told == [81240, 1, 1, 2, 2]


def test_a_whole_card_is_lost_after_some_calls(fake_nvml: Fake, device: object) -> None:
    fake_nvml.fail("*", code=pynvml.NVML_ERROR_GPU_IS_LOST, after=3)
    assert [pynvml.nvmlDeviceGetName(device) for _ in range(3)] == ["NVIDIA H200"] * 3
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetName(device)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetFieldValues(device, [230])


def test_what_is_said_is_heard_at_the_next_call(fake_nvml: Fake, device: object) -> None:
    fake_nvml.memory(1000)
    told = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
    assert told.used == 1000 * MIB
    assert told.used + told.free + told.reserved == told.total
    fake_nvml.fail("nvmlDeviceGetMemoryInfo_v2", code=pynvml.NVML_ERROR_NO_PERMISSION)
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)


def test_the_newest_child_is_a_pid(fake_nvml: Fake, device: object) -> None:
    fake_nvml.processes("Compute", ("child", 5), (7, 6))
    with subprocess.Popen(["sleep", "60"]) as child:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
        child.kill()
    assert [(one.pid, one.usedGpuMemory) for one in found] == [(child.pid, 5 * MIB), (7, 6 * MIB)]


PIDS_BEGIN_AGAIN = """
import pynvml, subprocess, sys
from pathlib import Path
children = []
for last in ("20000", "1000"):
    try:
        Path("/proc/sys/kernel/ns_last_pid").write_text(last)
    except OSError as error:
        sys.exit(f"no pid can be chosen: {error}")
    children.append(subprocess.Popen(["sleep", "60"]))
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
print(*(one.pid for one in children))
print(*(one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device)))
"""
IN_OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose pids")
def test_the_newest_child_may_have_a_lower_pid(fake_nvml: Fake) -> None:
    fake_nvml.processes("Compute", ("child", 5))
    done = subprocess.run(
        [*IN_OWN_PIDS, sys.executable, "-c", PIDS_BEGIN_AGAIN],
        capture_output=True,
        text=True,
        env=os.environ | fake_nvml.env,
        timeout=60,
        check=False,
    )
    if "no pid can be chosen" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    children, newest = (line.split() for line in done.stdout.splitlines())
    assert int(children[0]) > int(children[1])
    assert newest == [children[1]]


ASK = """
import pynvml, sys
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(1)
print(pynvml.nvmlSystemGetDriverVersion(), flush=True)
pynvml.nvmlDeviceGetPowerUsage(device)
"""


def test_another_process_sees_it_and_a_call_can_hang(fake_nvml: Fake) -> None:
    fake_nvml.devices(2)
    fake_nvml.hang("nvmlDeviceGetPowerUsage", device=1)
    argv = [sys.executable, "-c", ASK]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=os.environ | fake_nvml.env
    ) as child:
        assert child.stdout and child.stdout.readline().strip() == "580.159.04"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        child.kill()
