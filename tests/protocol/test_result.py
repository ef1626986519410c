"""Checks as they are made and read."""

from __future__ import annotations

import pytest

from llamafleet.protocol.result import Check, Status, failed, passed, skipped, upgraded
from tests.history import VERSION_1


def test_each_kind_of_check_says_what_it_knows() -> None:
    assert passed("vram", "3 MiB", "2 MiB") == Check("vram", "pass", "3 MiB", "2 MiB", "")
    assert failed("vram", "1 MiB", "2 MiB", "do this") == Check(
        "vram", "fail", "1 MiB", "2 MiB", "do this"
    )
    assert skipped("vram", "no GPU") == Check("vram", "skip", "no GPU", "nothing: not checked", "")


@pytest.mark.parametrize(
    ("status", "next_", "text"),
    [
        ("pass", "", "ok   vram           1 MiB"),
        ("skip", "", "skip vram           1 MiB"),
        ("warn", "do this", "WARN vram           1 MiB\n     next:          do this"),
        (
            "fail",
            "do this",
            "FAIL vram           1 MiB\n     expected:      2 MiB\n     next:          do this",
        ),
    ],
)
def test_the_lines_of_a_check_stand_below_each_other(status: Status, next_: str, text: str) -> None:
    assert Check("vram", status, "1 MiB", "2 MiB", next_).line() == text


@pytest.mark.parametrize("model", [None, {}])
def test_version_1_without_a_model_names_none(model: object) -> None:
    (row,) = upgraded({**VERSION_1, "model": model})["gpus"]
    assert row["model"] == ""
