"""Collect a wheelhouse from the registries."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from llamafleet.protocol.pythons import PYTHONS
from llamafleet.tables.pinned import HOST, Pin, pins, pip_line, toolkit_file
from llamafleet.tables.toolkits import wheel_toolkits
from llamafleet.wheelhouse.manifest import (
    MANIFEST,
    MANIFEST_VERSION,
    File,
    Llama,
    Manifest,
    WheelhouseError,
    sha256_of,
)

ARCHES = ("x86_64", "aarch64")

# Wheels for these need glibc 2.28 or less, so that they fit every host with a supported Python.
# pip does not derive the older manylinux_2_* tags from a newer one.
_MANYLINUX = ("2_28", "2_27", "2_26", "2_24", "2_17", "2014", "2_12", "2010", "2_5", "1")

_LLAMA_CPP = "vendor/llama.cpp/"
_KEPT_FILES = frozenset(
    {
        *("CMakeLists.txt", "LICENSE.md", "PKG-INFO", "README.md", "pyproject.toml"),
        *(_LLAMA_CPP + name for name in ("CMakeLists.txt", "LICENSE")),
    }
)
# tools: mtmd is built where LLAVA_BUILD is on, and llama-bench measures what was built.
_KEPT_FOLDERS = (
    "llama_cpp/",
    *(
        f"{_LLAMA_CPP}{name}/"
        for name in ("cmake", "common", "ggml", "include", "licenses", "src", "tools", "vendor")
    ),
)
_OTHER_BACKENDS = (
    *("cann", "et", "hexagon", "hip", "metal", "musa", "opencl", "openvino", "sycl"),
    *("virtgpu", "vulkan", "webgpu", "zdnn", "zendnn"),
)
_DROPPED_FOLDERS = (
    *(f"{_LLAMA_CPP}ggml/src/ggml-{name}/" for name in _OTHER_BACKENDS),
    *(f"{_LLAMA_CPP}tools/{name}/" for name in ("ui", "server", "mtmd/tests")),
)
_DROPPED_SUFFIXES = (".mp4", ".mp3", ".jpeg", ".png", ".gguf")


def build(
    directory: Path,
    *,
    version: str,
    sha256: str,
    pythons: Sequence[str] = PYTHONS,
    arches: Sequence[str] = ("x86_64",),
    toolkits: Sequence[str] = (),
    slim: bool = True,
    cmake: bool = True,
) -> Manifest:
    """Collect a wheelhouse into `directory` with this Python's pip and its configured index.

    `version` and `sha256` are those of llama-cpp-python's published source archive; `cmake`
    False leaves CMake out, for hosts that have 3.24 or newer. An older wheelhouse in
    `directory` is replaced when the new one is complete. Raises WheelhouseError.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise WheelhouseError(f"{directory} is not empty and no wheelhouse: name another folder")
    wanted = [*pins(HOST)]
    for toolkit in toolkits:
        wanted += _toolkit_pins(toolkit)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as name:
        stage = Path(name) / "wheelhouse"
        stage.mkdir()
        for python in pythons:
            for arch in arches:
                _download_wheels(wanted, stage, python, arch, cmake)
        llama = _download_llama(stage, version, sha256, slim)
        files = {
            path.name: File(
                sha256_of(path),
                path.stat().st_size,
                sha256 if slim and path.name == sdist_name(version) else None,
            )
            for path in sorted(stage.iterdir())
        }
        manifest = Manifest(
            created=int(time.time()),
            files=files,
            pythons=tuple(pythons),
            arches=tuple(arches),
            toolkits=tuple(toolkits),
            slim=slim,
            llama=llama,
        )
        text = json.dumps({"version": MANIFEST_VERSION, **asdict(manifest)}, indent=1)
        (stage / MANIFEST).write_text(text + "\n", encoding="utf-8")
        # mkdtemp's 0700 is no use to the accounts that read the folder.
        stage.chmod(0o755)
        shutil.rmtree(directory, ignore_errors=True)
        stage.rename(directory)
    return manifest


