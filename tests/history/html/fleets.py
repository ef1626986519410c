"""Fleets for the report's tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from llamafleet.history.bands import Bands, Claims
from llamafleet.history.record import Record, Test

NOTHING = Bands(
    references=(),
    bandwidths=(),
    models=frozenset(),
    low_measured=0.9,
    low_reported=0.8,
    roofline_low=0.2,
    claims=Claims("none", (50, 150), (18, 22), 90, (5, 15), "recalled"),
)
"""Nothing is expected of any GPU."""

START = datetime(2026, 3, 1, tzinfo=timezone.utc)


def record(number: int = 0, test: Test = "tg", **changed: object) -> Record:
    """Of week `number`."""
    made = Record(
        id=f"{test}-{number}",
        test=test,
        test_time=START + timedelta(weeks=number),
        avg_ts=150.0,
        median_ts=150.0,
        stddev_ts=0.5,
        host="gpu-a",
        gpu_uuid="GPU-1",
        gpu_info="NVIDIA GeForce RTX 4090",
        n_prompt=512 if test == "pp" else 0,
        n_gen=0 if test == "pp" else 128,
        model_filename="synthetic:7b-q4_0",
        driver="575.57.08",
        toolkit="13.0",
        fingerprint="0123456789abcdef",
        verdict="PASS",
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def slow_fleet() -> list[Record]:
    """Six GPUs of a kind, of which GPU-1 of gpu-a generates a third slower than its peers."""
    rates = {1: 100.0, 2: 150.0, 3: 150.4, 4: 149.8, 5: 150.1, 6: 149.9}
    return [
        record(week, gpu_uuid=f"GPU-{n}", host=f"gpu-{'abcdef'[n - 1]}", median_ts=rate)
        for n, rate in rates.items()
        for week in range(3)
    ]
