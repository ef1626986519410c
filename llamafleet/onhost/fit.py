"""`fit` on a host: what of a model fits its GPUs, counted by the build that is there.

llama.cpp's own function counts, common_fit_print (common/fit.cpp): it reads the tables of a model
and plans its graph, and allocates nothing; 13 ms for a model of 8B. It stands in common/fit.h of
each release from 0.3.27 to 0.3.36; seen in the wheel of 0.3.36. Where it can't be asked, the header
tells. It runs in a process of its own: what it can't read ends that.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.fit import (
    CONTEXT,
    MIB,
    N_UBATCH,
    Count,
    Gpu,
    Need,
    Room,
    Use,
    by_header,
    driver,
)
from llamafleet.protocol.offer import Told, Wish, offer, wished
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape
from llamafleet.protocol.verify import ConfigError, load

COUNT = "fit-count"
PRINT = "_Z16common_fit_printPKcP18llama_model_paramsP20llama_context_params"
"""void common_fit_print(char const*, llama_model_params*, llama_context_params*)"""
GGML_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
"""enum ggml_type, ggml.h."""
FIGURES = 3
"""Of each device, in MiB rounded down: model, context, compute."""


class CountError(Exception):
    """llama.cpp does not count here; the text says why."""


def main(argv: Sequence[str]) -> int:
    """`fit --model FILE [--wish JSON] ...`: Told, or {"error": ...}, as one line of JSON."""
    parser = argparse.ArgumentParser(prog="fit", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--wish", default="{}", help="what is asked for, as JSON")
    parser.add_argument("--use", default="{}", help="how the model is used, as JSON")
    parser.add_argument("--reserve", type=int, default=0, help="MiB left free on each GPU")
    parser.add_argument("--verify", type=Path, help="verify.json: what llama.cpp gets of variables")
    options = parser.parse_args(argv)
    try:
        wish, use = decode(Wish, json.loads(options.wish)), decode(Use, json.loads(options.use))
        shape = shape_of(modelfile.read(options.model))
        environment = load(options.verify).environment if options.verify else {}
        with counter(options.model, environment) as ask:
            told = tell(shape, ask, wish, use, options.reserve)
    except (ModelError, CountError, ConfigError, DecodeError, OSError, ValueError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(asdict(told)))
    return 0


def tell(shape: Shape, ask: Counter, wish: Wish, use: Use, reserve_mib: int) -> Told:
    """Raises CountError where there is no GPU, or only llama.cpp could tell and does not."""
    gpus = _gpus(ask.hello())
    room = Room(gpus, reserve_mib, use)
    asked = wished(shape, wish, room)
    try:
        return Told(
            1, shape, room, offer(asked, wish, room, ask.counting(shape, room)), "llama.cpp"
        )
    except CountError as error:
        if shape.unknown:
            raise
        # The header's account takes what is free before CUDA's context is made.
        before = tuple(Gpu(gpu.free_mib + CONTEXT // MIB, gpu.name) for gpu in gpus)
        room = Room(before, reserve_mib, use)
        made = offer(asked, wish, room, by_header(shape, room))
        return Told(1, shape, room, made, "header", str(error))


def _gpus(told: Any) -> tuple[Gpu, ...]:
    rows = told.get("gpus") if isinstance(told, dict) else None
    if not rows:
        raise CountError(
            "found no GPU that the build sees; expected one; next: nvidia-smi -L, and "
            "llamafleet report"
        )
    return tuple(Gpu(int(row["free_mib"]), str(row["name"])) for row in rows)


class Counter:
    """The process that has llama.cpp loaded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hello(self) -> Any:
        return self._answer()

    def counting(self, shape: Shape, room: Room) -> Count:
        """Of each GPU, with what CUDA takes for itself beside its context, which is there:
        its kernels are loaded at their first use."""

        def count(placement: Placement) -> tuple[Need, ...]:
            rows = self._ask({"placement": asdict(placement), "use": asdict(room.use)})
            own = driver(shape, placement, room.use) - CONTEXT
            return tuple(_need(row, own) for row in rows)

        return count

    def _ask(self, request: dict[str, Any]) -> list[list[int]]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        rows = self._answer().get("rows")
        if not isinstance(rows, list):
            raise CountError("llama.cpp's answer holds no figures")
        return rows

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise CountError(f"llama.cpp could not count this model: its process ended ({status})")
        answer = json.loads(line)
        if "error" in answer:
            raise CountError(str(answer["error"]))
        return answer


