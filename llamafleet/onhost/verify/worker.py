"""The child process that loads llama.cpp: the only module here that imports llama_cpp.

A CUDA error ends a process by abort(), so each task has a process of its own; the parent is
child.py. Standard input: one line of JSON, the request, then one line for every mark.
Standard output: lines of JSON, {"mark": NAME} (the worker waits for an answer before it goes on)
and at last {"reply": {...}} or {"error": TEXT}; first of all {"imported": {...}}, which llama_cpp
it is about to import. Standard error: llama.cpp's log, as it comes, so
that it is there even after an abort.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet.onhost.verify import bench, ggml, imported, llama_log
from llamafleet.onhost.verify.graph import Graph, Recorder

GENERATE_S = 3.0
"""Time to generate tokens while the parent watches the GPU's utilisation."""
PROMPT = 64
"""At 32 and more tokens the kernels for matrices run, below those for vectors."""
LOGITS_PROMPT, LOGITS_STEPS = 48, 16
"""From 64 tokens on a GPU without integer tensor cores leaves its own kernels for cuBLAS
(ggml_cuda_should_use_mmq)."""

_DEVICE_TYPES = {0: "CPU", 1: "GPU", 2: "IGPU", 3: "ACCEL", 4: "META"}  # ggml_backend_dev_type
_OURS = ("libllama", "libggml", "libmtmd")
_RUNTIME = ("libcuda", "libcublas", "libnvidia")

Request = dict[str, Any]


class TaskFailed(Exception):
    """A step of llama.cpp failed; its log says why."""


class DeviceProperties(ctypes.Structure):
    """struct ggml_backend_dev_props of ggml-backend.h, its last member as mere room."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", ctypes.c_char * 256),
    )


class Channel:
    """The lines to the parent. Whatever else prints to standard output goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def mark(self, name: str) -> None:
        """Tell the parent and wait until it has read the GPU's figures."""
        self.send({"mark": name})
        sys.stdin.readline()

    def step(self, step: int, steps: int, line: str) -> None:
        self.send({"step": step, "steps": steps, "line": line})


