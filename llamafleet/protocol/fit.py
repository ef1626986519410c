"""How much of each GPU's memory a model takes, and which placement of it fits.

The accounting is llama.cpp's own, repeated: weights and context exactly, the compute buffer as the
largest of what its parts need at once. File and line: vendor/llama.cpp of llama-cpp-python 0.3.36.
Its error against llama.cpp's own figures is measured by tests/bench/fit.py: docs/fit.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from llamafleet.protocol.serve import KvType, Placement
from llamafleet.protocol.shape import Shape

MIB = 1 << 20
N_UBATCH = 512
"""Tokens that are computed at once, at most: llama-context.cpp:3758."""
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")
"""From the truest to the smallest."""
KV_BYTES: dict[KvType, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
"""(numbers, bytes) of a block."""
CTX_STEP = 256
"""Contexts are rounded up to it: llama-context.cpp:290."""
SMALLEST_CTX = 512
SMALL_BATCH = 128
"""Tokens at once, for a model that has little room; prompts are read more slowly."""
CONTEXT = 526 * MIB
"""CUDA's context of a process on one GPU, of each of two H200 by NVML (driver 580.159.04, CUDA
13.0). 392 to 395 MiB are told of an RTX 4090 (llama.cpp's "VRAM: 24210 MiB (23818 MiB free)" of an
idle card), on which it was not measured here."""
KERNELS = 66 * MIB
"""What its kernels take once they are loaded, at their first use: 42 to 57 MiB there."""
KERNELS_OF_EXPERTS = 146 * MIB
"""The same with those of experts: 138 to 143 MiB there."""
SMALL = 4 * MIB
"""Positions, numbers of rows and the like in a compute buffer; measured: up to 3."""
CUBLAS = 32 * MIB
"""Its workspace on a Hopper; 4 MiB before: ggml-cuda/common.cuh:1540."""
COPIES = 4
"""Of what is handed from GPU to GPU, while several batches are under way:
GGML_SCHED_MAX_COPIES, ggml/CMakeLists.txt."""
MEASURED = frozenset({"gemma2", "gemma3", "gpt-oss", "llama", "phi3", "qwen2", "qwen3", "qwen3moe"})
"""Architectures whose account was compared with llama.cpp's own: tests/fit/ggufs.py."""
UNMEASURED = 16
"""Of others one part in so many is added to the compute buffer: docs/fit.md."""
FLASH_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
"""Sizes of a head for which CUDA has flash attention for every model: fattn.cu:576."""
FLASH_PAIRS = {(192, 128): 8, (320, 256): 32, (512, 512): 2, (576, 512): 2}
"""The same of keys and values, with how many queries must share a key: fattn.cu:589."""


USABLE = 98, 100
"""Of the memory that nvidia-smi tells CUDA has the most of it: 24080 to 24210 of 24564 MiB on an
RTX 4090, 45467 of 46068 on an L40S (llama.cpp's "Total VRAM", in public repositories)."""


def usable(total_mib: int) -> int:
    """MiB of an idle GPU without a screen, by what nvidia-smi tells in memory.total."""
    return total_mib * USABLE[0] // USABLE[1]


@dataclass(frozen=True)
class Gpu:
    """One GPU that a model may be put on."""

    free_mib: int
    """With no process of ours on it."""
    name: str = ""


