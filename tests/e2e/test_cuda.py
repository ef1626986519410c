"""The CUDA side as far as it goes without a GPU, by the real command on a booted host.

nvidia-smi is a script that answers as an RTX 4090's with driver 580 does; all else is real: the
toolkit's wheels, nvcc, llama-cpp-python's tree. The build is stopped after a few units, by
uninstalling it while it runs.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from llamafleet.onhost import fatbin
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.fake_driver import plant_nvidia_smi
from tests.e2e.runs import pyinfra, start, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-b"
UNITS = 3


def test_a_driver_that_no_installable_toolkit_fits_is_refused_with_the_method(
    booted: BootedHost, folder: Path
) -> None:
    plant_nvidia_smi(booted, "535.183.01", "12.2")
    # A compiler first: without one no toolkit can be judged.
    booted.run("apt-get update -qq && apt-get install -y -qq --no-install-recommends g++")
    run = pyinfra(folder, "-y", write_inventory(folder, {HOST: booted.data()}), "deploy.py")
    assert run.returncode != 0
    assert "toolkit: found" in run.output and "apt" in run.output, run.output
    assert booted.run("test -e /opt/llamafleet").returncode != 0


def test_the_toolkit_of_the_plan_compiles_llama_cpp_for_sm_89(
    booted: BootedHost, folder: Path
) -> None:
    plant_nvidia_smi(booted, "580.95.05", "13.0")
    fleet = write_inventory(folder, {HOST: booted.data()})
    run = start(folder, fleet)
    try:
        objects = _wait_for_units(booted, run)
    finally:
        run.kill()
        output = run.communicate()[0]
    assert "install CUDA 13.0" in output, output
    assert "-DCMAKE_CUDA_ARCHITECTURES=89" in output
    for path in objects:
        assert {str(code) for code in fatbin.read(path).codes} == {"sm_89", "compute_89"}, path
    toolkit = booted.tree / "opt/llamafleet/toolkits/cuda-13.0"
    for part in ("bin/nvcc", "lib64/libcublas.so", "include/cublas_v2.h", "nvvm/bin/cicc"):
        assert (toolkit / part).exists(), part


def _wait_for_units(host: BootedHost, run: subprocess.Popen[str], limit: float = 900) -> list[Path]:
    """Finished object files of the CUDA backend."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and run.poll() is None:
        found = list((host.tree / "var/lib/llamafleet/build").glob("*/cmake/**/*.cu.o"))
        # nvcc moves nothing into place: the newest may be half written.
        if len(found) > UNITS:
            return sorted(found, key=lambda p: p.stat().st_mtime)[:UNITS]
        time.sleep(3)
    run.kill()
    raise AssertionError(f"no {UNITS} CUDA units were compiled:\n{run.communicate()[0]}")


def test_uninstall_stops_a_build_that_runs(booted: BootedHost, folder: Path) -> None:
    assert "nvcc" in booted.run("ps -eo args || cat /proc/[0-9]*/cmdline").stdout
    fleet = write_inventory(folder, {HOST: booted.data()})
    run = pyinfra(folder, "-y", fleet, "uninstall.py")
    assert run.returncode == 0, run.output
    left = booted.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert "llamafleet" not in left.replace("llamafleet' ", "") and "cicc" not in left, left
    assert booted.run("ls -d /opt/llamafleet /var/lib/llamafleet /etc/llamafleet").stdout == ""
    assert booted.run("systemctl list-unit-files 'llamafleet*' --no-legend").stdout == ""
