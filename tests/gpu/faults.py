"""Faults for a GPU, a library and a model: what another process, a compiler or a disk would do."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify import fatbin
from tests.gpu import llama_bench

LOAD = Path(__file__).with_name("load.py")


@contextmanager
def another_process(uuid: str, *, mib: int = 64, computes: bool = False) -> Iterator[int]:
    """A process with memory on one GPU that, if it `computes`, keeps it busy; gives its pid."""
    argv = [sys.executable, str(LOAD), str(mib), "compute" if computes else "hold"]
    with subprocess.Popen(
        argv,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": uuid},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def free_mib(uuid: str) -> int:
    argv = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", uuid]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def copied(config: dict[str, Any], folder: Path) -> tuple[dict[str, str], Path]:
    """A copy of the installed build: settings that name it, and its libggml-cuda.so."""
    stamp = json.loads(Path(config["stamp"]).read_text())
    prefix = folder / "version"
    shutil.copytree(config["prefix"], prefix, symlinks=True)
    name = next(n for n in stamp["libraries"] if n.endswith("/libggml-cuda.so"))
    return {"prefix": str(prefix), "stamp": str(folder / "stamp.json")}, prefix / name


def stamped(config: dict[str, Any], changed: dict[str, str], library: Path) -> None:
    """A stamp that agrees with the library as it is now."""
    stamp = json.loads(Path(config["stamp"]).read_text())
    name = str(library.relative_to(changed["prefix"]))
    stamp["libraries"][name] = hashlib.sha256(library.read_bytes()).hexdigest()
    Path(changed["stamp"]).write_text(json.dumps(stamp))


def for_another_capability(library: Path, capability: int) -> int:
    """Make the code of one translation unit that of another compute capability, as 89.

    The driver goes by the figure in each entry's header, as it does with a unit that was compiled
    for another one. Returns how many entries there were.
    """
    data = bytearray(library.read_bytes())
    at = data.find(struct.pack("<I", fatbin.MAGIC))
    _, _, header, size = struct.unpack_from("<IHHQ", data, at)
    at, end, changed = at + header, at + header + size, 0
    while at < end:
        _, _, header, size = struct.unpack_from("<HHIQ", data, at)
        struct.pack_into("<I", data, at + 28, capability)
        at, changed = at + header + size, changed + 1
    library.write_bytes(data)
    return changed


def garbage_of_iq3_s(folder: Path, library: Path, capability: str) -> Path:
    """A library that goes in front of `library` and computes iq3_s wrongly, token by token.

    It is mmvq.cu of the same source archive with the mask of the high bits dropped, the kind of
    fault that nvcc 13.2.0 makes for sm_120; the other types are computed as before.
    """
    tree = llama_bench.source(folder) / "ggml"
    header = tree / "src/ggml-cuda/vecdotq.cuh"
    text = header.read_text()
    high_bit = r"(iq3s_grid\[qs\[l0 \+ [01]\]) \| \(\(qh << \([78] - l0\)\) & 0x100\)\]"
    wrong, count = re.subn(high_bit, r"\1]", text)
    assert count, "vec_dot_iq3_s_q8_1 looks otherwise in this version"
    header.write_text(wrong)
    made = folder / "mmvq-garbage.so"
    argv = ["/usr/local/cuda/bin/nvcc", "-O3", "-std=c++17", "-shared", "-cudart", "shared"]
    argv += ["-gencode", f"arch=compute_{capability},code=sm_{capability}", "-use_fast_math"]
    argv += ["-extended-lambda", "-Xcompiler", "-fPIC", "-DGGML_USE_CUDA", "-DGGML_CUDA_USE_GRAPHS"]
    argv += [f"-I{tree / 'include'}", f"-I{tree / 'src'}", str(header.with_name("mmvq.cu"))]
    argv += [f"-L{library.parent}", "-lggml-cuda", "-lggml-base", "-Xlinker"]
    argv += [f"-rpath,{library.parent}", "-o", str(made)]
    subprocess.run(argv, check=True, timeout=300)
    return made
