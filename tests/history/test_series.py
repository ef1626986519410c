"""Records in lines that may be compared, and what changed along them."""

from __future__ import annotations

import random

import pytest

from llamafleet.history.series import Change, around, changes, middle, series
from tests.history.html.fleets import record


def test_a_line_holds_one_test_of_one_model_on_one_gpu_in_times_order() -> None:
    records = [record(n, test) for n in range(5) for test in ("pp", "tg")]  # type: ignore[arg-type]
    random.Random(1).shuffle(records)
    found = series(records)
    assert [one.last.test for one in found] == ["pp", "tg"]
    assert [[r.id for r in one.records] for one in found] == [
        [f"{test}-{n}" for n in range(5)] for test in ("pp", "tg")
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"model_filename": "other.gguf"},
        {"flash_attn": True},
        {"n_depth": 4096},
        {"n_gen": 256},
        {"gpu_uuid": "GPU-2"},
        {"type_k": "q8_0"},
    ],
)
def test_what_can_t_be_compared_is_on_another_line(changed: dict[str, object]) -> None:
    assert len(series([record(0), record(1)])) == 1
    assert len(series([record(0), record(1, **changed)])) == 2


def test_a_gpu_that_moved_to_another_host_keeps_its_line_and_two_cpus_have_two() -> None:
    assert len(series([record(0), record(1, host="gpu-b")])) == 1
    cpus = [record(n, gpu_uuid="", gpus=0, host=f"cpu-{n}") for n in range(2)]
    assert len(series(cpus)) == 2


def test_changes_are_told_where_both_sides_tell_them() -> None:
    records = (
        record(0),
        record(1, driver=""),
        record(2),
        record(3, driver="580.95.05", fingerprint="fedcba9876543210"),
        record(4, driver="580.95.05", fingerprint="fedcba9876543210"),
    )
    (only,) = changes(records)
    assert only.at == 3
    assert only.what == ("driver 575.57.08 -> 580.95.05", "build 01234567 -> fedcba98")


def test_a_change_is_told_across_a_record_that_does_not_tell() -> None:
    records = (record(0), record(1, driver="", fingerprint=""), record(2, driver="580.95.05"))
    assert changes(records) == (Change(2, ("driver 575.57.08 -> 580.95.05",)),)


def test_a_power_limit_that_changes_is_a_change() -> None:
    """What a driver did can't be told from it otherwise."""
    limits = (450.0, 450.2, None, 480.0)
    records = tuple(record(n, power_limit_w=limit) for n, limit in enumerate(limits))
    assert changes(records) == (Change(3, ("power limit 450 W -> 480 W",)),)


def test_llama_bench_s_commit_is_a_build() -> None:
    commits = ("8cf6b42", "79c1160")
    records = tuple(
        record(n, fingerprint="", build_commit=commit) for n, commit in enumerate(commits)
    )
    assert changes(records) == (Change(1, ("build 8cf6b42 -> 79c1160",)),)


def test_around_a_change_stand_the_runs_up_to_the_next_one_that_were_free() -> None:
    drivers = ["1", "1", "2", "2", "2", "3"]
    records = tuple(
        record(n, driver=driver, median_ts=n + 1.0, busy=("in use",) if n == 3 else ())
        for n, driver in enumerate(drivers)
    )
    first, second = changes(records)
    before, after = around(records, (first, second), first.at)
    assert ([r.median_ts for r in before], [r.median_ts for r in after]) == ([1, 2], [3, 5])
    before, after = around(records, (first, second), second.at)
    assert ([r.median_ts for r in before], [r.median_ts for r in after]) == ([3, 5], [6])
    assert (middle(before), middle([])) == (4, None)
