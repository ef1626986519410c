"""A CUDA Toolkit from NVIDIA's wheels, laid out as NVIDIA's installers do.

The wheels (CUDA 13 and newer; those of CUDA 12 hold no nvcc) put everything below
nvidia/cu<major>. Three things are missing there for CMake and the linker: lib64, the library
names without a version, and the stub of the driver's library. They are added here.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.pip import own_pip, pip_install, pip_run
from llamafleet.protocol.job import ToolkitProduct, WheelsConfig

DOWNLOAD = re.compile(r"^Progress ([0-9]{1,15}) of ([0-9]{1,15})$")

WHEELS = ("--no-deps", "--only-binary", ":all:", "--progress-bar=raw")

STUB_ERROR = 34
"""cudaErrorStubLibrary: what each function of NVIDIA's own stub answers."""


class Downloads:
    """Adds up pip's raw progress lines: one file after the other, each ending with N of N."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of the files that are complete."""

    def feed(self, line: str) -> tuple[int, int] | None:
        """(bytes so far, bytes known of) in MB after a progress line; None for another line."""
        found = DOWNLOAD.match(line)
        if not found:
            return None
        current, total = int(found[1]), int(found[2])
        so_far = self.bytes + current
        if current == total:
            self.bytes = so_far
        return so_far // 10**6, (so_far - current + total) // 10**6


def install(job: Job, config: WheelsConfig, root: Path, env: dict[str, str]) -> ToolkitProduct:
    """Download and lay out at `root`. Raises JobFailed."""
    wheels = root / "wheels"
    requirements = job.folder / "requirements.txt"
    requirements.write_text(config.requirements, encoding="utf-8")
    downloads = Downloads()

    def follow(line: str) -> None:
        if megabytes := downloads.feed(line):
            job.progress.step(*megabytes, "MB downloaded")
        else:
            job.progress.step(downloads.bytes // 10**6, 0, line.strip())

    pip = pip_install(own_pip(config, job.folder / "tmp"), config.python)
    job.phase("download")
    pip_run(
        job,
        [*pip, *WHEELS, "--target", str(wheels), "-r", str(requirements)],
        env,
        on_line=follow,
        keep=lambda line: not DOWNLOAD.match(line),
    )
    job.phase("layout")
    lay_out(wheels, root, config.cuda)
    link_names(root)
    make_stub(job, root, config.cxx, env)
    return ToolkitProduct(download_bytes=downloads.bytes)


def lay_out(wheels: Path, root: Path, version: str) -> None:
    """Move nvidia/cu<major>/* to `root`; the wheels' own records stay below wheels/."""
    source = wheels / "nvidia" / f"cu{version.split('.', maxsplit=1)[0]}"
    if not (source / "bin" / "nvcc").exists():
        raise JobFailed(
            f"found no bin/nvcc below {source}; expected the nvidia-cuda-nvcc wheel of CUDA "
            f"{version}; next: read the names in the requirements"
        )
    for entry in sorted(source.iterdir()):
        entry.rename(root / entry.name)
    shutil.rmtree(wheels / "nvidia")


def link_names(root: Path) -> None:
    """lib64, and for each lib/libX.so.N the name libX.so that the linker looks for."""
    (root / "lib64").symlink_to("lib")
    for library in sorted((root / "lib").glob("lib*.so.*")):
        plain = library.with_name(library.name.split(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)


def driver_names(header: str) -> list[str]:
    """The functions that the text of cuda.h declares or maps an older name to."""
    declared = re.findall(r"CUDAAPI\s+(cu[A-Z]\w*)\s*\(", header)
    mapped = re.findall(r"^\s*#\s*define\s+cu[A-Z]\w*\s+(cu[A-Z]\w*)\s*$", header, re.MULTILINE)
    return sorted({*declared, *mapped})


def make_stub(job: Job, root: Path, cxx: str, env: dict[str, str]) -> None:
    """lib/stubs/libcuda.so: the driver's names, to link against on a host with any driver or none.

    It asks for libcuda.so.1 at run time, and no file of that name is put beside it: found there it
    would stand in for the driver.
    """
    header = (root / "include" / "cuda.h").read_text(encoding="utf-8", errors="replace")
    names = driver_names(header)
    source = job.folder / "tmp" / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return {STUB_ERROR}; }}\n" for name in names))
    stubs = root / "lib" / "stubs"
    stubs.mkdir()
    shared = ("-x", "c", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    job.command([cxx, *shared, "-o", str(stubs / "libcuda.so"), str(source)], env=env)
