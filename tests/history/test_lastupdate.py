"""The last driver update of each GPU, and what it cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.history.lastupdate import Updated, last_updates
from llamafleet.history.record import Record
from tests.history.made import START, record, runs

OLD, NEW, NEWEST = "570.86.10", "580.95.05", "590.10.01"


def updated(gpus: int = 6, count: int = 2, factor: float = 1.0, **fields: Any) -> list[Record]:
    """All of a fleet before and after one update."""
    before = runs(1, gpus, count, driver=OLD)
    after = runs(3, gpus, count, **{"factor": factor, "day": 5.0, "driver": NEW, **fields})
    return [*before, *after]


def only(found: list[Updated]) -> Updated:
    [one] = found
    return one


@pytest.mark.parametrize(
    ("factor", "answer"), [(0.94, "slower"), (1.0, "no difference shown"), (1.06, "faster")]
)
def test_what_an_update_cost(factor: float, answer: str) -> None:
    found = only(last_updates(updated(factor=factor)))
    assert (found.before, found.after, found.also) == (OLD, NEW, ())
    assert (found.since - START).days == 5
    assert [one.answer for one in found.comparisons] == [answer]


def test_only_the_last_update_counts_and_all_runs_of_its_two_drivers() -> None:
    """It was slow two drivers ago; the order of the records does not matter."""
    slow = list(runs(4, 6, 2, factor=0.5, day=-5.0, driver="535.54.03"))
    found = only(last_updates(reversed([*slow, *updated()])))
    [one] = found.comparisons
    assert (found.before, found.after, one.answer) == (OLD, NEW, "no difference shown")
    assert one.a
    assert one.a.runs == 12


def test_going_back_is_an_update() -> None:
    found = only(last_updates([*updated(), *runs(5, 6, 2, day=9.0, driver=OLD, factor=0.9)]))
    assert (found.before, found.after) == (NEW, OLD)
    assert [one.answer for one in found.comparisons] == ["slower"]


def test_gpus_with_other_updates_are_told_apart_the_newest_first() -> None:
    moved = [replace(r, gpu_uuid=f"{r.gpu_uuid}-x") for r in updated(day=8.0, factor=0.8)]
    moved = [replace(r, driver=NEWEST) if r.driver == NEW else r for r in moved]
    first, second = last_updates([*updated(), *moved])
    assert (first.after, first.comparisons[0].answer) == (NEWEST, "slower")
    assert (second.after, second.comparisons[0].answer) == (NEW, "no difference shown")


def test_a_host_that_was_never_updated_says_nothing() -> None:
    assert last_updates(runs(1, 6, 5)) == []
    assert last_updates([]) == []
    assert last_updates([record(gpus=0, driver=d, gpu_uuid="") for d in (OLD, NEW)]) == []


def test_another_build_came_with_it_and_is_said() -> None:
    found = only(last_updates(updated(fingerprint="84de9d54601af86b", toolkit="13.1")))
    assert found.also == (
        "build: 06ac349343b29ef4 and 84de9d54601af86b",
        "toolkit: 13.0 and 13.1",
    )
    assert [one.answer for one in found.comparisons] == ["no difference shown"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"power_limit_w": 500.0}, "power limit: 700 W and 500 W"),
        ({"model_filename": "other.gguf"}, "model: synthetic:7b-q4_0 and other.gguf"),
        ({"flash_attn": False}, "flash attention: on and off"),
        ({"busy": ("x",), "verdict": "BUSY"}, "B has no tg of a free and healthy GPU"),
    ],
)
def test_what_changed_beside_makes_it_no_comparison(other: dict[str, Any], why: str) -> None:
    found = only(last_updates(updated(factor=0.9, **other)))
    assert [(one.answer, one.why) for one in found.comparisons] == [("not comparable", (why,))]


def test_a_driver_that_renames_a_gpu_changes_nothing() -> None:
    found = only(last_updates(updated(gpu_info="NVIDIA H200 SXM")))
    assert [one.answer for one in found.comparisons] == ["no difference shown"]


def test_one_run_on_either_side_is_too_few() -> None:
    [one] = only(last_updates(updated(1, 1, 0.7))).comparisons
    assert one.answer == "too few runs"
    assert one.ratio == pytest.approx(0.7, abs=0.01)
