"""`python -m tests.bench.fix [--wheel WHEEL] [--cpu-wheel WHEEL] [KIND...]`: `llamafleet fix` on
broken environments.

Each kind is a real environment, broken, judged by `fix --check`, mended by `fix --yes` and judged
again; the packages beside llama-cpp-python must be the same before and after. It prints the table
of the documents. WHEEL: of llama-cpp-python, a CUDA build for the kinds that need a GPU
(`python -m llamafleet.onhost pack --prefix BUILD --to FOLDER` makes one of a build); without one it
is packed of the first environment that was mended. `--cpu-wheel`: what cpu_only begins with,
which is built here otherwise. A build takes minutes: as root each kind has its own, as a user the
first one's is used again, and the table says which.

kinds without a GPU: library, import, absent; with one: cpu_only, architecture, cuda_version.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafleet.onhost.pack import pack
from llamafleet.protocol.environment import PACKAGE
from llamafleet.tables.pinned import HOST, pins, pip_line
from tests.gpu import faults

CUDA = "libggml-cuda.so"
OTHER_MAJOR = {b"libcudart.so.13": b"libcudart.so.12", b"libcudart.so.12": b"libcudart.so.11"}
"""What the loader is made to look for, by what the build needs: of the same length."""
BUILDS = re.compile(r"^build: \d+ jobs", re.MULTILINE)
"""What fix says where it builds."""


@dataclass
class Bench:
    """One environment for each kind, in a folder that every user can read."""

    python: str
    wheel: Path | None
    cpu_wheel: Path | None
    wheelhouse: str
    settings: list[str]
    folder: Path

    def __post_init__(self) -> None:
        self.environ: dict[str, str] = dict(os.environ)

    def make(self, name: str) -> Path:
        """An environment with llama-cpp-python, and what it needs, installed."""
        env = self.folder / name
        subprocess.run([self.python, "-m", "venv", "--without-pip", env], check=True)
        needed = ("numpy", "diskcache", "jinja2", "markupsafe", "typing-extensions")
        rows = [pin for pin in pins(HOST) if pin.requirement.name.lower() in needed]
        lines = self.folder / "needed.txt"
        lines.write_text("".join(pip_line(str(pin.requirement), pin.sha256) for pin in rows))
        self.pip(env, "--require-hashes", "-r", str(lines))
        wheel = self.cpu_wheel if name == "cpu_only" and self.cpu_wheel else self.wheel
        assert wheel, f"{name}: no wheel to begin with; expected --wheel, or one that was mended"
        self.pip(env, str(wheel))
        return env

    def pip(self, env: Path, *words: str) -> None:
        house = ["--no-index", "--find-links", self.wheelhouse] if self.wheelhouse else []
        argv = [sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "install", "-q"]
        subprocess.run([*argv, "--no-deps", "--only-binary", ":all:", *house, *words], check=True)

    def fix(self, env: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """`llamafleet fix`, as somebody types it."""
        settings = [*self.settings, *([f"wheelhouse={self.wheelhouse}"] if self.wheelhouse else [])]
        options = [word for one in settings for word in ("--set", one)]
        code = "from llamafleet.cli.main import main; main()"
        # Not PYTHONPATH, which fix takes for what is in front of the environment.
        start = f"import sys; sys.path[0] = {str(Path.cwd())!r}; {code}"
        argv = [sys.executable, "-c", start, "fix", "--venv", str(env), *words, *options]
        return subprocess.run(
            argv, env=self.environ, cwd="/", capture_output=True, text=True, check=False
        )


def library(env: Path, name: str) -> Path:
    return next(env.glob(f"lib/python*/site-packages/llama_cpp/lib/{name}"))


def lost_library(bench: Bench, env: Path) -> None:
    library(env, "libggml-cpu.so").unlink()


def bad_import(bench: Bench, env: Path) -> None:
    """A file that was cut off."""
    file = library(env, "libllama.so").parents[1] / "llama.py"
    file.write_bytes(file.read_bytes()[:5000])


def absent(bench: Bench, env: Path) -> None:
    argv = [sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "uninstall", "-qy"]
    subprocess.run([*argv, PACKAGE], check=True)


def cpu_only(bench: Bench, env: Path) -> None:
    """A build for the CPU, given or made here; the guide's old variables are set."""
    if not bench.cpu_wheel:
        absent(bench, env)
        told = bench.settings
        bench.settings = [*told, "accelerator=cpu"]
        made = bench.fix(env, "--yes")
        bench.settings = told
        assert made.returncode == 0, made.stdout + made.stderr
    assert not list(env.rglob(CUDA))
    bench.environ |= {"CMAKE_ARGS": "-DLLAMA_CUBLAS=on", "LLAMA_CUBLAS": "1"}


