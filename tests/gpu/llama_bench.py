"""llamafleet's benchmark in turns with llama-bench, which is compiled from the tree that was built
and linked to the libraries it became.

`python -m tests.gpu.llama_bench --archive SDIST [--prefix BUILD] [--rounds N] [--out FILE]
MODEL...`: prints a row of the ratios for each model, as 7b-q4_0 and 160m-q4_0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llamafleet.settings import LLAMA_VERSION
from llamafleet.zipapps import host_zipapp
from tests.gpu.measure import LAYOUT, WHEELHOUSE

PROMPT, GEN, REPETITIONS = 512, 128, 20
ROUNDS = 5
"""In turns, each once more the first: a card that warms up or cools down favours neither."""

BENCH = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from llamafleet.onhost.verify.child import Children
run = Children(Path(sys.argv[2]), None).run(
    "bench", model=sys.argv[3], n_gpu_layers=-1, discard=0, settle=True,
    bench=json.loads(sys.argv[4]),
)
print(json.dumps(run.result))
"""


def source(folder: Path, archive: Path | None = None) -> Path:
    """llama.cpp's tree out of the source archive that the build took."""
    if archive is None:
        archives = Path(WHEELHOUSE or folder).glob("llama_cpp_python-*.tar.gz")
        archive = next(archives, None)
    if archive is None:
        argv = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            str(folder),
        ]
        subprocess.run([*argv, f"llama-cpp-python=={LLAMA_VERSION}"], check=True)
        archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


@dataclass(frozen=True)
class Rival:
    """Both programs, for one build."""

    python: str
    zipapp: str
    program: Path
    folder: Path

    @classmethod
    def of(cls, folder: Path, prefix: Path, archive: Path | None = None) -> Rival:
        """Only llama-bench's own code is compiled: the libraries are the ones under test."""
        tree, program = source(folder, archive), folder / "llama-bench"
        libraries = next(prefix.resolve().glob("lib/python*/site-packages/llama_cpp/lib"))
        argv = ["g++", "-O3", "-DNDEBUG", "-std=c++17"]
        argv += map(str, tree.glob("tools/llama-bench/*.cpp"))
        argv += [f"-I{tree / name}" for name in ("include", "ggml/include", "common", "vendor")]
        argv += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--allow-shlib-undefined"]
        argv += ["-lllama-common", "-lllama", "-lggml", "-lggml-base", "-lpthread"]
        subprocess.run([*argv, "-o", str(program)], check=True)
        zipapp = folder / "llamafleet-host.pyz"
        zipapp.write_bytes(host_zipapp())
        return cls(f"{prefix}/bin/python", str(zipapp), program, folder)

    def ours(self, model: str) -> dict[str, float]:
        """Median tokens per second of both tests, and the threads, in a fresh process."""
        told = json.dumps({"prompt": PROMPT, "gen": GEN, "repetitions": REPETITIONS})
        argv = [self.python, "-c", BENCH, self.zipapp, str(self.folder), model, told]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {kind: found[kind]["median_ts"] for kind in ("pp", "tg")} | {
            "threads": found["threads"]
        }

    def theirs(self, model: str, threads: float) -> dict[str, float]:
        """The same by llama-bench."""
        argv = [str(self.program), "-m", model, "-p", str(PROMPT), "-n", str(GEN), "-ngl", "99"]
        argv += ["-r", str(REPETITIONS), "-t", f"{threads:.0f}", "-o", "json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
        tests = json.loads(done.stdout)
        by_kind = {"pp": "n_prompt", "tg": "n_gen"}
        return {k: median(next(t for t in tests if t[n])["samples_ts"]) for k, n in by_kind.items()}


def in_turns(rival: Rival, model: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Figures of each round, and the ratio of their medians, ours to llama-bench's.

    One round before them counts for nothing: the card is warm after it.
    """
    threads = rival.ours(model)["threads"]
    rival.theirs(model, threads)
    ours: list[Mapping[str, float]] = []
    theirs: list[Mapping[str, float]] = []
    for number in range(rounds):
        if number % 2:
            theirs.append(rival.theirs(model, threads))
            ours.append(rival.ours(model))
        else:
            ours.append(rival.ours(model))
            theirs.append(rival.theirs(model, threads))
    return {
        "ratios": {kind: ratio(kind, ours, theirs) for kind in ("pp", "tg")},
        "ours": ours,
        "llama_bench": theirs,
    }


def ratio(
    kind: str, ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> float:
    return median(one[kind] for one in ours) / median(one[kind] for one in theirs)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.gpu.llama_bench", description=__doc__)
    parser.add_argument("--archive", type=Path, help="llama-cpp-python's source archive")
    parser.add_argument("--prefix", type=Path, default=Path(LAYOUT.current))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    parser.add_argument("models", nargs="+", metavar="SHAPE-TYPE")
    options = parser.parse_args()
    print(f"medians of {options.rounds} rounds in turns, {REPETITIONS} repetitions each")
    print("| model | pp512 | tg128 |\n|---|---|---|")
    found = {}
    with tempfile.TemporaryDirectory(prefix="llamafleet-bench-") as name:
        rival = Rival.of(Path(name), options.prefix, options.archive)
        for model in options.models:
            shape, kind = model.rsplit("-", 1)
            path = f"{name}/{model}.gguf"
            argv = [rival.python, rival.zipapp, "synth", "--shape", shape, "--type", kind]
            subprocess.run([*argv, "-o", path], check=True, stdout=sys.stderr)
            found[model] = in_turns(rival, path, options.rounds)
            told = found[model]["ratios"]
            print(f"| {model} | {told['pp']:.4f} | {told['tg']:.4f} |", flush=True)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1))
            Path(path).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
