"""`python -m tests.gpu.fit OUT [PYZ]`: the accounting against a real GPU, as NVML sees it.

Run by the interpreter of a build for CUDA, with nvidia-ml-py, numpy and gguf; no other package is
needed. Models have real headers and holes for weights (tests/fit/ggufs.py). Each is loaded once,
and each context made, given one full batch and one token, and freed. Then: two GPUs, an out of
memory in each phase and what is tried after it, and PYZ (the zipapp) asked what fits.
Writes OUT/fit.json and OUT/fit.md. 4 minutes of two H100.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.protocol.fit import MIB, Gpu, Room, Use, needs
from llamafleet.protocol.oom import read, reduced
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape
from tests.fit import ggufs

MODELS = ("dense", "moe", "swa", "long", "gpt-oss")
CONTEXTS = (4096, 16384, 32768)
KINDS = ("f16", "q8_0")
HOLD = Path(__file__).with_name("load.py")
TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}


def main() -> int:
    if sys.argv[1] == "child":
        return child(json.loads(sys.argv[2]))
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    out = Path(sys.argv[1])
    told: dict[str, Any] = {"rows": [], "ooms": []}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as text:
        folder = Path(text)
        for name in MODELS:
            path = ggufs.write(folder / f"{name}.gguf", ggufs.MODELS[name])
            placements = [Placement(-1, ctx, kv) for ctx in CONTEXTS for kv in KINDS]  # type: ignore[arg-type]
            told["rows"] += measured(name, path, placements, "0")
            save(out, told)
        pair = [Placement(-1, 16384, "f16"), Placement(20, 16384, "q8_0")]
        for one in pair:
            told["rows"] += measured("dense", folder / "dense.gguf", [one], "0,1")
        told["ooms"] = ooms(folder / "dense.gguf")
        save(out, told)
        told["in use"] = in_use(folder)
        if len(sys.argv) > 2:
            told["host"] = asked(Path(sys.argv[2]), folder / "dense.gguf")
    save(out, told)
    return 0


def save(out: Path, told: dict[str, Any]) -> None:
    (out / "fit.json").write_text(json.dumps(told, indent=1))
    table = markdown(told["rows"])
    (out / "fit.md").write_text(table)
    print(table.splitlines()[-1], flush=True)


def shape(path: Path) -> Shape:
    return shape_of(modelfile.read(path))


def run(request: dict[str, Any], gpus: str, **more: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
    argv = [sys.executable, "-m", "tests.gpu.fit", "child", json.dumps(request)]
    return subprocess.run(
        argv, env=env, capture_output=True, text=True, check=False, timeout=300, **more
    )


def measured(name: str, path: Path, placements: list[Placement], gpus: str) -> list[dict[str, Any]]:
    """A row for each GPU and placement."""
    request = {"model": str(path), "placements": [asdict(one) for one in placements]}
    done = run(request | {"gpus": gpus}, gpus)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return [{"name": name, "gpus": gpus, "error": done.stderr[-2000:]}]
    free, found = lines[0]["free_mib"], shape(path)
    rows = []
    for line in lines[1:]:
        placement = Placement(**line["placement"])
        account = needs(found, placement, Room(tuple(map(Gpu, free)), 0, Use()))
        for number, need in enumerate(account):
            used = line["used_mib"][number]
            rows.append({
                "name": name, "gpus": gpus, "gpu": number, "placement": line["placement"],
                "used_mib": used, "counted_mib": need.total_mib, "need": asdict(need),
                "buffers": line["buffers"].get(f"CUDA{number}"), "own": line["own"],
                "error": (need.total_mib - used) / max(used, 1), "s": line["s"],
            })  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | GPU | n_ctx | KV | layers | used, by NVML | counted | error |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        if "placement" not in row:
            lines.append(f"| {row['name']} | failed: {row['error'][-200:]!r} |")
            continue
        place = row["placement"]
        lines.append(
            f"| {row['name']} | {row['gpu']} of {row['gpus']} | {place['n_ctx']} | "
            f"{place['kv_type']} | {place['n_gpu_layers']} | {row['used_mib']} MiB | "
            f"{row['counted_mib']} MiB | {row['error']:+.1%} |"
        )
    return "\n".join(lines) + "\n"


# -- out of memory ---------------------------------------------------------------------------------


def free_mib(index: int = 0) -> int:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) // MIB


def ooms(path: Path) -> list[dict[str, Any]]:
    """With so little left that a phase fails: what is read of it, and whether what is tried
    then works, until it does."""
    found, rows = shape(path), []
    asked = Placement(-1, 16384)
    (need,) = needs(found, asked, Room((Gpu(80_000),)))
    whole = need.total_mib
    for phase, left in (("weights", 2500), ("context", 5500), ("compute", whole - 200)):
        with holding(left):
            placement: Placement | None = asked
            tries = []
            while placement is not None and len(tries) < 4:
                done = run({"model": str(path), "placements": [asdict(placement)], "gpus": "0",
                            "log": True}, "0")  # fmt: skip
                oom = read(done.stderr.splitlines())
                said, what = (str(oom), oom.phase) if oom else ("", None)
                tries.append({"placement": asdict(placement), "rc": done.returncode,
                              "oom": said, "read": what})  # fmt: skip
                if oom is None:
                    break
                room = Room((Gpu(free_mib()),), 256, Use())
                placement = reduced(placement, oom, found.layers, found, room)
            rows.append({"phase": phase, "left_mib": left, "tries": tries, "log": [
                line for line in done.stderr.splitlines() if "alloc" in line or "error" in line
            ][-8:]})  # fmt: skip
    return rows


class holding:
    """Another process takes all of GPU 0 but `left` MiB."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __enter__(self) -> None:
        # Its own context is some 500 MiB.
        take = max(free_mib() - self.left - 600, 1)
        self.process = subprocess.Popen(
            [sys.executable, HOLD, str(take), "hold"], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def in_use(folder: Path) -> dict[str, Any]:
    """A model in f16 whose context is there, and then nothing is left for what CUDA takes."""
    path = ggufs.write(folder / "half.gguf", ggufs.MODELS["small"], "F16")
    request = {"model": str(path), "placements": [asdict(Placement(-1, 4096))], "gpus": "0"}
    argv = [sys.executable, "-m", "tests.gpu.fit", "child",
            json.dumps(request | {"log": True, "wait": True})]  # fmt: skip
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=log, text=True)  # fmt: skip
        assert process.stdout is not None
        while not process.stdout.readline().startswith('{"waits"'):
            if process.poll() is not None:
                break
        with holding(60):
            process.communicate("go\n", timeout=120)
        log.seek(0)
        lines = log.read().splitlines()
    found = read(lines)
    last = [line for line in lines if "rror" in line or "device:" in line][-8:]
    phase = found and found.phase
    return {"rc": process.returncode, "oom": str(found), "phase": phase, "log": last}


