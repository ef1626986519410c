"""Lines of text about comparisons."""

from __future__ import annotations

from typing import Any

import pytest

from llamafleet.cli.bands import expected
from llamafleet.history import record_table
from llamafleet.history.compare import compare
from llamafleet.history.comparison import Comparison
from llamafleet.history.words import difference, of_bands, of_comparisons
from tests.history.made import record


@pytest.mark.parametrize(
    ("ratio", "ends", "said"),
    [
        (0.961, (0.959, 0.963), "-3.9 % (-4.1 to -3.7)"),
        (1.2, (None, None), "+20.0 %"),
        (0.9999, (0.9996, 1.0004), "+0.0 % (+0.0 to +0.0)"),
        (None, (None, None), ""),
    ],
)
def test_a_difference_is_told_with_its_interval_and_never_as_minus_nothing(
    ratio: float | None, ends: tuple[float | None, float | None], said: str
) -> None:
    found = Comparison("tg128", "tg", "H100", "m", "slower", None, None, ratio, *ends)
    assert difference(found) == said


PAIR: dict[str, Any] = {"gpus": 2, "gpu_uuid": "", "gpu_info": "NVIDIA H200, NVIDIA H200"}
ALONE: dict[str, Any] = {"gpu_uuid": "", "gpu_info": "NVIDIA H100 80GB HBM3"}


def test_several_gpus_of_a_name_and_one_without_a_uuid_are_named_as_people_do() -> None:
    pair, alone, later = record(**PAIR), record(**ALONE), record(**PAIR, driver="590.1")
    lines = record_table.table([pair, alone])
    assert "  2x H200  " in lines[2]
    assert "  H100 80GB HBM3  " in lines[3]
    (found,) = compare([pair], [later], "driver")
    assert found.title == "2x H200, synthetic:7b-q4_0"
    heads = [line for line in of_bands([pair, alone], expected()) if line[0] != " "]
    assert heads == [
        "host-0 2x H200, synthetic:7b-q4_0",
        "host-0 H100 80GB HBM3, synthetic:7b-q4_0",
    ]


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (PAIR, "on 2 GPUs"),
        (ALONE, "on 1 GPU"),
        ({"gpus": 0, "gpu_uuid": "", "gpu_info": ""}, "on the CPU"),
    ],
)
def test_what_the_runs_were_made_on_is_counted(which: dict[str, Any], said: str) -> None:
    sides = [record(**which)], [record(**which, driver="590.1")]
    lines = list(of_comparisons(compare(*sides, "driver")))
    assert f"A: 1 run {said}, B: 1 run {said}" in " ".join(lines)
