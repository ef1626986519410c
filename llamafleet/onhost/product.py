"""What came out of a build, looked at: it imports, and where its libraries look for others."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llamafleet.onhost import elf
from llamafleet.onhost.job import JobFailed
from llamafleet.protocol.decode import decode

IMPORT_CHECK = """
import json, time
begun = time.perf_counter()
import llama_cpp
spent = time.perf_counter() - begun
print("\\n" + json.dumps({
    "llama_cpp_python": llama_cpp.__version__,
    "system_info": llama_cpp.llama_print_system_info().decode(),
    "import_s": round(spent, 3),
}))
"""


@dataclass(frozen=True)
class Imported:
    """What IMPORT_CHECK prints: version, system info and the seconds that the import took."""

    llama_cpp_python: str
    system_info: str
    import_s: float


def import_check(python: str, env: dict[str, str], folder: Path) -> Imported:
    """Import the package in a process of its own."""
    # Not in a source directory: its llama_cpp/ would be imported in place of the installed one.
    child = subprocess.run(
        [python, "-I", "-c", IMPORT_CHECK],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=env,
        cwd=folder,
        timeout=300,
        check=False,
    )
    if child.returncode < 0:
        raise JobFailed(
            f"import llama_cpp was ended by {signal.Signals(-child.returncode).name}: found code "
            "that this CPU or system does not run; expected an import; "
            "next: read the log, and compare the CPU with the one it was built for"
        )
    if child.returncode:
        text = (child.stderr.strip() or child.stdout.strip()).splitlines()
        raise JobFailed(
            f"import llama_cpp ended with status {child.returncode}: {text[-1] if text else ''}"
        )
    return decode(Imported, json.loads(child.stdout.strip().splitlines()[-1]))


def library_hashes(prefix: Path) -> dict[str, str]:
    """sha256 of each library of the installed package, by its path below the venv."""
    folder = "lib/python*/site-packages/llama_cpp/lib"
    return {
        str(path.relative_to(prefix)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(prefix.glob(f"{folder}/lib*.so*"))
    }


def refuse_without_cuda(libraries: Iterable[str], tree: Path) -> None:
    """Raise JobFailed where no library of CUDA's was built; `tree`: CMake's."""
    if not any(path.endswith("/libggml-cuda.so") for path in libraries):
        raise JobFailed(
            "built without CUDA: found no libggml-cuda.so in the wheel; expected one; "
            f"next: read the options in {tree / 'CMakeCache.txt'}"
        )


def refuse_wrong_paths(prefix: Path, libraries: Iterable[str], toolkit: str) -> None:
    """Raise JobFailed where a built library would load what is not of this build's toolkit.

    `toolkit`: the folder of its libraries, "" for the CPU.
    """
    for name in libraries:
        try:
            wrong = elf.wrong_path(elf.read(prefix / name), toolkit)
        except elf.ElfError as error:
            raise JobFailed(f"{error}; next: run the same command again") from error
        if wrong:
            raise JobFailed(
                f"{prefix / name}: found {wrong}; expected DT_RPATH with CUDA's libraries in "
                f"{toolkit or 'no folder'}; "
                "next: remove what adds -rpath to the compiler or the linker of this host, or to "
                "cmake_options"
            )