def architecture(bench: Bench, env: Path) -> None:
    """One translation unit holds code for a GPU that is not here, as all of them would."""
    assert faults.for_another_capability(library(env, CUDA), 120)


def cuda_version(bench: Bench, env: Path) -> None:
    """The loader looks for the runtime of another CUDA, as for a wheel that was made with it."""
    for path in library(env, CUDA).parent.glob("lib*.so"):
        data = path.read_bytes()
        for old, new in OTHER_MAJOR.items():
            if old in data:
                path.write_bytes(data.replace(old, new))
                break


KINDS: Mapping[str, tuple[Callable[[Bench, Path], None], str]] = {
    "library": (lost_library, "a library is gone"),
    "import": (bad_import, "a file is cut off"),
    "absent": (absent, "not installed"),
    "cpu_only": (cpu_only, "CPU-only build; LLAMA_CUBLAS set"),
    "architecture": (architecture, "code for another GPU"),
    "cuda_version": (cuda_version, "built for another CUDA"),
}


def others(env: Path) -> dict[str, str]:
    """RECORD of each distribution but llama-cpp-python, by its folder."""
    found = env.glob("lib/python*/site-packages/*.dist-info")
    return {
        one.name: (one / "RECORD").read_text()
        for one in found
        if not one.name.startswith("llama_cpp_python-")
    }


def told(result: dict[str, Any]) -> str:
    """The verdict, and why a GPU is BUSY."""
    busy = [one for gpu in result["gpus"] for one in (gpu["benchmark"] or {}).get("busy", [])]
    return f"{result['verdict']} ({'; '.join(busy)})" if busy else str(result["verdict"])


def measure(bench: Bench, kind: str) -> list[str]:
    """A row of the table; raises AssertionError where it is not mended."""
    spoil, words = KINDS[kind]
    before_environ = dict(bench.environ)
    env = bench.make(kind)
    spoil(bench, env)
    before = others(env)
    begun = time.monotonic()
    judged = bench.fix(env, "--check", "--json")
    judged_s = time.monotonic() - begun
    assert judged.returncode == 1, judged.stdout + judged.stderr
    found = [one["kind"] for one in json.loads(judged.stdout)["findings"] if one["red"]]
    assert kind in found or (kind == "import" and found), judged.stdout
    begun = time.monotonic()
    mended = bench.fix(env, "--yes")
    mended_s = time.monotonic() - begun
    print(mended.stdout, mended.stderr, file=sys.stderr)
    assert mended.returncode == 0, f"{kind}: exit code {mended.returncode}"
    assert others(env) == before, f"{kind}: another package changed"
    after = bench.fix(env, "--check", "--json")
    assert after.returncode == 0, after.stdout + after.stderr
    verdict = told(json.loads(after.stdout)["result"])
    bench.environ = before_environ
    same = f"{len(before)} the same"
    how = "built" if BUILDS.search(mended.stdout) else "its build was there"
    if not bench.wheel:
        bench.wheel = pack(env, bench.folder / "wheel")
    took = f"{mended_s:.0f} s, {how}"
    return [words, ", ".join(found), f"{judged_s:.0f} s", took, verdict, same]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--cpu-wheel", type=Path)
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument("--wheelhouse", default="")
    parser.add_argument("--set", action="append", default=["model=synthetic:160m-q4_0"])
    parser.add_argument("--csv", type=Path, help="the rows once more")
    parser.add_argument("kinds", nargs="*", metavar="KIND", default=[])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="llamafleet-fix-"))
    folder.chmod(0o755)
    bench = Bench(
        options.python,
        options.wheel,
        options.cpu_wheel,
        options.wheelhouse,
        options.set,
        folder,
    )
    failed, rows = 0, [["environment", "found", "judged in", "mended in", "then", "packages"]]
    for kind in options.kinds or ("library", "import", "absent"):
        try:
            rows.append(measure(bench, kind))
        except (AssertionError, subprocess.CalledProcessError) as error:
            failed += 1
            said = " ".join(str(error).split())[:300]
            rows.append([KINDS[kind][1], f"FAILED {said}", "", "", "", ""])
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
        if options.csv:
            # After each: what comes after it may be cut off.
            with options.csv.open("w", newline="") as file:
                csv.writer(file).writerows(rows)
    print()
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |" + ("\n" + "|---" * 6 + "|" if number == 0 else ""))
    shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
