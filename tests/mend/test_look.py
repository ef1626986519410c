"""What lies in an environment and in caches, read for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.mend.look import cached, read_code, writable
from llamafleet.mend.work import Failed, Worker
from llamafleet.protocol.environment import Copy
from tests.mend.test_change import here
from tests.onhost.wheels import write_wheel

FATBIN = Path(__file__).parents[1] / "onhost/data/fatbin"


def copy(folder: Path, sample: str) -> Copy:
    (folder / "lib").mkdir()
    shutil.copy(FATBIN / f"{sample}.so", folder / "lib/libggml-cuda.so")
    return Copy(str(folder), "environment", libraries={"lib/libggml-cuda.so": 1})


@pytest.mark.parametrize(
    ("sample", "gpus", "unserved", "compiled"),
    [
        ("sm89-compute89-two-units", ["8.9"], (), ()),
        ("sm89-compute89-two-units", ["8.6", "8.9"], ("8.6",), ()),
        ("sm89-compute89-two-units", ["9.0"], (), ("9.0",)),
        ("compute80", ["8.9"], (), ("8.9",)),
        ("compute80", ["7.5"], ("7.5",), ()),
        ("sm89-compute89-two-units", [], (), ()),
    ],
)
def test_code_for_the_gpus(
    tmp_path: Path, sample: str, gpus: list[str], unserved: object, compiled: object
) -> None:
    code = read_code(copy(tmp_path, sample), gpus)
    assert (code.unserved, code.compiled_at_start, code.error) == (unserved, compiled, "")
    assert code.held


def test_a_library_without_code(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libggml-cuda.so").write_text("x" * 100)
    found = read_code(Copy(str(tmp_path), "environment", libraries={"lib/libggml-cuda.so": 1}), [])
    assert "no 64-bit little-endian ELF" in found.error
    assert read_code(Copy(str(tmp_path), "environment"), ["8.9"]).held == ()


def test_wheels_in_the_caches(tmp_path: Path) -> None:
    """pip's as `pip cache list` finds them; uv's by its own cache, version 11 (uv 0.13)."""
    made = here(tmp_path)
    name = "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    pip = tmp_path / ".cache/pip/wheels/aa/bb/cc/dd"
    uv = tmp_path / ".cache/uv/sdists-v11/pypi/llama-cpp-python/0.3.36/abcdef"
    for folder, library in ((pip, "llama_cpp/lib/libggml-cpu.so"), (uv, "libggml-cuda.so")):
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / name, "w") as wheel:
            wheel.writestr(library, "x")
    found = {one.by: (one.path, one.cuda) for one in cached(made)}
    assert found["pip"] == (str(pip / name), False)
    if shutil.which("uv"):
        assert found["uv"] == (str(uv / name), True)
    (pip / name).write_text("no zip")
    assert next(one.cuda for one in cached(made) if one.by == "pip") is None


def test_what_a_build_needs(tmp_path: Path) -> None:
    """As its own interpreter tells; what is for other Pythons is named there, and not installed."""
    env = tmp_path / "env"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", env], check=True)
    work: Any = SimpleNamespace(here=here(tmp_path))
    with pytest.raises(Failed, match="found no llama_cpp in it"):
        Worker.needs(work, str(env))
    wheels = [write_wheel(tmp_path, "llama-cpp-python", "0.3.36", {"llama_cpp/__init__.py": ""})]
    wheels += [write_wheel(tmp_path, "numpy", "2.0", {"numpy.py": ""})]
    argv = [sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "install"]
    subprocess.run([*argv, "--no-index", "--no-deps", *wheels], check=True, capture_output=True)
    (metadata,) = env.glob("lib/python*/site-packages/llama_cpp_python-*.dist-info/METADATA")
    with metadata.open("a") as file:
        file.write("Requires-Dist: numpy>=1.20\nRequires-Dist: tomli; python_version < '3.0'\n")
    assert Worker.needs(work, str(env)) == ("numpy",)


def test_no_caches(tmp_path: Path) -> None:
    assert list(cached(here(tmp_path))) == []


def test_what_can_be_written(tmp_path: Path) -> None:
    assert writable(tmp_path / "not/yet/there")
    if os.geteuid() != 0:
        assert not writable(Path("/usr/lib/not-there"))
