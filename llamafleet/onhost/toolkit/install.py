"""The toolkit job: install a CUDA Toolkit by one method, and prove that it compiles and links.

Wheels and NVIDIA's runfile need no root and get a folder of their own, which has its name only once
it is proven. Packages go where the package manager puts them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from llamafleet.onhost import nvcc
from llamafleet.onhost.environment import environment
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import packages as toolkit_packages
from llamafleet.onhost.toolkit import runfile as toolkit_runfile
from llamafleet.onhost.toolkit import wheels as toolkit_wheels
from llamafleet.onhost.toolkit.account import Account, Bench, bench
from llamafleet.protocol.job import (
    CHECK,
    PackagesConfig,
    RunfileConfig,
    ToolkitConfig,
    ToolkitProduct,
    WheelsConfig,
)

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
            account = Account.named(config.account)
            product = toolkit_packages.toolkit(job, config, tmp)
            return replace(product, nvcc=check(job, config, Path(config.root), tmp, account))
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
        product = replace(product, nvcc=check(job, config, partial, tmp, Account.named(None)))
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


def check(job: Job, config: ToolkitConfig, root: Path, tmp: Path, account: Account) -> str:
    """The version, if it is the one that was asked for, and compiles and links.

    All that it brought is run with the account's rights. Raises JobFailed.
    """
    job.phase(CHECK)
    with bench(job, account, tmp) as tried:
        version, build = nvcc_version(tried, root)
        if version != config.cuda:
            raise JobFailed(f"nvcc --version: found {version!r}; expected {config.cuda}")
        if wrong := nvcc.miscompiles(build, version, config.compute_capabilities):
            raise JobFailed(f"{root}: {wrong}; next: install one of those that are right")
        probe(tried, root, config.cxx, tmp)
    return build or version


def nvcc_version(tried: Bench, root: Path) -> tuple[str, str]:
    """As `nvcc.told`; "" each where it does not run."""
    argv = [str(root / "bin" / "nvcc"), "--version"]
    try:
        return nvcc.told(tried.run(argv, tried.environment(), nvcc.ANSWER_S))
    except JobFailed as error:
        tried.job.log(str(error))
        return "", ""


def probe(tried: Bench, root: Path, cxx: str, tmp: Path) -> None:
    """Compile a kernel for every architecture of this nvcc and link it with cuBLAS and the driver.

    `tmp`: a folder of our own for the source. Raises JobFailed; the compiler's words are in the
    job's log.
    """
    source, output = tmp / "probe.cu", tried.folder / "probe"
    source.write_text(PROBE, encoding="utf-8")
    compiler = [str(root / "bin" / "nvcc"), "-ccbin", cxx, "-arch=all-major"]
    argv = [*compiler, "-o", str(output), str(source), "-lcublas", "-lcuda"]
    tried.run(argv, tried.environment(root / "bin"))