class Llama:
    """llama.cpp with its log going to standard error, its backends started."""

    def __init__(self) -> None:
        start = time.perf_counter()
        import llama_cpp
        from llama_cpp._ggml import libggml

        self.lib: Any = llama_cpp
        self._ggml = libggml
        self.timings = {"import_s": _since(start)}

        # Set before the backends start, as the CUDA lines are written once; kept, as the library
        # holds no reference of its own.
        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
        def log(level: int, text: bytes, data: object) -> None:
            with contextlib.suppress(OSError):
                os.write(2, text)

        self._log = log
        llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
        start = time.perf_counter()
        llama_cpp.llama_backend_init()
        self.devices = self._devices()
        self.timings["init_s"] = _since(start)

    def _function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        function = getattr(self._ggml, name)
        function.restype, function.argtypes = result, list(arguments)
        return function  # type: ignore[no-any-return]

    def _devices(self) -> list[dict[str, Any]]:
        """ggml's devices. Asking a GPU for its memory also makes its CUDA context."""
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        count = self._function("ggml_backend_dev_count", size)
        get = self._function("ggml_backend_dev_get", pointer, size)
        name = self._function("ggml_backend_dev_name", text, pointer)
        description = self._function("ggml_backend_dev_description", text, pointer)
        kind = self._function("ggml_backend_dev_type", ctypes.c_int, pointer)
        to_size = ctypes.POINTER(size)
        memory = self._function("ggml_backend_dev_memory", None, pointer, to_size, to_size)
        ask = self._function("ggml_backend_dev_get_props", None, pointer, pointer)
        result = []
        for index in range(count()):
            device = get(index)
            free, total = size(0), size(0)
            memory(device, ctypes.byref(free), ctypes.byref(total))
            told = DeviceProperties()
            ask(device, ctypes.byref(told))
            kind_of = kind(device)
            # By another layout the address would be read from anywhere: what has a function of
            # its own is compared. 0: CUDA would not tell the memory this once.
            totals = {told.memory_total, total.value} - {0}
            if (told.name, told.type) != (name(device), kind_of) or len(totals) > 1:
                raise TaskFailed(
                    f"ggml tells of a device in another form than is known (type {told.type}, "
                    f"{told.memory_total} bytes; expected {kind_of}, {total.value})"
                )
            result.append(
                {
                    "name": name(device).decode(),
                    "description": description(device).decode(),
                    "bus_id": told.device_id and told.device_id.decode().lower(),
                    "type": _DEVICE_TYPES.get(kind_of, "?"),
                    "free": free.value,
                    "total": total.value,
                }
            )
        return result

    def load(self, request: Request) -> Any:
        """The model. Raises TaskFailed."""
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = request["n_gpu_layers"]
        params.split_mode = self.lib.LLAMA_SPLIT_MODE_LAYER
        start = time.perf_counter()
        model = self.lib.llama_model_load_from_file(os.fsencode(request["model"]), params)
        self.timings["load_s"] = _since(start)
        if not model:
            raise TaskFailed(f"llama.cpp can't load {request['model']}")
        return model

    def context(self, model: Any, n_ctx: int, *, on_gpu: bool = True) -> Any:
        """A context for `n_ctx` tokens. Raises TaskFailed."""
        start = time.perf_counter()
        params = bench.context_params(self.lib, n_ctx, on_gpu=on_gpu)
        context = self.lib.llama_init_from_model(model, params)
        self.timings["context_s"] = _since(start)
        if not context:
            raise TaskFailed(f"llama.cpp can't make a context of {n_ctx} tokens")
        threads = bench.physical_cores()
        self.lib.llama_set_n_threads(context, threads, threads)
        return context

    def graph(self, model: Any, n_ctx: int) -> Request:
        """What a decode of one token shows, a `Graph`; in a context of its own, as no timed run
        has the callback. Raises TaskFailed and DecodeFailed."""
        lib, start = self.lib, time.perf_counter()
        try:
            recorder = Recorder(ggml.opened(self._ggml))
        except ggml.Unreadable as error:
            return asdict(Graph(problem=str(error)))
        os.write(2, f"\n{llama_log.GRAPH_MARK}\n".encode())
        callback = lib.ggml_backend_sched_eval_callback(recorder.see)
        params = bench.context_params(lib, n_ctx)
        params.cb_eval = callback
        context = lib.llama_init_from_model(model, params)
        if not context:
            raise TaskFailed(f"llama.cpp can't make a second context of {n_ctx} tokens")
        recorder.on = True
        bench.generate(lib, context, bench.Tokens(lib, model).singles(1))
        recorder.on = False
        memory = bool(lib.llama_get_memory(context))
        lib.llama_free(context)
        found = Graph(
            nodes=recorder.nodes,
            seen=recorder.seen(),
            devices={one["name"]: one["bus_id"] for one in self.devices if one["type"] == "GPU"},
            n_layer=lib.llama_model_n_layer(model),
            # Not there in older versions, which count all layers as one kind.
            n_layer_nextn=getattr(lib, "llama_model_n_layer_nextn", lambda _: 0)(model),
            memory=memory,
            seconds=_since(start),
            problem=recorder.problem,
        )
        return asdict(found)


def probe(llama: Llama, request: Request, channel: Channel) -> Request:
    """What is loaded and which devices it has; no model."""
    lib = llama.lib
    return {
        "llama_cpp_python": lib.__version__,
        "system_info": lib.llama_print_system_info().decode(),
        "supports_gpu_offload": bool(lib.llama_supports_gpu_offload()),
        "devices": llama.devices,
        "libraries": mapped_libraries(_OURS),
        "runtime_libraries": mapped_libraries(_RUNTIME),
    }


