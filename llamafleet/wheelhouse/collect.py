"""Collect a wheelhouse from the registries."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from llamafleet.protocol.pythons import PYTHONS
from llamafleet.protocol.redact import redacted
from llamafleet.tables.pinned import CACHE, HOST, SERVE, Pin, pins, pip_line, toolkit_file
from llamafleet.tables.toolkits import wheel_toolkits
from llamafleet.wheelhouse.index import Sources, fetch_archive, sources
from llamafleet.wheelhouse.manifest import (
    MANIFEST,
    MANIFEST_VERSION,
    File,
    Llama,
    Manifest,
    WheelhouseError,
    sha256_of,
)

PROJECT = "llama-cpp-python"
ARCHES = ("x86_64", "aarch64")

# Wheels for these need glibc 2.28 or less, so that they fit every host with a supported Python.
# pip does not derive the older manylinux_2_* tags from a newer one.
_MANYLINUX = ("2_28", "2_27", "2_26", "2_24", "2_17", "2014", "2_12", "2010", "2_5", "1")

_NETWORK = re.compile(
    r"NewConnectionError|ProxyError|SSLError|Name or service|Max retries|timed out"
)
"""In pip's words for a connection that failed: not the package is at fault."""

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
    index_url: str | None = None,
) -> Manifest:
    """Collect a wheelhouse into `directory` from an index, or as this Python's pip is configured.

    `version` and `sha256` are those of llama-cpp-python's published source archive; `cmake`
    False leaves CMake out, for hosts that have 3.24 or newer. An older wheelhouse in
    `directory` is replaced when the new one is complete. Raises WheelhouseError.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise WheelhouseError(f"{directory} is not empty and no wheelhouse: name another folder")
    where = sources(index_url)
    wanted = [*pins(HOST), *pins(CACHE), *pins(SERVE)]
    for toolkit in toolkits:
        wanted += _toolkit_pins(toolkit)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as name:
        stage = Path(name) / "wheelhouse"
        stage.mkdir()
        for python in pythons:
            for arch in arches:
                _download_wheels(wanted, stage, python, arch, cmake=cmake, index_url=index_url)
        llama = _download_llama(stage, version, sha256, slim, where)
        manifest = Manifest(
            created=int(time.time()),
            files=_files(stage, {sdist_name(version): sha256} if slim else {}),
            pythons=tuple(pythons),
            arches=tuple(arches),
            toolkits=tuple(toolkits),
            slim=slim,
            llama=llama,
        )
        _finish(stage, manifest, directory)
    return manifest


def _files(stage: Path, sources: Mapping[str, str]) -> dict[str, File]:
    """What was collected, by name; `sources`: hashes of what some of it was cut from."""
    return {
        path.name: File(sha256_of(path), path.stat().st_size, sources.get(path.name))
        for path in sorted(stage.iterdir())
    }


def _finish(stage: Path, manifest: Manifest, directory: Path) -> None:
    """Write the manifest, and put all of it in the place of an older wheelhouse."""
    text = json.dumps({"version": MANIFEST_VERSION, **asdict(manifest)}, indent=1)
    (stage / MANIFEST).write_text(text + "\n", encoding="utf-8")
    # mkdtemp's 0700 is no use to the accounts that read the folder.
    stage.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)
    stage.rename(directory)


def sdist_name(version: str) -> str:
    return f"llama_cpp_python-{version}.tar.gz"


def sdist_names(version: str) -> tuple[str, ...]:
    """As indexes name it."""
    return sdist_name(version), sdist_name(version).replace("_", "-")


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
    wanted: Iterable[Pin],
    stage: Path,
    python: str,
    arch: str,
    *,
    cmake: bool,
    index_url: str | None,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "requirements.txt"
        lines.write_text(_for_host(wanted, python, arch, cmake), encoding="utf-8")
        options = ["--implementation", "cp", "--python-version", python]
        for tag in _MANYLINUX:
            options += ["--platform", f"manylinux{'_' if '_' in tag else ''}{tag}_{arch}"]
        what = f"wheels for Python {python} on {arch}"
        _pip_download(lines, stage, what, *options, index_url=index_url)


def _download_llama(stage: Path, version: str, sha256: str, slim: bool, where: Sources) -> Llama:
    """Put llama-cpp-python's source archive into `stage`."""
    names = sdist_names(version)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fetch_archive(where, PROJECT, names, sha256, folder / names[0])
        source, target = folder / sdist_name(version), stage / sdist_name(version)
        if slim:
            slim_sdist(source, target)
        else:
            shutil.move(source, target)
    return Llama(version=version, sha256=sha256_of(target), source_sha256=sha256)


def _pip_download(
    wanted: Path, target: Path, what: str, *options: str, index_url: str | None
) -> None:
    """Download exactly the wheels that `wanted` lists. Raises WheelhouseError with pip's error.

    `index_url`: in place of what pip is configured with. It stands on no command line.
    """
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(target)]
    own = {"PIP_INDEX_URL": index_url, "PIP_EXTRA_INDEX_URL": ""} if index_url else {}
    done = subprocess.run(
        [*command, "-r", str(wanted), *options],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | own,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        # Where the network failed, pip goes on to say that there is no such version.
        errors = [line for line in done.stderr.splitlines() if _NETWORK.search(line)] or errors
        last = (errors or done.stderr.splitlines() or ["no output"])[-1]
        raise WheelhouseError(f"no {what}: {redacted(last)}; next: try the same with pip download")