def sdist_name(version: str) -> str:
    return f"llama_cpp_python-{version}.tar.gz"


def slim_sdist(source: Path, target: Path) -> None:
    """Write `source` again without what a CPU or CUDA build does not read.

    Left out: llama.cpp's history, docs, sample models, tests, web front ends and the backends
    of other makers. The same source gives the same bytes on the same zlib.

    Measured with 0.3.36 on gcc 12.2, 2026-11-25: libggml-cpu comes out the same byte for byte,
    libggml-base but for ggml's commit, which is "unknown" in place of "0c1e570-dirty". With
    -DGIT_EXE=OFF, or on a host without git, that is the same too.
    """
    with (
        tarfile.open(source) as old,
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old, key=lambda m: m.name):
            if member.isdir() or not _needed(member.name.partition("/")[2]):
                continue
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)


def _needed(path: str) -> bool:
    """Whether a build reads this path of the source archive."""
    kept = path in _KEPT_FILES or path.startswith(_KEPT_FOLDERS)
    return kept and not path.startswith(_DROPPED_FOLDERS) and not path.endswith(_DROPPED_SUFFIXES)


def _toolkit_pins(version: str) -> tuple[Pin, ...]:
    """Raises WheelhouseError."""
    try:
        return pins(toolkit_file(version))
    except FileNotFoundError as error:
        have = ", ".join(sorted({row.cuda for row in wheel_toolkits()}))
        raise WheelhouseError(
            f"no pinned wheels of CUDA {version}; toolkits that have some: {have}"
        ) from error


def _for_host(wanted: Iterable[Pin], python: str, arch: str, cmake: bool) -> str:
    """Requirement lines without markers for one kind of host.

    `pip download` evaluates markers for the Python that runs it and not for the one asked for.
    """
    host = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": arch,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    return "".join(
        pip_line(pin.unmarked, pin.sha256)
        for pin in wanted
        if (pin.requirement.marker is None or pin.requirement.marker.evaluate(host))
        and (cmake or pin.requirement.name != "cmake")
    )


def _download_wheels(
    wanted: Iterable[Pin], stage: Path, python: str, arch: str, cmake: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "requirements.txt"
        lines.write_text(_for_host(wanted, python, arch, cmake), encoding="utf-8")
        options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
        for tag in _MANYLINUX:
            options += ["--platform", f"manylinux{'_' if '_' in tag else ''}{tag}_{arch}"]
        _pip_download(lines, stage, f"wheels for Python {python} on {arch}", *options)


def _download_llama(stage: Path, version: str, sha256: str, slim: bool) -> Llama:
    """Put llama-cpp-python's source archive into `stage`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wanted = folder / "requirements.txt"
        wanted.write_text(pip_line(f"llama-cpp-python=={version}", [sha256]), encoding="utf-8")
        # pip runs the build backend for the archive's metadata: the pinned one, not the newest.
        pinned = folder / "build.txt"
        pinned.write_text(
            "".join(f"{pin.unmarked}\n" for pin in pins(HOST) if pin.requirement.marker is None),
            encoding="utf-8",
        )
        _pip_download(
            *(wanted, folder, f"source archive of llama-cpp-python {version}"),
            *("--no-binary", "llama-cpp-python", "--build-constraint", str(pinned)),
        )
        source, target = folder / sdist_name(version), stage / sdist_name(version)
        if slim:
            slim_sdist(source, target)
        else:
            shutil.move(source, target)
    return Llama(version=version, sha256=sha256_of(target), source_sha256=sha256)


def _pip_download(wanted: Path, target: Path, what: str, *options: str) -> None:
    """Download exactly what `wanted` lists. Raises WheelhouseError with pip's last error."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--require-hashes", "--dest", str(target), "-r", str(wanted)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        last = (errors or done.stderr.splitlines() or ["no output"])[-1]
        raise WheelhouseError(f"no {what}: {last}; next: try the same with pip download -v")
