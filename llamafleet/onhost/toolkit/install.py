"""The toolkit job: install a CUDA Toolkit by one method, and prove that it compiles and links.

Wheels and NVIDIA's runfile need no root and get a folder of their own, which has its name only once
it is proven. Packages go where the package manager puts them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamafleet.onhost.build import environment
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import packages as toolkit_packages
from llamafleet.onhost.toolkit import runfile as toolkit_runfile
from llamafleet.onhost.toolkit import wheels as toolkit_wheels
from llamafleet.protocol.job import (
    CHECK,
    Manager,
    PackagesConfig,
    RunfileConfig,
    ToolkitConfig,
    ToolkitProduct,
    WheelsConfig,
)

PACKAGES: dict[Manager, Callable[[Job, PackagesConfig, dict[str, str]], ToolkitProduct]] = {
    "apt": toolkit_packages.apt,
    "dnf": toolkit_packages.dnf,
}

PROBE = """\
#include <cublas_v2.h>
#include <cuda.h>
__global__ void twice(float *x) { x[threadIdx.x] *= 2.0f; }
int main() {
    cublasHandle_t handle;
    float *x = nullptr;
    twice<<<1, 32>>>(x);
    return cuInit(0) == CUDA_SUCCESS && cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS ? 0 : 1;
}
"""


def done(config: ToolkitConfig) -> bool:
    return Path(config.root, "bin", "nvcc").exists()


def work(job: Job, config: ToolkitConfig) -> ToolkitProduct:
    """Install and prove."""
    tmp = job.folder / "tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        if isinstance(config, PackagesConfig):
            product = PACKAGES[config.manager](
                job, config, environment(config, {}, Path("/usr"), tmp)
            )
            return replace(product, nvcc=check(job, config, Path(config.root), tmp))
        return _in_folder(job, config, tmp)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _in_folder(job: Job, config: ToolkitConfig, tmp: Path) -> ToolkitProduct:
    """By a method that fills a folder of our own."""
    root = Path(config.root)
    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        product = _fill(job, config, partial, environment(config, {}, partial, tmp))
        product = replace(product, nvcc=check(job, config, partial, tmp))
        job.phase("activate")
        if root.exists():  # without a stamp of success: what an older run left
            shutil.rmtree(root)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return product


def _fill(job: Job, config: ToolkitConfig, root: Path, env: dict[str, str]) -> ToolkitProduct:
    if isinstance(config, WheelsConfig):
        return toolkit_wheels.install(job, config, root, env)
    if isinstance(config, RunfileConfig):
        return toolkit_runfile.install(job, config, root, env)
    raise TypeError(f"no method for {type(config).__name__}")


def check(job: Job, config: ToolkitConfig, root: Path, tmp: Path) -> str:
    """The version, if it is the one that was asked for, and compiles and links.

    Raises JobFailed.
    """
    job.phase(CHECK)
    version = nvcc_release(root)
    if version != config.cuda:
        raise JobFailed(f"nvcc --version: found {version!r}; expected {config.cuda}")
    probe(job, root, config.cxx, environment(config, {}, root, tmp), tmp)
    return version


def nvcc_release(root: Path) -> str:
    """major.minor that nvcc tells; "" where it does not run or tells none."""
    try:
        answer = subprocess.run(
            [str(root / "bin" / "nvcc"), "--version"],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    except OSError:
        return ""
    found = re.search(r"release (\d+\.\d+)", answer.stdout)
    return found[1] if found else ""


def probe(job: Job, root: Path, cxx: str, env: dict[str, str], tmp: Path) -> None:
    """Compile a kernel for every architecture of this nvcc and link it with cuBLAS and the driver.

    Raises JobFailed; the compiler's words are in the job's log.
    """
    source = tmp / "probe.cu"
    source.write_text(PROBE, encoding="utf-8")
    nvcc = [str(root / "bin" / "nvcc"), "-ccbin", cxx, "-arch=all-major"]
    job.command([*nvcc, "-o", str(tmp / "probe"), str(source), "-lcublas", "-lcuda"], env=env)
