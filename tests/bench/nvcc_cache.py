"""`python -m tests.bench.nvcc_cache`: what the compiler cache finds again of each nvcc, and what it
may not. No GPU is needed. Prints the table of docs/compiler-cache.md.

    .venv/bin/python -m tests.bench.nvcc_cache [--folder FOLDER] [NVCC]...

NVCC: paths of others beside those of the pinned wheels, which are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamafleet import tables, zipapps
from llamafleet.onhost import nvcc as told
from llamafleet.onhost.compilercache import Cache
from llamafleet.onhost.job import Job
from llamafleet.protocol.job import PATH, CacheConfig
from llamafleet.tables.pinned import CACHE, pins, pip_line, toolkit_file
from llamafleet.tables.toolkits import wheel_toolkits

NEEDED = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime")

SOURCE = """
#include "both.h"
#ifdef __CUDA_ARCH__
#include "device.h"
#else
#include "host.h"
#endif
__global__ void kernel(int *x) {
#ifdef __CUDA_ARCH__
  x[0] = DEVICE + BOTH;
#endif
}
int host() {
#ifndef __CUDA_ARCH__
  return HOST;
#else
  return 0;
#endif
}
"""
FILES = {
    "x.cu": SOURCE,
    "both.h": "#define BOTH 1\n",
    "device.h": "#define DEVICE 1\n",
    "host.h": "#define HOST 1\n",
}

# As CMake writes them for ggml-cuda, with the settings of this project.
FLAGS = (
    *("-forward-unknown-to-host-compiler", "-ccbin=/usr/bin/g++", "-DGGML_CUDA=1"),
    *("-O3", "-DNDEBUG", "-std=c++17", "-Xcompiler=-fPIC", "-use_fast_math", "-extended-lambda"),
)
REAL = "--generate-code=arch=compute_80,code=[compute_80,sm_80]"
PTX_ONLY = "--generate-code=arch=compute_90,code=[compute_90]"


@dataclass
class Trial:
    """One nvcc, and a cache that begins empty."""

    nvcc: str
    root: Path
    pip: list[str]

    def __post_init__(self) -> None:
        self.builds = 0
        for name, text in FILES.items():
            (self.root / name).write_text(text)

    def compiled(self, *flags: str, **env: str) -> tuple[str, float]:
        """(hit or miss, seconds), by a build of its own."""
        self.builds += 1
        tmp = self.root / f"build{self.builds}"
        tmp.mkdir()
        build = {"PATH": PATH, "CUDACXX": self.nvcc, "CXX": "/usr/bin/g++", "CC": "/usr/bin/gcc"}
        build |= {"CUDAHOSTCXX": "/usr/bin/g++", **env}
        config = CacheConfig(
            requirements=tables.text(CACHE), folder=str(self.root / "cache"), limit_gb=1, url=None
        )
        cache = Cache(Job("build", tmp, "f00d"), config, build, tmp)
        cache.prepare(self.pip)
        if cache.problems:
            return "; ".join(cache.problems), 0.0
        cache.begin()
        launcher = cache.launchers["CMAKE_CUDA_COMPILER_LAUNCHER"]
        words = [*FLAGS, *(flags or (REAL, PTX_ONLY)), "-MD", "-MT", "x.o", "-MF", "x.d"]
        began = time.monotonic()
        subprocess.run(
            [launcher, self.nvcc, *words, "-x", "cu", "-c", str(self.root / "x.cu"), "-o", "x.o"],
            cwd=tmp,
            env=build,
            check=True,
        )
        spent, use = time.monotonic() - began, cache.use()
        return ("hit" if use.hits else "miss" if use.misses else "not cached"), spent


def trials(trial: Trial) -> list[str]:
    """Cells of one row."""
    cold, spent = trial.compiled()
    warm, faster = trial.compiled()
    cells = [f"{cold}, {spent:.2f} s", f"{warm}, {faster:.2f} s"]
    for name in ("host.h", "device.h"):
        text = FILES[name].replace("1", "2")
        (trial.root / name).write_text(text)
        cells.append(trial.compiled()[0])
    # Seen by none of nvcc -E's single pass.
    (trial.root / "x.cu").write_text(SOURCE.replace("return HOST", "return HOST + 1"))
    cells.append(trial.compiled()[0])
    cells.append(trial.compiled(NVCC_APPEND_FLAGS="-DX=1")[0])
    cells.append(trial.compiled(PTX_ONLY)[0])
    cells.append(trial.compiled(PTX_ONLY)[0])
    return cells


HEAD = (
    "nvcc", "first", "again", "host's header changed", "device's header changed",
    "host's code changed", "NVCC_APPEND_FLAGS", "PTX only", "PTX only again",
)  # fmt: skip


def pip_of(folder: Path) -> list[str]:
    pip = folder / "pip.pyz"
    pip.write_bytes(zipapps.pip_zipapp())
    words = ["--disable-pip-version-check", "-q", "install", "--require-hashes", "--only-binary"]
    return [sys.executable, "-I", str(pip), *words, ":all:"]


def fetched(folder: Path, pip: list[str]) -> Mapping[str, str]:
    """nvcc of each CUDA that has pinned wheels, by its version."""
    found = {}
    for version in sorted({row.cuda for row in wheel_toolkits()}):
        target = folder / version
        if not target.exists():
            listed = folder / "listed.txt"
            wanted = [pin for pin in pins(toolkit_file(version)) if pin.requirement.name in NEEDED]
            listed.write_text("".join(pip_line(pin.unmarked, pin.sha256) for pin in wanted))
            subprocess.run(
                [*pip, "--no-deps", "--target", str(target), "-r", str(listed)], check=True
            )
        found[version] = str(next(target.glob("nvidia/cu*/bin/nvcc")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder")
    parser.add_argument("nvcc", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.folder or name)
        folder.mkdir(exist_ok=True)
        pip = pip_of(folder)
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for nvcc in [*options.nvcc, *fetched(folder, pip).values()]:
            with tempfile.TemporaryDirectory() as root:
                build = told.asked(nvcc, {"PATH": PATH})[1]
                cells = trials(Trial(nvcc, Path(root), pip))
                print(f"| {build} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
