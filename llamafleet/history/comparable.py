"""What must be the same for two figures to be comparable, and how it is said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llamafleet.history.record import Figure, Record, Test
from llamafleet.protocol.result import BUSY, GOOD

UNTOLD = "not told"
UNTOLD_VALUES = (None, "")
LEAST = 0.01
"""A smaller difference is not spoken of: four H200s of two hosts, with one driver, lie 0.8 % apart
in pp and 0.9 % in tg with the 7B model, one H200 0.4 % between two runs (2026-11-26)."""
HIGH: dict[Test, float] = {"pp": 50_000.0, "tg": 1_000.0}
"""Tokens per second above which it is the launching of kernels that is measured. With the 160M
model one H200 gave 106,114 to 122,110 (pp) and 1,902 to 2,034 (tg) within a day (2026-11-26); with
7B it kept to 0.5 %."""
HIGH_LEAST = 0.2
"""Such figures must differ by so much before anything is said of them."""
RATES = (1e-6, 1e12)
"""Tokens per second that no GPU is beyond: a host may write anything."""
GOOD_OR_UNTOLD = (None, *GOOD)
MAKER = re.compile(r"\b(?:(?:NVIDIA|Tesla)\s+(?=\S))+")


ALL_LAYERS = 99
"""Of n_gpu_layers: so many and more are all that a model has."""
AS_USUAL = "as usual"
USUAL: dict[str, tuple[object, ...]] = {
    # Of what a record has a field for nothing is kept there, as of the backends CUDA and CPU.
    "backends": (None,),
    "n_cpu_moe": (None, 0),
    "no_kv_offload": (None, False),
    "no_op_offload": (None, False),
    "tensor_buft_overrides": (None, "", "none"),
    "embeddings": (None, False),
}
"""llama-bench's own options, each with what is no option: older versions lack some."""
USUAL_OF_SEVERAL: dict[str, tuple[object, ...]] = {
    "split_mode": (None, "layer"),
    "tensor_split": (None, "", "0.00"),
}
"""Of several GPUs together."""


ASKED = (
    *("test", "host", "gpu_uuid", "gpu_info", "gpus", "vram_mib", "n_prompt", "n_gen", "n_depth"),
    *("model_filename", "model_type", "model_size", "flash_attn", "n_gpu_layers", "n_batch"),
    *("n_ubatch", "type_k", "type_v", "llama_bench", "driver", "toolkit", "fingerprint"),
    *("llama_cpp_python", "build_commit", "verdict", "busy", "power_limit_w"),
)
"""Fields of a record of which anything here is told, beside its time and figure: a comparison reads
no more of the database."""


@dataclass(frozen=True)
class Trait:
    """One thing that a figure depends on."""

    name: str
    of: Callable[[Record], object]


def card(record: Record) -> str:
    """The GPU's name, which tells its form factor too; drivers before 470 left NVIDIA out."""
    return plain(record.gpu_info.strip())


def cards(record: Record) -> str:
    """What was at work, as people say it: "2x H200", "CPU"."""
    if not record.gpus:
        return "CPU"
    names = Counter(map(plain, record.gpu_info.split(", ")))
    return ", ".join(f"{many}x {name}" if many > 1 else name for name, many in names.items())


def plain(names: str) -> str:
    """A GPU's name or several, as "2x NVIDIA H200", without their maker, and without the brand that
    older drivers told beside it."""
    return MAKER.sub("", names)


def model(record: Record) -> str:
    return record.model_filename or record.model_type


def test_name(record: Record) -> str:
    """As llama-bench has it: pp512, tg128, tg128 @ d4096."""
    size = record.n_prompt if record.test == "pp" else record.n_gen
    return f"{record.test}{size}" + (f" @ d{record.n_depth}" if record.n_depth else "")


def _layers(record: Record) -> object:
    """llama-bench's default for all of them was 99 and is -1."""
    told = record.n_gpu_layers
    return "all" if told is not None and not 0 <= told < ALL_LAYERS else told


