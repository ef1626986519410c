"""A run as Markdown."""

from __future__ import annotations

import re

import pytest

from llamafleet.history import markdown
from llamafleet.history.store import GpuLine, Row
from llamafleet.history.update import Rate, Side, Update
from tests.history.test_junit import run


def test_a_table_with_a_line_for_each_gpu() -> None:
    gpus = (
        GpuLine("H100", "GPU-1", "PASS", 12501.0, 345.9),
        GpuLine("H100", "GPU-2", "BUSY", 12538.0, 64.8, busy=True),
    )
    row = Row(host="gpu_a", verdict="BUSY", gpu="2x H100", gpus=gpus, busy=("why",), pp=1.0, tg=2.0)
    lines = markdown.render(run(row)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2:] == [
        r"| gpu\_a | 2x H100 | - | - | - | **BUSY** | 1.0 | 2.0 |",
        r"|  | H100 GPU-1 |  |  |  | PASS | 12,501.0 | 345.9 |",
        r"|  | H100 GPU-2 |  |  |  | BUSY | (12,538.0) | (64.8) |",
    ]
    assert r"- **gpu\_a BUSY**: `why`" in lines


def test_a_driver_update_is_told_below_the_table() -> None:
    sides = (
        Side("575", "PASS", "a", None, Rate(100, 1)),
        Side("580", "PASS", "a", None, Rate(90, 1)),
    )
    text = markdown.render(run(Row(host="a", verdict="PASS", update=Update(*sides))))
    assert "**After a driver update**" in text
    assert "-10.0 %, SLOWER" in text


def test_gpus_that_are_left_out_are_told() -> None:
    row = Row("gpu-a", "PASS", left_out=("H100 GPU-2", "H100 GPU-3"))
    assert (
        "- **gpu-a**: `not verified, as the setting gpus says: H100 GPU-2, H100 GPU-3`"
        in markdown.render(run(row)).splitlines()
    )


def test_no_hosts_prove_nothing_and_a_cut_off_run_says_so() -> None:
    assert "nothing is proven" in markdown.render(run())
    assert "**INTERRUPTED" in markdown.render(run(Row("a", "PASS"), state="interrupted"))


@pytest.mark.parametrize(
    "hostile",
    [
        "a|b",
        "<img src=x>",
        "[x](javascript:y)",
        "@everyone",
        "a\n| b |",
        "`" * 3,
        "a`b`c",
        "`a``",
        "~~~",
        "\x1b[31m",
        "@local",
        "a@b.c|d`e",
        "see #12, org/repo#1, GH-1",
        "www.example.com",
        "http://example.com",
    ],
)
def test_what_hosts_say_stays_a_text(hostile: str) -> None:
    gpu = GpuLine(hostile, hostile, "FAIL")
    row = Row(host=hostile, verdict="FAIL", gpu=hostile, gpus=(gpu, gpu), reason=(hostile,))
    lines = markdown.render(run(row)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {9}
    for line in table:
        # Code is what stands between two runs of as many backticks; no escape counts within.
        shown = re.sub(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", "", line)
        assert not re.search(r"(?<!\\)[<\[`~]", shown)
        # These GitHub makes links and mentions of, though they are escaped (cmark-gfm 0.29).
        assert not re.search(r"[@#]|www\.|//|GH-", shown)
    (reason,) = (line for line in lines if line.startswith("- "))
    runs = re.findall("`+", reason.split(": ", 1)[1])
    # The code ends at the first run of as many backticks: that must be the last.
    assert [len(one) for one in runs].index(len(runs[0]), 1) == len(runs) - 1
