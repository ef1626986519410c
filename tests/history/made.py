"""Records of fleets that were never measured: for what is said of records."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import count

from llamafleet.history.record import Record, Test

START = datetime(2026, 11, 1, tzinfo=timezone.utc)
RATES: dict[Test, float] = {"pp": 12300.0, "tg": 361.0}
"""Of an H200 with the 7B model; measured, 2026-11-26."""
_NUMBER = count()


def record(gpu: int = 0, test: Test = "tg", day: float = 0.0, **fields: object) -> Record:
    """One of a free and healthy H200."""
    number = next(_NUMBER)
    one = Record(
        id=f"made-{number}",
        test=test,
        test_time=START + timedelta(days=day, microseconds=number),
        avg_ts=RATES[test],
        median_ts=RATES[test],
        host=f"host-{gpu // 2}",
        gpu_uuid=f"GPU-{gpu:08d}-0000",
        gpu_info="NVIDIA H200",
        compute_capability="9.0",
        vram_mib=143771,
        n_prompt=512 if test == "pp" else 0,
        n_gen=128 if test == "tg" else 0,
        model_filename="synthetic:7b-q4_0",
        model_size=3825872896,
        flash_attn=True,
        driver="580.95.05",
        toolkit="13.0",
        fingerprint="06ac349343b29ef4",
        llama_cpp_python="0.3.36",
        verdict="PASS",
        sm_clock_mhz=1980.0,
        sm_clock_max_mhz=1980.0,
        memory_clock_mhz=3201.0,
        power_limit_w=700.0,
        power_default_w=700.0,
        temperature_c=45.0,
        throttled_s={"power": 0.0, "thermal": 0.0},
        pcie_generation=5,
        pcie_generation_max=5,
        pcie_width=16,
        pcie_width_max=16,
        processes=0,
        persistence=True,
        peak_vram_mib=4522,
        load_s=0.5,
    )
    return replace(one, **fields)  # type: ignore[arg-type]


def runs(
    seed: int,
    gpus: int,
    runs: int,
    *,
    factor: float = 1.0,
    spread: float = 0.002,
    apart: float = 0.004,
    day: float = 0.0,
    test: Test = "tg",
    **fields: object,
) -> Iterator[Record]:
    """Of each GPU some runs: GPUs differ by `apart`, the runs of one by `spread` (as shares)."""
    chance = random.Random(seed)
    for gpu in range(gpus):
        level = RATES[test] * (1 + random.Random(gpu).gauss(0, apart)) * factor
        for run in range(runs):
            rate = level * (1 + chance.gauss(0, spread))
            yield record(gpu, test, day + run / 10, median_ts=rate, avg_ts=rate, **fields)