@dataclass(frozen=True)
class Need:
    """Bytes of one GPU."""

    weights: int = 0
    context: int = 0
    compute: int = 0
    driver: int = 0
    """CUDA's own, of which llama.cpp knows nothing."""

    @property
    def total_mib(self) -> int:
        whole = self.weights + self.context + self.compute + self.driver
        return -(-whole // MIB)


@dataclass(frozen=True)
class Use:
    """How a service uses a model, beside its placement."""

    parallel: int = 1
    """Requests that are computed at once; each has its own context."""
    flash_attention: bool = True
    swa_full: bool = True
    """Layers with a window keep the whole context all the same, as llama_cpp.server's do."""


_USE = Use()


@dataclass(frozen=True)
class Room:
    """What a model may take."""

    gpus: tuple[Gpu, ...]
    """In CUDA's order; at least one."""
    reserve_mib: int = 0
    """Left free on each."""
    use: Use = field(default_factory=Use)


@dataclass(frozen=True)
class Shortage:
    """That no placement fits, or not this one."""

    found: str
    expected: str
    next: str

    def __str__(self) -> str:
        return f"found {self.found}; expected {self.expected}; next: {self.next}"


def n_gpu_layers(shape: Shape, placement: Placement) -> int:
    """Layers and output that are asked for, as llama.cpp takes it: more than all are all."""
    every = shape.layers + 1
    asked = placement.n_gpu_layers
    return every if asked < 0 else min(asked, every)


def needs(shape: Shape, placement: Placement, room: Room) -> tuple[Need, ...]:
    """Of each GPU. Layers are shared out by free memory, as llama.cpp does it."""
    account = _Account(shape, placement, room.use)
    owners = _owners(shape.layers, account.on_gpu, room.gpus)
    count = len(room.gpus)
    return tuple(account.of(number, owners, count) for number in range(count))


def over(needed: Sequence[Need], room: Room) -> list[int]:
    """MiB that are missing on each GPU; 0 or less: it fits."""
    return [
        need.total_mib - (gpu.free_mib - room.reserve_mib)
        for need, gpu in zip(needed, room.gpus, strict=True)
    ]


Count = Callable[[Placement], tuple[Need, ...]]
"""What a placement of one model takes of each GPU: by its header, or asked of llama.cpp."""


def by_header(shape: Shape, room: Room) -> Count:
    return lambda placement: needs(shape, placement, room)


def fits(count: Count, placement: Placement, room: Room) -> bool:
    return max(over(count(placement), room)) <= 0


def placed(shape: Shape, wanted: Placement, room: Room) -> Placement | Shortage:
    """`wanted` with as many layers on the GPUs as fit, at most those that it names."""
    if shape.unknown:
        return Shortage(
            f"a {shape.architecture} model, whose memory its header does not tell: {shape.unknown}",
            "a model that keeps keys and values of each layer",
            "set n_gpu_layers to a number, or ask the build itself: llamafleet fit MODEL --host H",
        )
    count = by_header(shape, room)
    whole = replace(wanted, n_gpu_layers=n_gpu_layers(shape, wanted))
    return most_layers(count, whole, room) or shortage(count, replace(wanted, n_gpu_layers=1), room)


def most_layers(count: Count, wanted: Placement, room: Room) -> Placement | None:
    """`wanted` with the most layers with which it fits, from those that it names down to one."""
    for layers in range(wanted.n_gpu_layers, min(wanted.n_gpu_layers, 1) - 1, -1):
        one = replace(wanted, n_gpu_layers=layers)
        if fits(count, one, room):
            return one
    return None


def most_context(count: Count, wanted: Placement, room: Room) -> Placement | None:
    """`wanted` with the longest context with which it fits, up to its own."""
    low, high = 0, -(-wanted.n_ctx // CTX_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(count, _with_context(wanted, middle), room):
            low = middle
        else:
            high = middle - 1
    found = _with_context(wanted, low)
    return found if found.n_ctx >= min(SMALLEST_CTX, wanted.n_ctx) and low else None


def _with_context(wanted: Placement, steps: int) -> Placement:
    return replace(wanted, n_ctx=max(1, min(steps * CTX_STEP, wanted.n_ctx)))


def shortage(count: Count, placement: Placement, room: Room) -> Shortage:
    """What is missing for a placement, of the GPU that lacks the most."""
    needed = count(placement)
    missing = over(needed, room)
    worst = missing.index(max(missing))
    need, gpu = needed[worst], room.gpus[worst]
    return Shortage(
        f"{need.total_mib} MiB needed of GPU {worst} ({said(placement)}: {parts(need)}), "
        f"{missing[worst]} MiB more than it has",
        f"at most {gpu.free_mib - room.reserve_mib} MiB ({gpu.free_mib} free, "
        f"{room.reserve_mib} in reserve)",
        "a shorter n_ctx, kv_type = q8_0, fewer n_gpu_layers, or a smaller model",
    )


def parts(need: Need) -> str:
    figures = {
        "weights": need.weights,
        "context": need.context,
        "compute": need.compute,
        "CUDA": need.driver,
    }
    return ", ".join(f"{name} {-(-size // MIB)}" for name, size in figures.items())


def said(placement: Placement) -> str:
    layers = "all layers" if placement.n_gpu_layers < 0 else f"{placement.n_gpu_layers} layers"
    return f"{layers}, n_ctx {placement.n_ctx}, {placement.kv_type}"


def base(shape: Shape) -> int:
    """Bytes of each GPU that CUDA takes for its context and kernels."""
    return CONTEXT + (KERNELS_OF_EXPERTS if shape.experts else KERNELS)


def driver(shape: Shape, placement: Placement, use: Use) -> int:
    """Bytes that CUDA takes of each GPU for itself."""
    return base(shape) + CUBLAS + _Account(shape, placement, use).pool(output=True)


# -- the accounting --------------------------------------------------------------------------------


def _owners(layers: int, on_gpu: int, gpus: Sequence[Gpu]) -> list[int]:
    """The GPU of each layer, and of the output at the end; -1: the CPU. llama-model.cpp:1556."""
    free = [max(gpu.free_mib, 0) for gpu in gpus]
    ends = [end / (sum(free) or 1) for end in accumulate(free)]
    first = layers + 1 - on_gpu
    return [
        min(bisect_right(ends, (layer - first) / on_gpu), len(gpus) - 1) if layer >= first else -1
        for layer in range(layers + 1)
    ]


class _Account:
    """One model in one placement."""

    def __init__(self, shape: Shape, placement: Placement, use: Use) -> None:
        self.shape, self.use = shape, use
        self.on_gpu = n_gpu_layers(shape, placement)
        self.flash = use.flash_attention and has_flash(shape)
        self.kv = placement.kv_type
        self.streams = max(use.parallel, 1)
        # Each request's own context, rounded up: llama-context.cpp:296.
        self.each = _up(max(placement.n_ctx // self.streams, 1), CTX_STEP)
        self.batch = min(placement.n_batch, N_UBATCH, self.each * self.streams)
        whole = use.swa_full or not shape.window
        # llama-kv-cache-iswa.cpp:73
        self.short = self.each if whole else min(
            self.each, _up(shape.window + self.batch, CTX_STEP)
        )  # fmt: skip

    # -- parts -------------------------------------------------------------------------------------

    def layer_context(self, layer: int) -> int:
        """Bytes of one layer's keys and values. llama-kv-cache.cpp:233."""
        block, size = KV_BYTES[self.kv]
        windowed = self.shape.windowed and self.shape.windowed[layer]
        cells = (self.short if windowed else self.each) * self.streams
        return sum(-(-numbers // block) * size for numbers in self._kept(layer)) * cells

    def _kept(self, layer: int) -> tuple[int, int]:
        return self.shape.keys[layer], self.shape.values[layer]

    def masks(self) -> int:
        """Which token sees which: f16 for flash attention, else f32. One for each kind of layer."""
        cells = self.each + (self.short if self.shape.window else 0)
        return cells * self.batch * (2 if self.flash else 4)

    def of(self, number: int, owners: Sequence[int], gpus: int) -> Need:
        mine = [layer for layer, owner in enumerate(owners[:-1]) if owner == number]
        output = owners[-1] == number
        weights = sum(self.shape.weights[layer] for layer in mine)
        context = sum(map(self.layer_context, mine))
        if not mine and not output and self.on_gpu:
            return Need(driver=base(self.shape))
        return Need(
            weights=weights + (self.shape.output if output else 0),
            context=context,
            compute=self.compute(number, mine, output, gpus),
            driver=base(self.shape) + CUBLAS + self.pool(output),
        )

    def pool(self, output: bool) -> int:
        """What CUDA's kernels take for themselves while they run: ggml_cuda_pool."""
        shape = self.shape
        widest = max(shape.feed, shape.queries, shape.embd)
        if not shape.half:
            # The activations of one matrix in q8_1: 36 bytes for 32 numbers, mmq.cu:189.
            return self.batch * widest * 36 // 32
        # In f16, and the result too before it is widened: ggml_cuda_op_mul_mat_cublas.
        return self.batch * 2 * (widest + max(widest, shape.vocab if output else 0))

    def compute(self, number: int, mine: Sequence[int], output: bool, gpus: int) -> int:
        """Bytes of the compute buffer: ggml_gallocr, of the graph of one full batch."""
        shape, batch = self.shape, self.batch
        measured = shape.architecture in MEASURED
        piped = gpus > 1 and self.on_gpu > shape.layers
        copies = COPIES if piped else 1
        embd, queries = 4 * batch * shape.embd, 4 * batch * shape.queries
        handed = embd * (COPIES if piped else 1) * (2 if number else 1) if gpus > 1 else 0
        shared = copies * (self.masks() + self._rotations()) + handed
        # The first GPU computes a large batch of the CPU's layers too: ggml-cuda.cu:5651.
        helps = number == 0 and self.on_gpu <= shape.layers
        # Half again for the holes that keys and values of that size leave.
        brought = max(map(self.layer_context, range(shape.layers))) * 3 // 2 if helps else 0
        attention = self._attention(embd, queries, mine) + brought
        feed = self._feed(embd, queries)
        if helps:
            layer = shared + feed + attention + 3 * shape.largest
        elif measured:
            layer = shared + max(attention, feed)
        else:
            # Where both parts take the same input (command-r, cohere2, falcon, stablelm), the
            # results of one wait for the other.
            layer = shared + attention + feed
        last = 0
        if output or not self.on_gpu:
            last = 4 * batch * shape.vocab + 4 * embd + handed
            last += shared if piped else self.masks() if number else 0
            last += 0 if self.on_gpu else shape.output
            # Attention over such a context leaves holes behind it, which nothing later fills.
            last += 2 * queries if shape.window else 0
            if self.kv != "f16" or helps or not measured:
                last += self.masks() + 2 * queries + brought
                last += self._copies(mine) + shape.largest if helps else 0
        largest = max(layer if mine or helps else 0, last) + SMALL
        return largest if measured else largest + largest // UNMEASURED

    def _rotations(self) -> int:
        """Matrices by which quantized keys and values are turned: llama-kv-cache.cpp:321."""
        if self.kv == "f16":
            return 0
        return (2 if self.shape.window else 1) * 2 * 4 * self.shape.head**2

    def _copies(self, mine: Sequence[int]) -> int:
        """Keys and values of a layer in f16, which flash attention asks for: fattn-common.cuh:53.
        A layer of the CPU may be computed too."""
        if not self.flash or self.kv == "f16":
            return 0
        layers = mine or range(self.shape.layers)
        cells = self.each * self.streams
        return max(sum(self._kept(layer)) for layer in layers) * 2 * cells

    def _attention(self, embd: int, queries: int, mine: Sequence[int]) -> int:
        shape = self.shape
        if self.flash:
            return 2 * embd + 2 * queries + self._copies(mine)
        scores = 4 * shape.heads * self.batch * self.each
        kept = 4 * self.batch * max(shape.keys)
        # Layers with a window mask a copy of their own.
        return scores + 14 * embd + 2 * queries + 8 * kept + (
            COPIES * self.masks() if shape.window else 0
        )  # fmt: skip

    def _feed(self, embd: int, queries: int) -> int:
        shape = self.shape
        feed = 4 * self.batch * shape.feed
        wide = max(embd, queries)
        dense = 3 * feed + 2 * embd + wide
        if not shape.experts:
            return dense
        return max(dense, feed + 2 * shape.experts * embd + 2 * embd + wide)


def has_flash(shape: Shape) -> bool:
    """Whether CUDA has flash attention for such heads: fattn.cu:541."""
    if shape.head == shape.head_value and shape.head in FLASH_HEADS:
        return True
    shared = FLASH_PAIRS.get((shape.head, shape.head_value))
    kept = max(shape.keys) // max(shape.head, 1)
    return shared is not None and kept > 0 and (shape.heads // kept) % shared == 0


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def kinds_below(placement: Placement, use: Use) -> tuple[KvType, ...]:
    """The next coarser type of a context; llama.cpp takes none without flash attention
    (llama-context.cpp:3846)."""
    return KV_TYPES[KV_TYPES.index(placement.kv_type) + 1 :][: int(use.flash_attention)]


def smaller(shape: Shape, placement: Placement, use: Use = _USE) -> Iterator[Placement]:
    """Placements that take less than `placement`, in the order in which they are to be tried.

    What costs least comes first: a smaller batch, a coarser context, half of it and a quarter, and
    at last fewer layers on the GPU.
    """
    kinds: tuple[KvType, ...] = (placement.kv_type, *kinds_below(placement, use))
    lengths = [placement.n_ctx]
    lengths += [length for part in (2, 4) if (length := placement.n_ctx // part) >= SMALLEST_CTX]
    batches = [placement.n_batch]
    batches += [SMALL_BATCH] if placement.n_batch > SMALL_BATCH else []
    for length in lengths:
        for kind in kinds:
            for batch in batches:
                one = replace(placement, n_ctx=length, kv_type=kind, n_batch=batch)
                if one != placement:
                    yield one
    least = replace(
        placement, n_ctx=lengths[-1] if len(lengths) > 1 else placement.n_ctx,
        kv_type=kinds[-1], n_batch=batches[-1],
    )  # fmt: skip
    for layers in range(n_gpu_layers(shape, placement) - 1, 0, -1):
        yield replace(least, n_gpu_layers=layers)
