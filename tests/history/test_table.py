"""The table: whatever the rows hold, it fits a terminal and stays a table."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafleet.history import comparable
from llamafleet.history.store import GpuLine, Row
from llamafleet.history.table import COLOURS, HEADERS, WIDTH, table
from llamafleet.protocol.result import Verdict
from llamafleet.terminal import GREEN, RESET, columns
from tests.history import RESULT, gpu
from tests.history.made import record

VERDICTS: tuple[Verdict, ...] = ("PASS", "FAIL", "BUSY", "CPU ONLY", "NOT VERIFIED")
WORDS = (
    "",
    "gpu-a",
    "計算機一号",
    "e\u0301" * 9,
    "NVIDIA " * 9,
    "\x1b[2J",
    "x" * 300,
    "👩‍🔬",
    "\ud800",
)

text = st.sampled_from(WORDS) | st.text(max_size=50)
rate = st.none() | st.floats() | st.sampled_from([0.0, 12343.2, 999_999.96, 1e300, -1e9])
verdict = st.sampled_from(VERDICTS)
gpu_line = st.builds(
    GpuLine, name=text, uuid=text, verdict=verdict, pp=rate, tg=rate, busy=st.booleans()
)
row = st.builds(
    Row,
    host=text,
    verdict=verdict,
    gpu=text,
    driver=text,
    toolkit=text,
    build=text,
    pp=rate,
    tg=rate,
    gpus=st.lists(gpu_line, max_size=4).map(tuple),
    changed=st.lists(text, max_size=4).map(tuple),
    figures_busy=st.booleans(),
    left_out=st.lists(text, max_size=3).map(tuple),
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(row, min_size=1, max_size=5))
def test_no_line_is_wider_than_a_terminal(rows: list[Row]) -> None:
    lines, _ = table(rows)
    assert len(lines) == 2 + sum(1 + (len(r.gpus) if len(r.gpus) > 1 else 0) for r in rows)
    for line in lines:
        assert columns(line) <= WIDTH, line
        assert line.isprintable() and line == line.rstrip()
    assert set(lines[1]) == {"-", " "}


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(row, min_size=1, max_size=5))
def test_verdict_and_rates_are_whole_and_in_their_columns(rows: list[Row]) -> None:
    lines, _ = table(rows)
    head = lines[0]
    at = columns(head[: head.index("verdict")])
    told = [one for r in rows for one in (r, *(r.gpus if len(r.gpus) > 1 else ()))]
    for line, one in zip(lines[2:], told, strict=True):
        begins, seen = 0, 0
        while begins < at:
            begins += columns(line[seen])
            seen += 1
        assert line[seen:].startswith(one.verdict), line


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(row, min_size=1, max_size=5))
def test_in_colour_it_is_the_same_table(rows: list[Row]) -> None:
    """And each line has the colour of its own verdict, once, whatever a host's texts hold."""
    plain, whole = table(rows)
    lines, as_whole = table(rows, colours=True)
    assert [re.sub("\x1b\\[[0-9]*m", "", line) for line in lines] == plain and as_whole == whole
    told = [one for r in rows for one in (r, *(r.gpus if len(r.gpus) > 1 else ()))]
    assert lines[:2] == plain[:2]
    for line, one in zip(lines[2:], told, strict=True):
        assert line.count("\x1b") == 2
        assert f"{COLOURS[one.verdict]}{one.verdict}{RESET}" in line


def test_each_verdict_has_its_colour() -> None:
    assert set(COLOURS) == set(VERDICTS)
    assert {one for one in COLOURS if COLOURS[one] == GREEN} == {"PASS"}


H100 = "NVIDIA H100 80GB HBM3"
ROW = Row(
    host="gpu-a.lab.example",
    verdict="PASS",
    gpu=f"2x {H100}",
    driver="580.159.04",
    toolkit="13.0",
    build="0123456789abcdef",
    pp=12343.2,
    tg=344.3,
    gpus=(
        GpuLine(H100, "GPU-11112222-3333", "PASS", 12501.0, 345.9),
        GpuLine(H100, "MIG-55556666-7777", "PASS", 12538.0, 345.8),
    ),
    changed=("verified",),
)


def test_a_host_of_two_gpus_has_room() -> None:
    lines, whole = table([ROW])
    name, blank = "580.159.04  13.0     01234567", " " * 40
    assert not whole and lines[2:] == [
        f"gpu-a.lab.example  2x H100 80GB HBM3  {name}  PASS     12343.2   344.3",
        f"- H100 80GB HBM3 GPU-11112222{blank}PASS     12501.0   345.9",
        f"- H100 80GB HBM3 MIG-55556666{blank}PASS     12538.0   345.8",
    ]
    lines, whole = table([replace(ROW, host="gpu-a")])
    assert whole and lines[2].endswith("344.3  verified")


@pytest.mark.parametrize("host", ["x" * 60, "計" * 40])
def test_long_names_are_cut_and_the_uuid_is_not(host: str) -> None:
    gpus = tuple(replace(gpu, name="G" * 90) for gpu in ROW.gpus)
    lines, _ = table([replace(ROW, host=host, gpu="G" * 90, gpus=gpus)])
    assert max(map(columns, lines)) == WIDTH
    assert lines[2].startswith(host[0]) and "…" in lines[2]
    assert lines[3].startswith("- GGG") and "… GPU-11112222  " in lines[3]


def test_every_column_has_a_name() -> None:
    lines, _ = table([replace(ROW, host="a")])
    assert lines[0].replace("pp t/s", "pp_t/s").replace("tg t/s", "tg_t/s").split() == [
        header.replace(" ", "_") for header in HEADERS
    ]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("NVIDIA H200",), "H200"),
        (("Tesla T4",), "T4"),
        (("NVIDIA Tesla V100-SXM2-16GB",), "V100-SXM2-16GB"),
        (("GeForce RTX 3090",), "GeForce RTX 3090"),
        (("Tesla T4", "Tesla T4", "NVIDIA A2"), "2x T4, A2"),
        (("NVIDIA A2", "NVIDIA Tesla T4"), "A2, T4"),
    ],
)
def test_a_gpu_has_the_name_that_the_history_gives_it(names: tuple[str, ...], shown: str) -> None:
    gpus = tuple(replace(gpu(n), name=name) for n, name in enumerate(names))
    lines, _ = table([Row.of("gpu-a", replace(RESULT, gpus=gpus), (), ())])
    told = record(gpus=len(names), gpu_info=", ".join(names))
    assert lines[2].split("  ")[1] == shown == comparable.cards(told)
    if len(names) > 1:
        listed = [line.removeprefix("- ").split(" GPU-")[0] for line in lines[3:]]
        assert listed == [comparable.card(record(gpu_info=name)) for name in names]