def options(record: Record) -> str:
    """What llama-bench was told beside, which moves the work or a part of the weights."""
    usual = {**USUAL, **(USUAL_OF_SEVERAL if record.gpus > 1 else {})}
    told = ((name, record.llama_bench.get(name)) for name in usual)
    odd = [f"{name} {str(value)[:40]}" for name, value in told if value not in usual[name]]
    return ", ".join(odd) or AS_USUAL


def build(record: Record) -> str:
    """llama-bench tells no fingerprint, but llama.cpp's commit."""
    return record.fingerprint or record.build_commit


def _gib(record: Record) -> object:
    """Whole: drivers differ in a few MiB."""
    return None if record.vram_mib is None else f"{record.vram_mib / 1024:.0f} GiB"


def _limit(record: Record) -> object:
    return None if record.power_limit_w is None else f"{record.power_limit_w:.0f} W"


TEST = Trait("test", test_name)
MEASURED = (
    TEST,
    Trait("model", model),
    Trait("model's size", lambda r: r.model_size),
    Trait("flash attention", lambda r: r.flash_attn),
    Trait("n_gpu_layers", _layers),
    Trait("n_batch", lambda r: (r.n_batch, r.n_ubatch)),
    Trait("KV type", lambda r: (r.type_k, r.type_v)),
    Trait("number of GPUs", lambda r: r.gpus),
    Trait("llama-bench's options", options),
)
"""What was measured."""
CARD = (Trait("GPU model", card), Trait("GPU memory", _gib))
POWER = Trait("power limit", _limit)
DRIVER = Trait("driver", lambda r: r.driver)
TOOLKIT = Trait("toolkit", lambda r: r.toolkit)
BUILD = Trait("build", build)
VERSION = Trait("llama-cpp-python", lambda r: r.llama_cpp_python)


def key(record: Record, traits: Iterable[Trait]) -> tuple[object, ...]:
    return tuple(trait.of(record) for trait in traits)


def said(value: object) -> str:
    """A trait's value, in words."""
    if isinstance(value, tuple):
        return " / ".join(map(said, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return UNTOLD if value in UNTOLD_VALUES else str(value)


def differing(a: Sequence[Figure], b: Sequence[Figure], traits: Iterable[Trait]) -> list[str]:
    """Traits in which no record of `a` is as one of `b`, with what either side has."""
    found = []
    for trait in traits:
        of_a, of_b = ({said(trait.of(r.of)) for r in side} for side in (a, b))
        if not of_a & of_b:
            found.append(of_both(a, b, trait))
    return found


def of_both(a: Sequence[Figure], b: Sequence[Figure], trait: Trait) -> str:
    """What either side has, in words."""
    of_a, of_b = ({said(trait.of(r.of)) for r in side} for side in (a, b))
    return f"{trait.name}: {_some(of_a)} and {_some(of_b)}"


def _some(values: Iterable[str]) -> str:
    """Three at most."""
    ordered = sorted(values)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest


def is_baseline(record: Record) -> bool:
    """A figure of a free and healthy GPU (llama-bench's own gives no verdict)."""
    good = not record.busy and record.verdict in GOOD_OR_UNTOLD
    return good and has_figure(record)


def flaw(record: Record) -> str:
    """Why it is no baseline; "": it is one."""
    if is_baseline(record):
        return ""
    if record.busy:
        return BUSY
    return "no figure" if record.verdict in GOOD_OR_UNTOLD else str(record.verdict)


def has_figure(record: Record) -> bool:
    return is_figure(record.median_ts)


def is_figure(median_ts: float) -> bool:
    return RATES[0] < median_ts < RATES[1]


def least(test: Test, median_ts: float, usual: float) -> float:
    """The share by which figures must differ before it is said: `usual`, or HIGH_LEAST."""
    return max(usual, HIGH_LEAST) if median_ts > HIGH[test] else usual


def place(record: Record) -> tuple[object, ...]:
    """The GPU in its host; of several together the host; of none told, the name."""
    return (record.host, record.gpu_uuid, record.gpus, "" if record.gpu_uuid else card(record))