def generate(llama: Llama, request: Request, channel: Channel) -> Request:
    """Load, then generate for GENERATE_S seconds; marks for each step."""
    lib, n_ctx = llama.lib, request["n_ctx"]
    channel.mark("initialised")
    model = llama.load(request)
    channel.mark("loaded")
    context = llama.context(model, n_ctx)
    channel.mark("ready")
    tokens = bench.Tokens(lib, model)
    _die_if_asked(request)
    start = time.perf_counter()
    bench.process(lib, context, tokens.batches(PROMPT))
    bench.generate(lib, context, tokens.singles(1))
    llama.timings["first_decode_s"] = _since(start)
    memory = lib.llama_get_memory(context)
    made = 0
    channel.mark("generating")
    end = time.monotonic() + GENERATE_S
    while time.monotonic() < end:
        if made % (n_ctx // 2) == 0:
            lib.llama_memory_clear(memory, False)
        bench.generate(lib, context, tokens.singles(8))
        made += 8
    channel.mark("generated")
    lib.llama_free(context)
    reply = {"tokens": made, "graph": llama.graph(model, n_ctx)}
    lib.llama_model_free(model)
    return reply


def logits(llama: Llama, request: Request, channel: Channel) -> Request:
    """Logits of several models, each in turn; one that fails does not keep the others back.

    A line of the log marks where each begins.
    """
    found = []
    for number, path in enumerate(request["models"]):
        os.write(2, llama_log.mark(number).encode())
        try:
            found.append(_logits_of(llama, request | {"model": path}))
        except (TaskFailed, bench.DecodeFailed) as error:
            found.append({"error": str(error)})
    return {"models": found}


def _logits_of(llama: Llama, request: Request) -> Request:
    """Of every position of a fixed text: a prompt at once, for the kernels that multiply matrices,
    then token by token, for those that multiply a matrix with a vector."""
    lib = llama.lib
    model = llama.load(request)
    context = llama.context(
        model, LOGITS_PROMPT + LOGITS_STEPS, on_gpu=request["n_gpu_layers"] != 0
    )
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    tokens = bench.Tokens(lib, model).singles(LOGITS_PROMPT + LOGITS_STEPS)
    _die_if_asked(request)
    batch = lib.llama_batch_init(LOGITS_PROMPT, 0, 1)
    batch.n_tokens = LOGITS_PROMPT
    for position in range(LOGITS_PROMPT):
        batch.token[position] = tokens[position]
        batch.pos[position] = position
        batch.n_seq_id[position] = 1
        batch.seq_id[position][0] = 0
        batch.logits[position] = True
    code = lib.llama_decode(context, batch)
    lib.llama_batch_free(batch)
    if code != 0:
        raise TaskFailed(f"llama_decode returned {code}")
    rows = [_logits_row(lib, context, position, size) for position in range(LOGITS_PROMPT)]
    for token in tokens[LOGITS_PROMPT:]:
        bench.generate(lib, context, [token])
        rows.append(_logits_row(lib, context, -1, size))
    lib.llama_free(context)
    seen = llama.graph(model, LOGITS_PROMPT + LOGITS_STEPS)
    lib.llama_model_free(model)
    encoded = base64.b64encode(b"".join(rows)).decode()
    return {"n_vocab": size, "logits": encoded, "graph": seen}


def context(llama: Llama, request: Request, channel: Channel) -> Request:
    """The model with a context of the wished length, used by one full batch."""
    lib, n_ctx = llama.lib, request["n_ctx"]
    if request.get("limit_memory"):
        _limit_memory()
    model = llama.load(request)
    made = llama.context(model, n_ctx)
    _die_if_asked(request)
    bench.process(lib, made, bench.Tokens(lib, model).batches(min(bench.N_UBATCH, n_ctx)))
    reply = {"n_ctx": lib.llama_n_ctx(made)}
    lib.llama_free(made)
    lib.llama_model_free(model)
    return reply


def benchmark(llama: Llama, request: Request, channel: Channel) -> Request:
    """llama-bench's tests."""
    lib, sizes = llama.lib, request["bench"]
    discard = request["discard"]
    model = llama.load(request)
    _die_if_asked(request)
    steps = 2 * (discard + sizes["repetitions"])

    def on_repetition(kind: str, number: int) -> None:
        done = number + (steps // 2 if kind == "tg" else 0)
        channel.step(done, steps, f"{kind} repetition {number + 1} of {steps // 2}")

    channel.mark("measuring")
    settle_s = bench.SETTLE_S if request.get("settle") else 0.0
    tests = bench.Bench(
        lib, model, sizes["repetitions"], discard, on_repetition, channel.mark, settle_s
    )
    report = tests.run(sizes["prompt"], sizes["gen"])
    channel.mark("measured")
    lib.llama_model_free(model)
    return report


def outline(llama: Llama, request: Request, channel: Channel) -> Request:
    """Read a model's tables and no weights: does this llama.cpp know it, and miss nothing?"""
    lib = llama.lib
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    if hasattr(params, "no_alloc"):
        # Memory that is mapped would be that of the weights.
        params.no_alloc = True
        if hasattr(params, "load_mode"):
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        else:  # up to 0.3.34
            params.use_mmap = False
    else:
        params.vocab_only = True
    model = lib.llama_model_load_from_file(os.fsencode(request["model"]), params)
    if not model:
        raise TaskFailed(f"llama.cpp can't load {request['model']}")
    lib.llama_model_free(model)
    return {}


TASKS: dict[str, Callable[[Llama, Request, Channel], Request]] = {
    "probe": probe,
    "outline": outline,
    "generate": generate,
    "logits": logits,
    "context": context,
    "bench": benchmark,
}


def main() -> int:
    """Serve one request; 0 with a reply, 1 with an error."""
    channel = Channel()
    # A core file of a process with a model has its size.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        request = json.loads(sys.stdin.readline())
        channel.send({"imported": asdict(imported.look())})
        llama = Llama()
        reply = TASKS[request["task"]](llama, request, channel)
    except Exception as error:
        channel.send({"error": _said(error)})
        return 1
    channel.send({"reply": reply | {"timings": llama.timings}})
    return 0


def _said(error: Exception) -> str:
    """What went wrong; a name that llama_cpp lacks is its version's fault, and no model's."""
    text = f"{type(error).__name__}: {error}"
    module = getattr(error, "obj", None)
    if isinstance(error, AttributeError) and getattr(module, "__name__", "") == imported.PACKAGE:
        version = getattr(module, "__version__", "?")
        return f"{text}: this verification does not know llama-cpp-python {version}"
    return text


def mapped_libraries(prefixes: tuple[str, ...]) -> list[str]:
    """Files in this process's memory whose names begin so, by their real paths."""
    paths = set()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[5] if line.count("/") else ""
        if path.startswith("/") and path.rsplit("/", 1)[-1].startswith(prefixes):
            paths.add(path)
    return sorted(paths)


def _logits_row(lib: Any, context: Any, position: int, size: int) -> bytes:
    row = lib.llama_get_logits_ith(context, position)
    if not row:
        raise TaskFailed(f"llama.cpp gives no logits of position {position}")
    return ctypes.string_at(row, size * ctypes.sizeof(ctypes.c_float))


def _die_if_asked(request: Request) -> None:
    """A planted fault: end as llama.cpp does on a CUDA error."""
    if request.get("abort"):
        os.write(2, b"abort asked for by --abort-in\n")
        os.abort()


def _limit_memory() -> None:
    """No more than the memory now free: an allocation then fails here instead of waking the
    kernel's out-of-memory killer. Not for CUDA, which reserves address space beyond measure."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            limit = int(line.split()[1]) * 1024 + pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
