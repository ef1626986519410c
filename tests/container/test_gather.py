"""What of a toolkit goes into an image: what the build's libraries name, and no driver."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llamafleet.image.make import Maker
from llamafleet.layout import Layout


def library(file: Path, *needs: Path) -> Path:
    """A shared library of that name, which names those of `needs`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{file.name}"]
    argv = ["gcc", "-x", "c", "/dev/null", "-x", "none", *flags, "-o", str(file), *map(str, needs)]
    subprocess.run(argv, check=True)
    return file


def test_a_stub_of_the_driver_goes_into_no_image(tmp_path: Path) -> None:
    """Found beside the toolkit's libraries it would come before the one of the host's driver."""
    folder = tmp_path / "toolkit/lib"
    stub = library(folder / "libcuda.so.1")
    deep = library(folder / "libcublasLt.so.13")
    blas = library(folder / "libcublas.so.13", deep, stub)
    library(folder / "libcufft.so.12")
    package = tmp_path / "build/lib/python3.13/site-packages/llama_cpp"
    library(package / "lib/libggml-cuda.so", blas, stub)
    plan: Any = SimpleNamespace(
        toolkit=SimpleNamespace(libdir=str(folder)),
        build=SimpleNamespace(config=SimpleNamespace(prefix=str(tmp_path / "build"))),
    )
    taken = [path.name for path in Maker(plan, Layout.system())._libraries()]
    assert taken == ["libcublas.so.13", "libcublasLt.so.13"]