def _need(row: list[int], own: int) -> Need:
    """`row`: MiB, which llama.cpp rounds down."""
    weights, context, compute = ((figure + 1) * MIB for figure in row)
    return Need(weights, context, compute, own)


def command(model: Path) -> list[str]:
    """Of the process that counts."""
    return [sys.executable, "-I", sys.argv[0], COUNT, os.fspath(model)]


@contextmanager
def counter(model: Path, environment: Mapping[str, str]) -> Iterator[Counter]:
    process = subprocess.Popen(
        command(model),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield Counter(process)
    finally:
        process.kill()
        # It also bears that the process took no more of what it was sent.
        process.communicate()


# -- the process that counts -----------------------------------------------------------------------


def count_main(argv: Sequence[str]) -> int:
    """`fit-count MODEL`: the GPUs, then the figures of each placement that is asked for."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        import llama_cpp
    except ImportError as error:
        print(json.dumps({"error": f"no build: {error}"}), file=out, flush=True)
        return 1
    llama: Any = llama_cpp

    @llama.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def quiet(_level: int, _text: bytes, _data: object) -> None:
        pass

    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    print(json.dumps({"gpus": devices()}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        placement = decode(Placement, request["placement"])
        try:
            rows = count(llama, Path(argv[0]), placement, decode(Use, request["use"]))
        except (AttributeError, OSError) as error:
            print(
                json.dumps({"error": f"this build does not count: {error}"}), file=out, flush=True
            )
            return 1
        print(json.dumps({"rows": rows}), file=out, flush=True)
    return 0


def devices() -> list[dict[str, Any]]:
    """Name and free MiB of each GPU, once CUDA has made its context on it."""
    from llama_cpp._ggml import libggml as ggml

    size, pointer, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    forms = {
        "count": (size,),
        "get": (pointer, size),
        "type": (ctypes.c_int, pointer),
        "description": (text, pointer),
        "memory": (None, pointer, ctypes.POINTER(size), ctypes.POINTER(size)),
    }
    of = {}
    for name, (result, *arguments) in forms.items():
        of[name] = getattr(ggml, f"ggml_backend_dev_{name}")
        of[name].restype, of[name].argtypes = result, arguments
    found = []
    for index in range(of["count"]()):
        device = of["get"](index)
        if of["type"](device) != 1:  # GGML_BACKEND_DEVICE_TYPE_GPU
            continue
        free, total = size(0), size(0)
        of["memory"](device, ctypes.byref(free), ctypes.byref(total))
        name = of["description"](device).decode(errors="replace")
        found.append({"name": name, "free_mib": free.value // MIB})
    return found


def count(llama: Any, model: Path, placement: Placement, use: Use) -> list[list[int]]:
    """MiB of model, context and compute of each GPU, by llama.cpp."""
    library = Path(llama.__file__).parent / "lib" / "libllama-common.so"
    function = getattr(ctypes.CDLL(os.fspath(library)), PRINT)
    function.restype, function.argtypes = None, [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    of_model = llama.llama_model_default_params()
    of_model.n_gpu_layers = placement.n_gpu_layers
    of_context = llama.llama_context_default_params()
    of_context.n_ctx = placement.n_ctx
    of_context.n_batch = placement.n_batch
    of_context.n_ubatch = min(placement.n_batch, N_UBATCH)
    of_context.n_seq_max = use.parallel
    of_context.type_k = of_context.type_v = GGML_TYPES[placement.kv_type]
    of_context.flash_attn_type = 1 if use.flash_attention else 0
    of_context.swa_full = use.swa_full
    with _printed() as lines:
        function(os.fsencode(model), ctypes.byref(of_model), ctypes.byref(of_context))
    # "CUDA0 4026 1024 258", and a last line for the host.
    rows = [line.split() for line in lines]
    return [list(map(int, row[1:])) for row in rows[:-1] if len(row) == FIGURES + 1]


@contextmanager
def _printed() -> Iterator[list[str]]:
    """What C's own printf writes meanwhile, in lines."""
    lines: list[str] = []
    reader, writer = os.pipe()
    kept = os.dup(1)
    os.dup2(writer, 1)
    os.close(writer)
    try:
        yield lines
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        with os.fdopen(reader, encoding="utf-8", errors="replace") as told:
            lines += told