def asked(pyz: Path, path: Path) -> dict[str, Any]:
    """The zipapp's own command on this host."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-I", pyz, "fit", "--model", path, "--reserve", "1024"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"error": done.stderr}
    answer.pop("shape", None)
    return {"s": round(time.monotonic() - begun, 2), "answer": answer}


# -- the process that loads ------------------------------------------------------------------------


def child(request: dict[str, Any]) -> int:
    import ctypes

    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(int(one)) for one in request["gpus"].split(",")]

    def free() -> list[int]:
        return [int(pynvml.nvmlDeviceGetMemoryInfo(one).free) // MIB for one in handles]

    before = free()
    print(json.dumps({"free_mib": before}), flush=True)
    import llama_cpp

    from tests.fit.loading import buffers

    lib: Any = llama_cpp
    log: list[str] = []

    @lib.llama_log_callback
    def on_log(_level: int, text: bytes, _data: object) -> None:
        log.append(text.decode(errors="replace"))
        if request.get("log"):
            os.write(2, text)

    lib.llama_log_set(on_log, ctypes.c_void_p(0))
    model = None
    for one in request["placements"]:
        begun = time.monotonic()
        if model is None:
            params = lib.llama_model_default_params()
            params.n_gpu_layers = one["n_gpu_layers"]
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
            model = lib.llama_model_load_from_file(os.fsencode(request["model"]), params)
            if not model:
                return 3
            of_model = buffers("".join(log))
        log.clear()
        made = _context(lib, model, one)
        if not made:
            return 4
        if request.get("wait"):
            print(json.dumps({"waits": True}), flush=True)
            sys.stdin.readline()
        for count in (min(512, one["n_batch"]), 1):
            tokens = (lib.llama_token * count)(*range(count))
            if lib.llama_decode(made, lib.llama_batch_get_one(tokens, count)):
                return 5
        lib.llama_synchronize(made)
        used = [was - now for was, now in zip(before, free(), strict=True)]
        found = buffers("".join(log))
        merged = {
            name: of_model.get(name, {}) | found.get(name, {}) for name in {*of_model, *found}
        }
        own = _own(lib, request["model"], one)
        print(json.dumps({"placement": one, "used_mib": used, "buffers": merged, "own": own,
                          "s": round(time.monotonic() - begun, 2)}), flush=True)  # fmt: skip
        lib.llama_free(made)
    return 0


def _context(lib: Any, model: Any, one: dict[str, Any]) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch = one["n_ctx"], one["n_batch"]
    params.n_ubatch = min(one["n_batch"], 512)
    params.type_k = params.type_v = TYPES[one["kv_type"]]
    params.flash_attn_type = 1
    return lib.llama_init_from_model(model, params)


def _own(lib: Any, model: str, one: dict[str, Any]) -> Any:
    """llama.cpp's own count."""
    from llamafleet.onhost import fit

    try:
        return fit.count(lib, Path(model), Placement(**one), Use())
    except (AttributeError, OSError) as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
