"""The last driver update of each GPU, and what it cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llamafleet.history.lastupdate import Updated, last_updates
from llamafleet.history.record import Record
from llamafleet.history.words import of_updates
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


def test_another_model_measured_once_does_not_hide_what_can_be_compared() -> None:
    once = record(driver=NEW, day=9.0, model_filename="other.gguf")
    found = only(last_updates([*updated(factor=0.9), once]))
    [one] = found.comparisons
    assert (one.answer, one.model, one.under) == ("slower", "synthetic:7b-q4_0", ())


def test_a_power_limit_that_only_the_newest_run_has_does_not_hide_the_others() -> None:
    last = record(driver=NEW, day=9.0, power_limit_w=500.0)
    [one] = only(last_updates([*updated(1, 5, factor=0.9), last])).comparisons
    assert (one.answer, one.b and one.b.runs) == ("slower", 5)


def test_several_models_are_judged_apart() -> None:
    other = [replace(r, model_filename="other.gguf") for r in updated(factor=0.9)]
    found = only(last_updates([*updated(), *other]))
    assert {one.model: one.answer for one in found.comparisons} == {
        "synthetic:7b-q4_0": "no difference shown",
        "other.gguf": "slower",
    }


def test_what_looks_alike_is_told_apart() -> None:
    """Two hosts have been capped ever since."""
    capped = [replace(r, power_limit_w=500.0) if r.host == "host-2" else r for r in updated(6, 5)]
    found = only(last_updates(capped))
    assert [one.under for one in found.comparisons] == [
        ("power limit: 700 W",),
        ("power limit: 500 W",),
    ]
    assert found.comparisons[1].title == "H200, synthetic:7b-q4_0, power limit: 500 W"


BUSY: dict[str, Any] = {"busy": ("x",), "verdict": "BUSY"}


def test_a_driver_under_which_no_gpu_was_free_is_passed_over() -> None:
    """570, 580 in use alone, 590: nothing can be held against 580."""
    between = runs(7, 6, 1, driver=NEW, day=3.0, **BUSY)
    found = only(last_updates([*updated(driver=NEWEST, factor=0.9), *between]))
    assert (found.before, found.after) == (OLD, NEWEST)
    assert [one.answer for one in found.comparisons] == ["slower"]


def test_going_back_from_a_driver_under_which_no_gpu_was_free_is_no_update() -> None:
    there = runs(7, 6, 1, driver=NEWEST, day=7.0, **BUSY)
    back = runs(8, 6, 1, driver=NEW, day=8.0)
    found = only(last_updates([*updated(factor=0.9), *there, *back]))
    assert (found.before, found.after) == (OLD, NEW)
    [one] = found.comparisons
    assert (one.answer, one.b and one.b.runs) == ("slower", 18)


def test_busy_runs_of_the_driver_before_are_counted() -> None:
    busy = runs(7, 6, 1, driver=OLD, day=2.0, **BUSY)
    [one] = only(last_updates([*updated(), *busy])).comparisons
    assert (one.left_out, one.a and one.a.runs) == ({"BUSY": 6}, 12)


def test_only_busy_before_is_said() -> None:
    only_busy = [replace(r, **BUSY) if r.driver == OLD else r for r in updated()]
    [one] = only(last_updates(only_busy)).comparisons
    assert one.why == ("A has no tg of a free and healthy GPU",)


def test_of_two_builds_that_both_drivers_have_one_alone_counts() -> None:
    """A build that is 10 % slower came before the driver, which changed nothing."""
    new: dict[str, Any] = {"fingerprint": "84de9d54601af86b", "factor": 0.9}
    records = [
        *runs(1, 6, 2, driver=OLD),
        *runs(2, 6, 1, driver=OLD, day=2.0, **new),
        *runs(3, 6, 2, driver=NEW, day=5.0, **new),
    ]
    found = only(last_updates(records))
    assert found.also == ()
    assert [one.answer for one in found.comparisons] == ["no difference shown"]


def test_of_builds_that_both_drivers_have_the_one_measured_last_counts() -> None:
    """The build before lost 10 % under the new driver; this one did not."""
    old = updated(6, 2, factor=0.9, fingerprint="84de9d54601af86b")
    old = [replace(r, fingerprint="84de9d54601af86b") for r in old]
    new = [replace(r, test_time=r.test_time + timedelta(days=1)) for r in updated(6, 2)]
    [one] = only(last_updates(sorted([*old, *new], key=lambda r: r.driver))).comparisons
    assert (one.answer, one.a and one.a.runs) == ("no difference shown", 12)


def test_a_stretch_under_the_same_driver_before_another_one_does_not_count() -> None:
    """It was 10 % slower then."""
    long_ago = runs(9, 6, 2, driver=OLD, day=-9.0, factor=0.9)
    between = runs(8, 6, 2, driver=NEWEST, day=-5.0, factor=0.9)
    [one] = only(last_updates([*long_ago, *between, *updated()])).comparisons
    assert (one.answer, one.a and one.a.runs) == ("no difference shown", 12)


def test_a_record_that_tells_no_driver_is_no_update() -> None:
    untold = [record(gpu, driver="", day=9.0) for gpu in range(6)]
    found = only(last_updates([*updated(), *untold]))
    assert (found.before, found.after) == (OLD, NEW)


def test_prompt_processing_comes_before_generation() -> None:
    tg = updated()
    pp = [replace(r, test="pp", n_prompt=512, n_gen=0) for r in updated()]
    lines = list(of_updates(last_updates([*tg, *pp])))
    assert [line.split()[0] for line in lines[2:]] == ["pp512", "A:", "tg128", "A:"]


def test_two_models_of_gpu_are_judged_apart() -> None:
    other = [
        replace(r, gpu_uuid=f"{r.gpu_uuid}-x", gpu_info="NVIDIA H200 NVL")
        for r in updated(factor=0.9)
    ]
    found = only(last_updates([*updated(), *other]))
    assert {one.card: one.answer for one in found.comparisons} == {
        "H200": "no difference shown",
        "H200 NVL": "slower",
    }


def test_a_build_that_changed_on_some_gpus_alone_is_said() -> None:
    moved = {"host-0", "host-1"}
    records = [
        replace(r, fingerprint="84de9d54601af86b") if r.driver == NEW and r.host in moved else r
        for r in updated(6)
    ]
    assert only(last_updates(records)).also == (
        "build: 06ac349343b29ef4 and 84de9d54601af86b (on 4 of 6 GPUs)",
    )


def test_what_only_busy_runs_share_says_why_it_is_no_comparison() -> None:
    records = [
        *runs(1, 1, 5, driver=OLD),
        *runs(2, 1, 1, driver=NEW, day=5.0, **BUSY),
        *runs(3, 1, 4, driver=NEW, day=6.0, model_filename="other.gguf"),
    ]
    [one] = only(last_updates(records)).comparisons
    assert one.why == ("model: synthetic:7b-q4_0 and other.gguf",)


def test_a_driver_that_renames_a_gpu_changes_nothing() -> None:
    found = only(last_updates(updated(gpu_info="NVIDIA H200 SXM")))
    assert [one.answer for one in found.comparisons] == ["no difference shown"]


def test_one_run_on_either_side_is_too_few() -> None:
    [one] = only(last_updates(updated(1, 1, 0.7))).comparisons
    assert one.answer == "too few runs"
    assert one.ratio == pytest.approx(0.7, abs=0.01)
