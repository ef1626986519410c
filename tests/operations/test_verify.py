"""What a fetched result must be to count as this plan's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from llamafleet.layout import Layout
from llamafleet.plans.model import VerifyPlan
from operations import verify

WANTED = VerifyPlan("k1", {"driver": "580.95.05", "gpus": ["A"]}, needed=True, reason="")


def judged(result: dict[str, Any] | None) -> list[str]:
    said: list[str] = []
    run = SimpleNamespace(name="gpu-a", result=result, fail=said.append, layout=Layout.system)
    ended = verify._judge(cast("Any", None), cast("Any", None), cast("Any", run), WANTED)
    assert ended is False
    return said


def test_a_result_of_another_driver_or_gpu_says_which() -> None:
    other = {"key": "k0", "inputs": {"driver": "570.86.10", "gpus": []}, "verdict": "PASS"}
    assert "(driver 580.95.05 -> 570.86.10; gpus -A)" in judged(other)[0]


def test_no_result() -> None:
    assert "found no result on gpu-a" in judged(None)[0]


def test_red_checks_are_told_one_by_one() -> None:
    check = {"name": "vram", "status": "fail", "found": "0", "expected": "9", "next": "look"}
    green = check | {"name": "busy", "status": "pass"}
    result = {"key": "k1", "verdict": "FAIL", "checks": [check, green]}
    assert judged(result) == ["vram: found 0; expected 9; next: look"]
