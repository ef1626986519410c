"""The view of a fleet: 20 hosts with 64 GPUs each, at 100 and at 200 columns."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from llamafleet.cli.screen import picture, summary, table
from llamafleet.facts.gauges import GpuNow, ServiceNow
from llamafleet.plans.trouble import Line, by_trouble
from llamafleet.terminal import RED, RESET, YELLOW, columns

GPU = GpuNow(
    *(0, "GPU-1", "0000:01:00.0", "NVIDIA H100 80GB HBM3"),
    *(79000, 2000, 81559, 100, 699.5, 700, 1980, 2619, 71),
)
CHAT = ServiceNow("chat", "ready", "", {}, 0)
LONG = "hw thermal slowdown, " * 20


def fleet() -> list[Line]:
    lines = []
    for number in range(20):
        host = f"gpu-node-{number:02}.rack-7.example.org"
        for index in range(64):
            gpu = replace(GPU, index=index, pci=f"0000:{index:02x}:00.0")
            bad = index == 5
            lines.append(
                Line(
                    *(host, "throttled" if bad else "busy", LONG if bad else "", gpu),
                    *((), (CHAT,) if index == 0 else (), 41.25 if index == 0 else None),
                )
            )
    return by_trouble([*lines, Line("gpu-node-99", "unreachable", f"Connection refused {LONG}")])


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    begun = time.process_time()
    rows = table(fleet(), width)
    assert len(rows) == 1 + 20 * 64 + 1
    assert max(map(columns, rows)) <= width
    assert time.process_time() - begun < 2, "0.12 to 0.16 s on 2026-11-26, 2 busy cores"


def test_what_is_shown_where() -> None:
    wide, narrow = table(fleet(), 200), table(fleet(), 100)
    told = "host GPU % GiB W C SM MHz mem MHz proc tok/s service model state"
    assert " ".join(wide[0].split()) == told
    assert " ".join(narrow[0].split()) == "host GPU % GiB W C tok/s state"
    for rows in (wide, narrow):
        assert rows[1].startswith("gpu-node-99 ")
        assert "unreachable: Connection refused" in rows[1]
        assert "throttled: hw" in rows[2] and rows[2].startswith("gpu-node-00.rack-7.exam")
        assert rows[-1].endswith("busy")
    assert "  100  77.1/79.6  700/700  71" in narrow[2]


def test_a_screen_shows_the_worst_and_counts_the_rest() -> None:
    rows = picture(fleet(), 100, 30, colours=False)
    assert len(rows) == 30
    assert rows[0] == "GPUs 1280, hosts 21: 1 unreachable, 20 throttled, 1260 busy"
    assert rows[-1] == "and 1255 more, none in more trouble than these"
    assert not any("\x1b" in row for row in rows)
    coloured = picture(fleet(), 100, 30, colours=True)
    assert coloured[3].startswith(RED) and coloured[4].startswith(YELLOW)
    assert coloured[3].endswith(RESET) and not coloured[25].startswith("\x1b")


def test_what_a_host_says_moves_no_cursor() -> None:
    line = Line("\x1b[2J", "unreachable", "\x1b]0;title\x07\nsecond line")
    rows = table([line], 100)
    assert len(rows) == 2 and all(row.isprintable() for row in rows)


def test_a_fleet_of_nothing() -> None:
    assert table([], 100) == ["state"]
    assert summary([]) == "GPUs 0, hosts 0: "
