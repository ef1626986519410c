"""What compiles, by content: two hosts or days with the same key make the same code of a file."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llamafleet.protocol.job import NVCC

ANSWER_S = 60
"""For a compiler to tell of itself."""

HOST_PARTS = ("cc1", "cc1plus", "as", "collect2")
"""Programs behind gcc's name: that itself is some 1 MB that runs them."""

NATIVE = ("-march=native", "-mcpu=native")
"""x86, Arm: ggml builds for the CPU that is there, which the words of a command line don't say."""

NVCC_WORDS = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
"""nvcc reads options there too, which the cache does not see (measured with ccache 4.14.2)."""

_LOADED = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
_STEP = re.compile(r'^#\$ "?(?:\$\w+/)?([\w+]+)"?\s', re.MULTILINE)
_FOLDERS = re.compile(r"^#\$ PATH=(.*)$", re.MULTILINE)
_BITCODE = re.compile(r"^#\$ NVVMIR_LIBRARY_DIR=(.*)$", re.MULTILINE)

NVCC_PARTS = frozenset({"cicc", "cudafe++", "fatbinary", "ptxas"})
"""Programs that each nvcc runs; those of its dry run that are its own are hashed beside them."""


class UnknownCompiler(Exception):
    """What compiles can't be told for sure."""


def host_key(env: Mapping[str, str]) -> str:
    """Of the C and the C++ compiler. Raises UnknownCompiler."""
    words: list[str] = []
    files: set[Path] = set()
    for name, fallback in (("CC", "cc"), ("CXX", "c++")):
        compiler = env.get(name, fallback)
        files |= {program(compiler, env), *_parts(compiler, env)}
        words += [_native(compiler, flag, env) for flag in NATIVE]
    return _digest(words, files, env)


def cuda_key(env: Mapping[str, str]) -> str:
    """Of nvcc. Raises UnknownCompiler."""
    nvcc = env[NVCC]
    told = _dry_run(nvcc, env)
    folders, bitcode = _FOLDERS.search(told), _BITCODE.search(told)
    names = {*_STEP.findall(told)}
    if not folders or not bitcode or not names >= NVCC_PARTS:
        missing = sorted(NVCC_PARTS - names) or ["PATH" if bitcode else "NVVMIR_LIBRARY_DIR"]
        raise UnknownCompiler(f"{nvcc} --dryrun names no {', '.join(missing)}")
    own = dict(env) | {"PATH": folders[1]}
    files = {program(nvcc, env), *(program(name, own) for name in names - {"rm"})}
    files |= {path for path in Path(bitcode[1]).iterdir() if path.is_file()}
    return _digest([env.get(name, "") for name in NVCC_WORDS], files, env)


def program(name: str, env: Mapping[str, str]) -> Path:
    """The file that runs under that name."""
    found = shutil.which(name, path=env.get("PATH"))
    if found is None:
        raise UnknownCompiler(f"found no {name}")
    return Path(found).resolve()


def _parts(compiler: str, env: Mapping[str, str]) -> Iterator[Path]:
    for part in HOST_PARTS:
        told = _said([compiler, f"-print-prog-name={part}"], env)
        found = shutil.which(told.strip(), path=env.get("PATH")) if told else None
        if found:  # clang has none but the assembler
            yield Path(found).resolve()


def _native(compiler: str, flag: str, env: Mapping[str, str]) -> str:
    """What that flag stands for on this machine; "": the compiler does not know it."""
    return _said([compiler, flag, "-###", "-E", "-x", "c", os.devnull], env)


def _dry_run(nvcc: str, env: Mapping[str, str]) -> str:
    # It looks for no source.
    words = ["--dryrun", "-c", "-x", "cu", "none.cu", "-o", "none.o"]
    told = _said([nvcc, *host_compiler(env), *words], env)
    if not told:
        raise UnknownCompiler(f"{nvcc} --dryrun tells nothing")
    return told


def host_compiler(env: Mapping[str, str]) -> list[str]:
    return ["-ccbin", env["CUDAHOSTCXX"]] if "CUDAHOSTCXX" in env else []


def _said(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """All that a command says; "": it failed."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=dict(env),
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnknownCompiler(f"{shlex.join(argv[:2])}: {error}") from error
    return "" if done.returncode else done.stdout


def _libraries(file: Path, env: Mapping[str, str]) -> set[Path]:
    """Libraries that a program loads: much of clang is in them. What ldd(1) does."""
    if file.read_bytes()[:4] != b"\x7fELF":
        return set()
    told = _said([str(file)], dict(env) | {"LD_TRACE_LOADED_OBJECTS": "1"})
    return {Path(path) for path in _LOADED.findall(told)}


def _digest(words: Iterable[str], files: Iterable[Path], env: Mapping[str, str]) -> str:
    everything = {*files}
    for file in files:
        everything |= _libraries(file, env) if os.access(file, os.X_OK) else set()
    digest = hashlib.sha256(repr(list(words)).encode())
    # Content alone: the same compiler may lie elsewhere on another host.
    for value in sorted({_sha256(path) for path in everything}):
        digest.update(value)
    return digest.hexdigest()


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()
