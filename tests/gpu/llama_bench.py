"""llama-bench, compiled from the tree that was built and linked to the libraries it became."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from statistics import median

from llamafleet.settings import LLAMA_VERSION
from tests.gpu.measure import LAYOUT, WHEELHOUSE


def source(folder: Path) -> Path:
    """llama.cpp's tree out of the source archive that the build took."""
    archives = Path(WHEELHOUSE or folder).glob("llama_cpp_python-*.tar.gz")
    archive = next(archives, None)
    if archive is None:
        argv = ["pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
        subprocess.run([*argv, f"llama-cpp-python=={LLAMA_VERSION}"], check=True)
        archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def compile_it(folder: Path) -> Path:
    """The program. Only its own code is compiled: the libraries are the ones under test."""
    tree, program = source(folder), folder / "llama-bench"
    libraries = next(Path(LAYOUT.current).resolve().glob("lib/python*/site-packages/llama_cpp/lib"))
    argv = ["g++", "-O3", "-DNDEBUG", "-std=c++17"]
    argv += map(str, tree.glob("tools/llama-bench/*.cpp"))
    argv += [f"-I{tree / name}" for name in ("include", "ggml/include", "common", "vendor")]
    argv += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--allow-shlib-undefined"]
    argv += ["-lllama-common", "-lllama", "-lggml", "-lggml-base", "-lpthread", "-o", str(program)]
    subprocess.run(argv, check=True)
    return program


def run(program: Path, model: str, threads: int) -> dict[str, float]:
    """Median tokens per second of pp512 and tg128, 5 repetitions."""
    argv = [str(program), "-m", model, "-p", "512", "-n", "128", "-r", "5", "-t", str(threads)]
    done = subprocess.run(
        [*argv, "-ngl", "99", "-o", "json"], capture_output=True, text=True, check=True, timeout=600
    )
    tests = json.loads(done.stdout)
    return {
        "pp": median(next(t for t in tests if t["n_prompt"])["samples_ts"]),
        "tg": median(next(t for t in tests if t["n_gen"])["samples_ts"]),
    }
