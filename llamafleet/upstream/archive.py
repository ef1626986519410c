"""The files of a source archive that are read: build files, headers, bindings, sources."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

LLAMA_CPP = "vendor/llama.cpp/"
MOST_BYTES = 8 << 20
"""Of one file; the largest that is read has 0.5 MB."""

_SOURCES = re.compile(
    rf"{LLAMA_CPP}(?:include|src|common|tools/mtmd|ggml/include|ggml/src)/[^/]+\.(?:h|c|cpp)"
    rf"|{LLAMA_CPP}ggml/src/ggml-(?:cpu|cuda)/[^/]+\.(?:h|c|cpp|cu|cuh)"
    r"|llama_cpp/[^/]+\.py|pyproject\.toml"
)
_NO_BUILD = re.compile(rf"{LLAMA_CPP}(?:examples|tests|scripts|docs)/")
_TOOLCHAIN = re.compile(rf"{LLAMA_CPP}cmake/[^/]*-(?:gcc|clang|llvm|msvc\w*|cuda)\.cmake")


class ArchiveError(Exception):
    """It is no source archive of llama-cpp-python; the text says why."""


def is_cmake(path: str) -> bool:
    return path.endswith(".cmake") or PurePosixPath(path).name == "CMakeLists.txt"


def wanted(path: str) -> bool:
    """Whether a file of the archive, by its path below the top folder, is read."""
    if is_cmake(path):
        return not _NO_BUILD.match(path) and not _TOOLCHAIN.fullmatch(path)
    return _SOURCES.fullmatch(path) is not None


def read(file: Path) -> dict[str, str]:
    """Text of each wanted file by its path. Raises ArchiveError, OSError."""
    found: dict[str, str] = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                path = member.name.partition("/")[2]
                if not member.isfile() or member.size > MOST_BYTES or not wanted(path):
                    continue
                opened = archive.extractfile(member)
                found[path] = opened.read().decode("utf-8", "replace") if opened else ""
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArchiveError(f"{file}: no archive that can be read ({error})") from error
    missing = {"pyproject.toml", f"{LLAMA_CPP}include/llama.h", "llama_cpp/llama_cpp.py"} - set(
        found
    )
    if missing:
        raise ArchiveError(f"{file}: holds no {', '.join(sorted(missing))}")
    return found
