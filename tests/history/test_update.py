"""A driver update in the results: found once, with figures that can be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.history.report import render
from llamafleet.history.runs import Runs
from llamafleet.history.store import Row, Store
from llamafleet.history.update import Rate, change, describe, find_update
from llamafleet.protocol.result import Benchmark, Rates, Result, Verdict
from tests.history import RESULT, gpu


def result(
    driver: str | None,
    tg: float | None = 341.5,
    finished: float = 1.0,
    verdict: Verdict = "PASS",
    **inputs: Any,
) -> Result:
    rates = Benchmark(Rates(512, 12439.3, 165.2), Rates(128, tg or 0.0, 2.8)) if tg else None
    return replace(
        RESULT,
        finished=finished,
        verdict=verdict,
        inputs=replace(RESULT.inputs, driver=driver, **inputs),
        gpus=(replace(gpu(), benchmark=rates),),
    )


OLD = result("570.86.10")


def test_what_two_runs_differ_by_is_no_change() -> None:
    """One H200, one build, 40 seconds apart (2026-11-26): 12,281.9 ± 9.4 and 12,331.2 ± 31.5."""
    said = change("pp", Rate(12_281.9, 9.4), Rate(12_331.2, 31.5))
    assert said == "+0.4 %, less than runs of one GPU may differ by"
    assert change("tg", Rate(361.5, 0.3), Rate(357.0, 0.3)).endswith(
        "SLOWER than the spread explains"
    )
    # The 160M model on one H200 within a day.
    said = change("pp", Rate(106_114.0, 900.0), Rate(122_110.0, 900.0))
    assert said == "+15.1 %, less than runs of one GPU may differ by"
    said = change("tg", Rate(950.0, 1.0), Rate(1_050.0, 1.0))  # One side is enough.
    assert said == "+10.5 %, less than runs of one GPU may differ by"


def test_verdict_and_figures_with_their_spread_on_both_sides() -> None:
    found = find_update([OLD], result("580.95.05", tg=310.2, finished=2.0))
    assert found is not None
    assert describe(found) == [
        "driver 570.86.10 -> 580.95.05: PASS -> PASS",
        "pp 12,439.3 ± 165.2 -> 12,439.3 ± 165.2 t/s: +0.0 %, within the spread",
        "tg 341.5 ± 2.8 -> 310.2 ± 2.8 t/s: -9.2 %, SLOWER than the spread explains",
    ]


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (300.0, "-14.3 %, SLOWER than the spread explains"),
        (345.6, "-1.3 %, within the spread"),
        (354.4, "+1.3 %, within the spread"),
        (360.0, "+2.9 %, FASTER than the spread explains"),
    ],
)
def test_what_the_spread_explains(new: float, said: str) -> None:
    assert change("tg", Rate(350.0, 2.5), Rate(new, 2.0)) == said


def test_the_newest_result_of_another_driver_is_the_one_before() -> None:
    older = result("550.54.14", finished=0.5)
    found = find_update([older, OLD], result("580.95.05", finished=2.0))
    assert found is not None and found.before.driver == "570.86.10"


def test_figures_of_other_gpus_are_not_compared() -> None:
    """As where the setting gpus leaves one out since: both together are not one of them."""
    both = result("570.86.10", gpus=("NVIDIA H200 GPU-1", "NVIDIA H200 GPU-2"))
    one = result("580.95.05", finished=2.0, gpus=("NVIDIA H200 GPU-1",))
    found = find_update([both], one)
    assert found is not None
    line = "driver 570.86.10 -> 580.95.05: PASS -> PASS; not compared: another set of GPUs"
    assert describe(found) == [line]


def test_a_gpu_that_a_newer_driver_names_otherwise_is_the_same() -> None:
    before = result("460.32.03", gpus=("GeForce RTX 3090 GPU-1",))
    found = find_update([before], result("470.57.02", gpus=("NVIDIA GeForce RTX 3090 GPU-1",)))
    assert found is not None and found.differs == ()


def test_going_back_to_a_driver_is_an_update() -> None:
    new, back = result("580.95.05", finished=2.0), result("570.86.10", finished=3.0)
    found = find_update([OLD, new], back)
    assert found is not None
    assert describe(found)[0] == "driver 580.95.05 -> 570.86.10: PASS -> PASS"
    assert find_update([OLD, new, back], back) is None


def test_a_failed_verification_is_not_what_to_compare_with() -> None:
    failed = result("580.95.05", tg=None, finished=1.5, verdict="FAIL")
    found = find_update([OLD, failed], result("580.95.05", finished=2.0))
    assert found is not None and found.before.driver == "570.86.10"
    first = find_update([OLD], failed)
    assert first is not None and describe(first) == ["driver 570.86.10 -> 580.95.05: PASS -> FAIL"]


@pytest.mark.parametrize(
    ("earlier", "driver"),
    [
        ([], "580.95.05"),
        ([OLD], "570.86.10"),
        ([OLD, result("580.95.05", finished=1.5)], "580.95.05"),
        ([OLD], None),
        ([result(None)], "580.95.05"),
        ([result("570.86.10", tg=None)], "580.95.05"),
    ],
)
def test_no_update(earlier: list[Result], driver: str | None) -> None:
    assert find_update(earlier, result(driver, finished=2.0)) is None


def busy(driver: str, finished: float) -> Result:
    """Of a GPU that was not free."""
    one = result(driver, tg=64.8, finished=finished, verdict="BUSY")
    (row,) = one.gpus
    assert row.benchmark is not None
    figures = replace(row.benchmark, busy=("pid 42 computes there",))
    return replace(one, gpus=(replace(row, benchmark=figures),))


def test_a_busy_result_is_no_baseline() -> None:
    found = find_update([OLD, busy("570.86.10", 1.5)], result("580.95.05", finished=2.0))
    assert found is not None
    assert describe(found) == [
        "driver 570.86.10 -> 580.95.05: PASS -> PASS; 1 BUSY since then, no baseline",
        "pp 12,439.3 ± 165.2 -> 12,439.3 ± 165.2 t/s: +0.0 %, within the spread",
        "tg 341.5 ± 2.8 -> 341.5 ± 2.8 t/s: +0.0 %, within the spread",
    ]


def test_the_update_is_told_until_there_are_figures_to_compare() -> None:
    first = busy("580.95.05", 2.0)
    found = find_update([OLD], first)
    assert found is not None
    assert describe(found) == [
        "driver 570.86.10 -> 580.95.05: PASS -> BUSY; not compared: the GPU was BUSY after"
    ]
    second = find_update([OLD, first], result("580.95.05", tg=310.2, finished=3.0))
    assert second is not None and "SLOWER" in describe(second)[2]


def test_where_there_was_never_a_free_gpu_nothing_is_compared() -> None:
    found = find_update([busy("570.86.10", 1.0)], result("580.95.05", finished=2.0))
    assert found is not None
    assert describe(found) == [
        "driver 570.86.10 -> 580.95.05: BUSY -> PASS; not compared: the GPU was BUSY before"
    ]
    both = find_update([busy("570.86.10", 1.0)], busy("580.95.05", 2.0))
    assert both is not None and describe(both)[0].endswith("BUSY before and after")


def test_figures_of_another_model_are_not_compared() -> None:
    found = find_update([OLD], result("580.95.05", model="/m.gguf"))
    assert found is not None
    assert describe(found) == [
        "driver 570.86.10 -> 580.95.05: PASS -> PASS; not compared: another model"
    ]


def test_another_build_is_told_and_compared() -> None:
    rebuilt = replace(result("535.183.01"), fingerprint="aaaaaaaabbbbbbbb")
    found = find_update([OLD], rebuilt)
    assert found is not None
    assert describe(found)[0].endswith("PASS -> PASS, build 01234567 -> aaaaaaaa")
    assert len(describe(found)) == 3


def test_told_once_and_again_by_the_report_of_that_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_result("gpu-a", OLD)
    (store.folder("gpu-a") / "broken.json").write_text("{")
    new = result("580.95.05", tg=310.2, finished=2.0)
    update = store.update("gpu-a", new)
    store.write_result("gpu-a", new)
    assert update is not None and store.update("gpu-a", new) is None
    runs = Runs(tmp_path)
    first = runs.begin(["pyinfra"], ["gpu-a"], 1, [["gpu-a"]])
    runs.finish(first, "complete", [Row.of("gpu-a", new, ["verified"], [], update=update)])
    text = render(runs.read(first.id).rows)
    assert "gpu-a driver 570.86.10 -> 580.95.05: PASS -> PASS" in text
    assert "gpu-a tg 341.5 ± 2.8 -> 310.2 ± 2.8 t/s: -9.2 %, SLOWER" in text
    assert "->" not in render([Row.of("gpu-a", new, [], [])])
