"""`python -m tests.gpu.fit OUT [PYZ]`: the accounting against a real GPU, as NVML sees it.

Run by the interpreter of a build for CUDA, with nvidia-ml-py, numpy and gguf; no other package is
needed. Models have real headers and holes for weights (tests/fit/ggufs.py). Each is loaded once,
and each context made, filled to its end, given one token more, and freed. Then: two GPUs, an out
of memory in each phase and what is tried after it, and PYZ (the zipapp) asked what fits.
Writes OUT/fit.json and OUT/fit.md. Exit status 0: all was measured, none is under-estimated, and
none is more than 5 % too high.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.protocol.fit import MIB, Gpu, Need, Room, Use, base, needs
from llamafleet.protocol.oom import read, reduced
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape
from tests.fit import ggufs

MODELS = ("dense", "moe", "swa", "long", "gpt-oss")
CONTEXTS = (4096, 16384, 32768)
KINDS = ("f16", "q8_0")
HOLD = Path(__file__).with_name("load.py")
TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
MOST_ERROR = 0.05
SAID = re.compile("fail|rror|unable")
FILL_S = 15.0
"""A context is filled for so long at most."""


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
            save(out, told)
        steps: list[tuple[str, Callable[[], Any]]] = [
            ("ooms", lambda: ooms(folder / "dense.gguf", own_mib(told["rows"]))),
            ("in use", lambda: in_use(folder)),
        ]
        if len(sys.argv) > 2:
            steps.append(("host", lambda: asked(Path(sys.argv[2]), folder / "dense.gguf")))
        for step, act in steps:
            try:
                told[step] = act()
            except Exception as error:  # What comes after it is measured all the same.
                told[step] = {"failed": repr(error)}
            save(out, told)
            print(json.dumps({step: told[step]}, indent=1), flush=True)
    print((out / "fit.md").read_text(), flush=True)
    return 0 if not wrong(told["rows"]) else 1


def save(out: Path, told: dict[str, Any]) -> None:
    (out / "fit.json").write_text(json.dumps(told, indent=1))
    rows = told["rows"]
    (out / "fit.md").write_text(f"{markdown(rows)}\n{judged(rows)}\n")
    print(f"{len(rows)} rows: {judged(rows).splitlines()[0]}", flush=True)


# -- what it comes to ------------------------------------------------------------------------------


def good(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "used_mib" in row]


def wrong(rows: list[dict[str, Any]]) -> list[str]:
    """What is not as it should be, of all that was to be measured."""
    found = [
        f"{row['name']} on {row['gpus']}: {row['failed'][-300:]}" for row in rows if "failed" in row
    ]
    for row in good(rows):
        what = f"{row['name']} {row['placement']['n_ctx']} {row['placement']['kv_type']}"
        if row["error"] < 0:
            found.append(f"{what}: too little by {row['used_mib'] - row['counted_mib']} MiB")
        if row["error"] > MOST_ERROR:
            found.append(f"{what}: {row['error']:+.1%}")
        if row["filled"] < row["placement"]["n_ctx"] - 1:
            found.append(f"{what}: only {row['filled']} tokens of the context were filled")
    wanted = len(MODELS) * len(CONTEXTS) * len(KINDS)
    there = sum(row["gpus"] == "0" for row in good(rows))
    return found + ([f"{there} of {wanted} rows of one GPU"] if there != wanted else [])


def own_mib(rows: list[dict[str, Any]]) -> float:
    """The most that CUDA takes for its context and kernels, beside cuBLAS's workspace and pools."""
    return float(max(row["own_mib"] for row in good(rows)))


def judged(rows: list[dict[str, Any]]) -> str:
    lines = wrong(rows) or [f"all {len(rows)} rows: none too low, none above 5 %"]
    for title, key in (
        ("context alone, before the model", "context_mib"),
        ("beside llama.cpp's own buffers, in all", "rest_mib"),
        ("of it fit.base, without cuBLAS and pools", "own_mib"),
    ):
        if figures := [row[key] for row in good(rows)]:
            lines.append(f"CUDA {title}: {min(figures):.0f} to {max(figures):.0f} MiB")
    for experts in (False, True):
        if some := [row for row in good(rows) if row["experts"] == experts]:
            kind = "models with experts" if experts else "other models"
            now = some[0]["base_mib"]
            lines.append(f"fit.base of {kind}: {now} MiB; measured at most {own_mib(some):.0f} MiB")
    return "\n".join(lines)


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
    done = run(request | {"gpus": gpus, "fill": True}, gpus)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows: list[dict[str, Any]] = []
    if lines:
        free, found = lines[0]["free_mib"], shape(path)
        for line in lines[1:]:
            placement = Placement(**line["placement"])
            account = needs(found, placement, Room(tuple(map(Gpu, free)), 0, Use()))
            own = base(found)
            rows += [row(name, gpus, number, line, need) | {
                "experts": bool(found.experts), "base_mib": own // MIB,
                "own_mib": rest_mib(line, number) - (need.driver - own) / MIB,
            } for number, need in enumerate(account)]  # fmt: skip
    if done.returncode or not lines:
        failed = f"exit status {done.returncode}: {done.stderr[-1500:]}"
        rows.append({"name": name, "gpus": gpus, "failed": failed})
    return rows


