"""`python -m tests.bench.fit TREE [--record]`: the accounting against llama.cpp's, without GPUs.

TREE is the unpacked source archive of the build in LLAMAFLEET_TEST_PYTHON: its headers make the
GPUs that only account (tests/fit/cuda_device.cpp). Prints the table of docs/fit.md; --record writes
what llama.cpp said for tests/protocol/test_fit.py. 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.protocol.fit import MIB, Gpu, Need, Room, Use, needs
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape
from tests.fit import ggufs

PYTHON = os.environ.get("LLAMAFLEET_TEST_PYTHON", "")
HERE = Path(__file__).resolve().parents[1]
RECORD = HERE / "protocol/data/counted.json"
CONTEXTS = (4096, 16384, 65536)
KINDS = ("f16", "q8_0")
MACHINES = ((200_000,), (60_000, 60_000), (60_000, 24_000, 60_000, 48_000))


def device(tree: Path, folder: Path) -> Path:
    """The library of the GPUs that only account."""
    libraries = next(Path(PYTHON).parents[1].glob("lib/python*/site-packages/llama_cpp/lib"))
    made, headers = folder / "device.so", tree / "vendor/llama.cpp/ggml"
    argv: list[str | Path] = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC"]
    argv += [f"-I{headers}/include", f"-I{headers}/src", HERE / "fit/cuda_device.cpp"]
    argv += ["-o", made, f"-L{libraries}", "-lggml", "-lggml-base", "-lggml-cpu"]
    subprocess.run([*argv, f"-Wl,-rpath,{libraries}"], check=True)
    return made


def ask(requests: list[dict[str, Any]], library: Path, gpus: tuple[int, ...]) -> list[Any]:
    """llama.cpp's answers, all of one process."""
    lines = (json.dumps(one | {"gpus": gpus, "device": str(library)}) for one in requests)
    done = subprocess.run(
        [PYTHON, "-I", HERE / "fit/loading.py"],
        input="".join(f"{line}\n" for line in lines),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def accounted(shape: Shape, request: dict[str, Any], gpus: tuple[int, ...]) -> tuple[Need, ...]:
    placement = Placement(
        request["n_gpu_layers"], request["n_ctx"], request["kv"], request.get("n_batch", 512)
    )
    use = Use(request.get("parallel", 1), request.get("flash", True), request.get("swa_full", True))
    return needs(shape, placement, Room(tuple(map(Gpu, gpus)), 0, use))


def plain(name: str, layers: int) -> Iterator[dict[str, Any]]:
    """What the issue's bar asks for: whole, at three contexts and two types."""
    for n_ctx in CONTEXTS:
        for kv in KINDS:
            yield {"name": name, "n_gpu_layers": layers + 1, "n_ctx": n_ctx, "kv": kv}


def drawn(name: str, layers: int, rng: random.Random) -> dict[str, Any]:
    """Anything that may be asked for."""
    some = rng.randint(1, layers + 1)
    return {
        "name": name,
        "n_gpu_layers": rng.choice([layers + 1, layers + 1, some]),
        "n_ctx": rng.choice([512, 2048, 5000, 8192, 32768, 131072]),
        "kv": rng.choice(["f16", "q8_0", "q4_0"]),
        "n_batch": rng.choice([512, 512, 128]),
        "parallel": rng.choice([1, 1, 4]),
        "swa_full": rng.choice([True, False]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=10, help="of each model and machine")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    recorded: list[dict[str, Any]] = []
    errors: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        library = device(options.tree, folder)
        files = {name: ggufs.write(folder / f"{name}.gguf", model)
                 for name, model in ggufs.MODELS.items()}  # fmt: skip
        shapes = {name: shape_of(modelfile.read(path)) for name, path in files.items()}
        for gpus in MACHINES:
            requests = [one for name, shape in shapes.items() for one in (
                *(plain(name, shape.layers) if len(gpus) == 1 else ()),
                *(drawn(name, shape.layers, rng) for _ in range(options.draws)),
            )]  # fmt: skip
            told = ask(
                [one | {"model": str(files[one["name"]])} for one in requests], library, gpus
            )
            for request, answer in zip(requests, told, strict=True):
                row = request | {"machine": gpus, "mib": exact(answer)}
                recorded.append(row)
                _compare(row, accounted(shapes[request["name"]], request, gpus), shapes, errors)
    print(table(errors))
    if options.record:
        RECORD.write_text("[\n" + ",\n".join(map(json.dumps, recorded)) + "\n]\n")
    return 0


def exact(answer: dict[str, Any]) -> list[list[float]]:
    """MiB of model, context and compute of each GPU; the last with llama.cpp's decimals."""
    rows = {name: row for name, row in answer["mib"].items() if name.startswith("CUDA")}
    log = answer["buffers"]
    return [[*row[:2], log.get(name, {}).get("compute", row[2])] for name, row in rows.items()]


def _compare(
    row: dict[str, Any],
    accounts: tuple[Need, ...],
    shapes: dict[str, Shape],
    errors: dict[tuple[str, ...], list[tuple[float, float]]],
) -> None:
    whole = row["n_gpu_layers"] > shapes[row["name"]].layers
    kind = "whole" if whole else "in part"
    is_plain = whole and "n_batch" not in row
    key = (row["name"], kind) if is_plain else ("others", f"{kind}, {len(row['machine'])} GPUs")
    for need, real in zip(accounts, row["mib"], strict=True):
        counted, said = (need.weights + need.context + need.compute) / MIB, sum(real)
        # llama.cpp rounds the first two down.
        error = counted - said - 2 if counted > said + 2 else min(counted - said, 0)
        errors[key].append((error / said if said else 0.0, error))
        if counted < said:
            print(f"TOO LITTLE: {row}: {counted:.1f} < {said:.1f}", file=sys.stderr)


def table(errors: dict[tuple[str, ...], list[tuple[float, float]]]) -> str:
    """Markdown."""
    lines = [
        "| model | | figures | least error | most error | most MiB |",
        "|---|---|---|---|---|---|",
    ]
    for (name, kind), rows in errors.items():
        shares, mib = zip(*rows, strict=True)
        lines.append(
            f"| {name} | {kind} | {len(rows)} | {min(shares):+.2%} | {max(shares):+.2%} "
            f"| {max(mib, key=abs):+.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
