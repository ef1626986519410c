"""llama-bench's measurement, through llama-cpp-python's C interface.

The protocol is that of tools/llama-bench/llama-bench.cpp at llama.cpp 0.5.0-dev: prompt processing
(pp) and token generation (tg) are two tests with a context of their own; a warm-up of the whole
prompt, or of one token; per repetition an empty cache, random tokens, one synchronisation at the
end of a prompt and one after every generated token; no sampling. What differs: the tokens are
drawn before the clock starts, and the median is reported besides, as the first repetition of a
prompt is slow on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

DECODE = 1
"""LLAMA_PROCESS_TYPE_DECODE of llama.h."""
N_BATCH, N_UBATCH = 2048, 512
"""llama-bench's defaults, and llama.cpp's."""

SETTLE_S = 3.0
"""Of one test. An H200 was at its highest clock within 0.3 s."""
STEADY = 0.01
"""Two repetitions agree: a free card's differ by less than this."""


class DecodeFailed(Exception):
    """llama_decode returned an error."""


def physical_cores() -> int:
    """Cores that this process may use, without hyper-threads.

    llama-bench takes all cores of the machine, and only the fast ones of a hybrid CPU.
    """
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text(encoding="ascii").strip())
        except OSError:
            return max(1, len(os.sched_getaffinity(0)))
    return max(1, len(siblings))


def context_params(lib: Any, n_ctx: int, *, on_gpu: bool = True) -> Any:
    """llama-bench's context; with `on_gpu` false neither cache nor operations go to a GPU."""
    params = lib.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch, params.n_ubatch = N_BATCH, N_UBATCH
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.offload_kqv = params.op_offload = on_gpu
    params.embeddings = params.swa_full = False
    return params


def summarise(n: int, rates: list[float], discard: int) -> dict[str, Any]:
    """One test's figures; the standard deviation is the sample's (n - 1), as llama-bench's."""
    kept = rates[discard:]
    return {
        "n": n,
        "repetitions": len(kept),
        "samples_ts": [round(rate, 3) for rate in kept],
        "median_ts": round(median(kept), 3),
        "mean_ts": round(fmean(kept), 3),
        "stdev_ts": round(stdev(kept), 3) if len(kept) > 1 else 0.0,
        "discarded_ts": [round(rate, 3) for rate in rates[:discard]],
    }


@dataclass(frozen=True)
class Bench:
    """The tests of one loaded model."""

    lib: Any
    model: Any
    repetitions: int
    discard: int
    """Repetitions before those that count."""
    on_repetition: Callable[[str, int], object]
    """Called outside the clock, with the test and the number of the repetition."""
    on_mark: Callable[[str], object] = lambda name: None
    """Called before the first repetition that counts, with the test, and behind the last one, with
    the test and "done"."""
    settle_s: float = 0.0
    """Longest time to warm up in addition to llama-bench's, until two repetitions agree."""

    def run(self, prompt: int, gen: int) -> dict[str, Any]:
        """Both tests, in tokens per second. Raises DecodeFailed."""
        threads = physical_cores()
        return {
            "threads": threads,
            "pp": self._test("pp", prompt, threads),
            "tg": self._test("tg", gen, threads),
        }

    def _test(self, kind: str, n: int, threads: int) -> dict[str, Any]:
        lib = self.lib
        context = lib.llama_init_from_model(self.model, context_params(lib, n))
        if not context:
            raise DecodeFailed(f"no context of {n} tokens for the {kind} test")
        pool = ThreadPool(threads)
        try:
            lib.llama_set_n_threads(context, threads, threads)
            pool.attach(lib, context)
            memory = lib.llama_get_memory(context)
            tokens = Tokens(lib, self.model)
            lib.llama_memory_clear(memory, False)
            if kind == "pp":
                process(lib, context, tokens.batches(n))
            else:
                generate(lib, context, tokens.singles(1))

            def rate() -> float:
                """Tokens per second of one repetition."""
                work = _prompt if kind == "pp" else _generation
                with work(lib, context, tokens, n) as run:
                    lib.llama_memory_clear(memory, False)
                    gc.disable()
                    start = time.perf_counter_ns()
                    run()
                    spent = time.perf_counter_ns() - start
                    gc.enable()
                return n * 1e9 / spent

            if self.settle_s:
                settle(rate, self.settle_s)
            rates = []
            self.on_mark(kind)
            for number in range(self.discard + self.repetitions):
                self.on_repetition(kind, number)
                rates.append(rate())
            self.on_mark(f"{kind} done")
            return summarise(n, rates, self.discard)
        finally:
            lib.llama_free(context)
            pool.free()


