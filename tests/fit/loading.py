"""Run by the interpreter of a build: what llama.cpp itself counts for a model and a context.

A request is a line of JSON on standard input, its answer one on standard output. With "gpus", GPUs
that only account (cuda_device.cpp) stand where CUDA's would; "load" loads and does not only count.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +([0-9.]+) MiB")
PRINT = "_Z16common_fit_printPKcP18llama_model_paramsP20llama_context_params"


def main() -> int:
    import llama_cpp as lib

    log: list[str] = []

    @lib.llama_log_callback
    def on_log(_level: int, text: bytes, _data: object) -> None:
        log.append(text.decode(errors="replace"))

    lib.llama_log_set(on_log, None)
    registered = False
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("gpus") and not registered:
            registered = True
            gpus = request["gpus"]
            device = ctypes.CDLL(request["device"])
            device.fakecuda_register(len(gpus), (ctypes.c_int * len(gpus))(*gpus))
        log.clear()
        begun = time.monotonic()
        told = load(lib, request) if request.get("load") else count(lib, request)
        text = "".join(log)
        told |= {"s": round(time.monotonic() - begun, 3), "buffers": buffers(text)}
        told |= {"log": text} if request.get("log") else {}
        print(json.dumps(told), flush=True)
    # What only accounts has nothing to free.
    os._exit(0)


def buffers(text: str) -> dict[str, dict[str, float]]:
    """MiB by device and kind."""
    found: dict[str, dict[str, float]] = {}
    for name, kind, mib in BUFFER.findall(text):
        kinds = found.setdefault(name, {})
        # A cache with a window has two of them; a graph that is reserved again has a later line.
        kinds[kind] = float(mib) + (kinds.get(kind, 0.0) if kind in ("KV", "model") else 0.0)
    return found


def parameters(lib: Any, request: dict[str, Any]) -> tuple[Any, Any]:
    model = lib.llama_model_default_params()
    model.n_gpu_layers = request["n_gpu_layers"]
    context = lib.llama_context_default_params()
    context.n_ctx = request["n_ctx"]
    context.n_batch = request.get("n_batch", 512)
    context.n_ubatch = min(context.n_batch, 512)
    context.n_seq_max = request.get("parallel", 1)
    context.type_k = context.type_v = {"f16": 1, "q4_0": 2, "q8_0": 8}[request["kv"]]
    context.flash_attn_type = 1 if request.get("flash", True) else 0
    context.swa_full = request.get("swa_full", True)
    return model, context


def count(lib: Any, request: dict[str, Any]) -> dict[str, Any]:
    """By common_fit_print, which prints MiB of model, context and compute for each device."""
    folder = Path(lib.__file__).parent / "lib"
    function = getattr(ctypes.CDLL(str(folder / "libllama-common.so")), PRINT)
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = None
    model, context = parameters(lib, request)
    reader, writer = os.pipe()
    kept = os.dup(1)
    os.dup2(writer, 1)
    function(os.fsencode(request["model"]), ctypes.byref(model), ctypes.byref(context))
    ctypes.CDLL(None).fflush(None)
    os.dup2(kept, 1)
    os.close(kept)
    os.close(writer)
    with os.fdopen(reader) as told:
        rows = [line.split() for line in told]
    return {"mib": {row[0]: [int(figure) for figure in row[1:]] for row in rows}}


def load(lib: Any, request: dict[str, Any]) -> dict[str, Any]:
    params, context = parameters(lib, request)
    model = lib.llama_model_load_from_file(os.fsencode(request["model"]), params)
    made = lib.llama_init_from_model(model, context) if model else None
    if made:
        lib.llama_free(made)
    if model:
        lib.llama_model_free(model)
    return {"model": bool(model), "context": bool(made)}


if __name__ == "__main__":
    sys.exit(main())
