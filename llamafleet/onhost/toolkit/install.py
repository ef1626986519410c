"""The toolkit job: install a CUDA Toolkit by one method, and prove that it compiles and links.

Wheels and NVIDIA's runfile need no root and get a folder of their own, which has its name only once
it is proven. Packages go where the package manager puts them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from llamafleet.onhost.build import environment
from llamafleet.onhost.job import Data, Job, JobFailed
from llamafleet.onhost.toolkit import packages as toolkit_packages
from llamafleet.onhost.toolkit import runfile as toolkit_runfile
from llamafleet.onhost.toolkit import wheels as toolkit_wheels

FOLDER = {"wheels": toolkit_wheels.install, "runfile": toolkit_runfile.install}
"""Methods that fill a folder of our own."""

PACKAGES = {"apt": toolkit_packages.apt, "dnf": toolkit_packages.dnf}
"""Package managers, by the setting `manager` of the methods apt, dnf and distro."""

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


def done(config: Data) -> bool:
    return Path(config["root"], "bin", "nvcc").exists()


def work(job: Job) -> Data:
    """Install and prove; what the stamp holds of it."""
    tmp = job.folder / "tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        if job.config["method"] in FOLDER:
            return _in_folder(job, tmp)
        product = PACKAGES[job.config["manager"]](job, _environment(Path("/usr"), tmp))
        return product | check(job, Path(job.config["root"]), tmp)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _in_folder(job: Job, tmp: Path) -> Data:
    root = Path(job.config["root"])
    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        product = FOLDER[job.config["method"]](job, partial, _environment(partial, tmp))
        product |= check(job, partial, tmp)
        job.phase("activate")
        if root.exists():  # without a stamp of success: what an older run left
            shutil.rmtree(root)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return product


def _environment(root: Path, tmp: Path) -> dict[str, str]:
    return environment({"environment": {}, "cmake_args": [], "jobs": 1}, root, tmp)


def check(job: Job, root: Path, tmp: Path) -> Data:
    """Is it the version that was asked for, and does it compile and link. Raises JobFailed."""
    job.phase("check")
    version = nvcc_release(root)
    if version != job.config["cuda"]:
        raise JobFailed(f"nvcc --version: found {version!r}; expected {job.config['cuda']}")
    probe(job, root, job.config["cxx"], _environment(root, tmp), tmp)
    return {"nvcc": version}


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