def settle(
    rate: Callable[[], float], seconds: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Repeat until two in a row agree: a cold card raises its clocks under load only, and its first
    prompt was 10 % slower than the others though llama-bench's warm-up came before it."""
    end = clock() + seconds
    before, now = 0.0, rate()
    while abs(now - before) > STEADY * now and clock() < end:
        before, now = now, rate()


class Tokens:
    """Random tokens, the same in every run; the first is BOS if the vocabulary adds one."""

    def __init__(self, lib: Any, model: Any, seed: int = 1) -> None:
        vocabulary = lib.llama_model_get_vocab(model)
        self._lib = lib
        self._size = lib.llama_vocab_n_tokens(vocabulary)
        self._random = random.Random(seed)
        adds_bos = lib.llama_vocab_get_add_bos(vocabulary)
        self._first = lib.llama_vocab_bos(vocabulary) if adds_bos else None

    def singles(self, n: int) -> list[int]:
        tokens = [self._random.randrange(self._size) for _ in range(n)]
        if tokens and self._first is not None:
            tokens[0] = self._first
        return tokens

    def batches(self, n: int) -> list[Any]:
        """Batches of N_BATCH tokens at most."""
        tokens = self.singles(n)
        cuts = [tokens[start : start + N_BATCH] for start in range(0, n, N_BATCH)]
        return [(self._lib.llama_token * len(cut))(*cut) for cut in cuts]


@contextmanager
def _prompt(lib: Any, context: Any, tokens: Tokens, n: int) -> Iterator[Callable[[], None]]:
    """One repetition of a prompt, made ready."""
    batches = tokens.batches(n)
    yield lambda: process(lib, context, batches)


@contextmanager
def _generation(lib: Any, context: Any, tokens: Tokens, n: int) -> Iterator[Callable[[], None]]:
    """One repetition of a generation from an empty cache, made ready.

    llama_decode makes a batch of its own out of the one that it is given, each time. Best of 200 on
    a CPU, us a token: 124.2 by it, 123.6 so, 121.2 by llama-bench (2026-11-26). A version without
    the newer batches has but llama_decode.
    """
    drawn = tokens.singles(n)
    if not hasattr(lib, "llama_batch_ext_init"):
        yield lambda: generate(lib, context, drawn)
        return
    steps = [_step(lib, context, token, position) for position, token in enumerate(drawn)]
    try:
        yield lambda: step_by_step(lib, context, steps)
    finally:
        for batch in steps:
            lib.llama_batch_ext_free(batch)


def _step(lib: Any, context: Any, token: int, position: int) -> int:
    """A batch of one token, whose logits are wanted."""
    batch: int = lib.llama_batch_ext_init(context)
    index = lib.llama_batch_ext_add_token(batch, 0, token)
    at = (lib.llama_pos * 1)(position)
    placed = index == 0 and lib.llama_batch_ext_set_pos(batch, index, at)
    if not placed or not lib.llama_batch_ext_set_output_logits(batch, index, True):
        raise DecodeFailed(f"no batch of token {token} at position {position}")
    return batch


def step_by_step(lib: Any, context: Any, steps: list[int]) -> None:
    """Decode batch by batch and wait for the device after each."""
    work, synchronize, decode = lib.llama_process, lib.llama_synchronize, DECODE
    for batch in steps:
        if work(context, decode, batch):
            raise DecodeFailed("llama_process returned an error")
        synchronize(context)


def process(lib: Any, context: Any, batches: list[Any]) -> None:
    """Decode a prompt and wait for the device once."""
    for tokens in batches:
        _check(lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(tokens))))
    lib.llama_synchronize(context)


def generate(lib: Any, context: Any, tokens: list[int]) -> None:
    """Decode token by token and wait for the device after each."""
    decode, synchronize = lib.llama_decode, lib.llama_synchronize
    one = (lib.llama_token * 1)()
    batch = lib.llama_batch_get_one(one, 1)  # llama_decode itself counts the positions
    for token in tokens:
        one[0] = token
        _check(decode(context, batch))
        synchronize(context)


def _check(code: int) -> None:
    if code != 0:
        raise DecodeFailed(f"llama_decode returned {code}")


class ThreadPool:
    """ggml's pool of CPU threads, attached as llama-bench does.

    Without it a build without OpenMP starts its threads anew for every token. The three functions
    are exported by ggml and libllama but not bound by llama-cpp-python.
    """

    PARAMS_BYTES = 4096
    """More than sizeof(struct ggml_threadpool_params), which ggml itself fills in."""

    def __init__(self, threads: int) -> None:
        from llama_cpp._ggml import libggml

        self._ggml = libggml
        params = ctypes.create_string_buffer(self.PARAMS_BYTES)
        libggml.ggml_threadpool_params_init(params, ctypes.c_int(threads))
        libggml.ggml_threadpool_new.restype = ctypes.c_void_p
        self._pool = ctypes.c_void_p(libggml.ggml_threadpool_new(params))

    def attach(self, lib: Any, context: Any) -> None:
        attach = lib.llama_cpp._lib.llama_attach_threadpool
        attach.argtypes = [ctypes.c_void_p] * 3
        attach.restype = None
        attach(context, self._pool, None)

    def free(self) -> None:
        self._ggml.ggml_threadpool_free.argtypes = [ctypes.c_void_p]
        self._ggml.ggml_threadpool_free(self._pool)