def rest_mib(line: dict[str, Any], number: int) -> float:
    """What is used of one GPU beside llama.cpp's own buffers."""
    return float(line["used_mib"][number] - sum(line["buffers"].get(f"CUDA{number}", {}).values()))


def row(name: str, gpus: str, number: int, line: dict[str, Any], need: Need) -> dict[str, Any]:
    used, buffers = line["used_mib"][number], line["buffers"].get(f"CUDA{number}", {})
    return {
        "name": name, "gpus": gpus, "gpu": number, "placement": line["placement"],
        "used_mib": used, "counted_mib": need.total_mib, "need": asdict(need), "buffers": buffers,
        "own": line["own"], "error": (need.total_mib - used) / max(used, 1), "s": line["s"],
        "filled": line["filled"], "context_mib": line["context_mib"][number],
        "rest_mib": rest_mib(line, number),
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | GPU | n_ctx | KV | layers | used, by NVML | counted | error |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | {row['gpus']} | failed: {row['failed'][-200:]!r} |")
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


def ooms(path: Path, own: float) -> list[dict[str, Any]]:
    """With so little left that a phase fails: what is read of it, and whether what is tried
    then works, until it does. `own`: MiB that CUDA takes before llama.cpp has anything."""
    found, rows = shape(path), []
    asked = Placement(-1, 16384)
    (need,) = needs(found, asked, Room((Gpu(80_000),)))
    half = [size / MIB / 2 for size in (need.weights, need.context, need.compute)]
    for number, phase in enumerate(("weights", "context", "compute")):
        left = int(own + sum(2 * size for size in half[:number]) + half[number])
        with holding(left):
            placement: Placement | None = asked
            tries: list[dict[str, Any]] = []
            log: list[str] = []
            while placement is not None and len(tries) < 4:
                done = run({"model": str(path), "placements": [asdict(placement)], "gpus": "0",
                            "log": True}, "0")  # fmt: skip
                oom = read(done.stderr.splitlines())
                said, what = (str(oom), oom.phase) if oom else ("", None)
                tries.append({"placement": asdict(placement), "rc": done.returncode,
                              "oom": said, "read": what})  # fmt: skip
                if oom is None:
                    break
                log += [line for line in done.stderr.splitlines() if SAID.search(line)][-8:]
                room = Room((Gpu(free_mib()),), 256, Use())
                placement = reduced(placement, oom, found.layers, found, room)
            rows.append({"phase": phase, "left_mib": left, "tries": tries, "log": log})  # fmt: skip
    return rows


class holding:
    """Another process takes all of GPU 0 but `left` MiB."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __enter__(self) -> None:
        env = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
        # Its own context is some 500 MiB: what it takes is found by trying.
        for take in range(free_mib() - self.left - 400, 0, -32):
            self.process = subprocess.Popen(
                [sys.executable, HOLD, str(take), "hold"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
            )  # fmt: skip
            assert self.process.stdout is not None
            if self.process.stdout.readline() and free_mib() >= self.left:
                return
            self.process.kill()
            self.process.wait()

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
        with holding(0):
            process.communicate("go\n", timeout=120)
        log.seek(0)
        lines = log.read().splitlines()
    found = read(lines)
    last = [line for line in lines if SAID.search(line) or "device:" in line][-8:]
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

    from llamafleet.onhost.fit import devices
    from tests.fit.loading import buffers

    lib: Any = llama_cpp
    devices()  # Which makes CUDA's context on each.
    of_context = [was - now for was, now in zip(before, free(), strict=True)]
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
        filled = _filled(lib, made, one, request.get("fill", False))
        if not filled:
            return 5
        used = [was - now for was, now in zip(before, free(), strict=True)]
        found = buffers("".join(log))
        merged = {
            name: of_model.get(name, {}) | found.get(name, {}) for name in {*of_model, *found}
        }
        own = _own(lib, request["model"], one)
        print(json.dumps({"placement": one, "used_mib": used, "buffers": merged, "own": own,
                          "context_mib": of_context, "filled": filled,
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


def _filled(lib: Any, made: Any, one: dict[str, Any], whole: bool) -> int:
    """Tokens that were computed: the context's, and one at a time at its end; 0: it failed."""
    batch, end = min(512, one["n_batch"]), time.monotonic() + FILL_S
    done = 0
    while done + batch < one["n_ctx"] and (whole or not done) and time.monotonic() < end:
        if not _decoded(lib, made, batch):
            return 0
        done += batch
        lib.llama_synchronize(made)
    # The last batch is a shorter one, and then there is room for one token.
    rest = one["n_ctx"] - done - 1 if whole and time.monotonic() < end else 0
    for count in (rest, 1):
        if count and not _decoded(lib, made, min(count, batch)):
            return 0
        done += min(count, batch)
    lib.llama_synchronize(made)
    return done


def _decoded(lib: Any, made: Any, count: int) -> bool:
    tokens = (lib.llama_token * count)(*range(count))
    return not lib.llama_decode(made, lib.llama_batch_get_one(tokens, count))


def _own(lib: Any, model: str, one: dict[str, Any]) -> Any:
    """llama.cpp's own count."""
    from llamafleet.onhost import fit

    try:
        return fit.count(lib, Path(model), Placement(**one), Use())
    except (AttributeError, OSError) as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
