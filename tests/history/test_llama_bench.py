"""Files of llama-bench: a real one, and what no llama-bench writes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.history.llama_bench import (
    COLUMNS,
    LARGEST,
    OURS,
    BenchFileError,
    line_of,
    read_file,
    record_of,
    row_of,
)
from llamafleet.history.record import Record
from llamafleet.history.records import records_of, with_id
from llamafleet.received import Unreadable
from tests.history import RESULT

REAL = Path(__file__).with_name("data") / "llama-bench-0.3.36-cpu.jsonl"
"""Of llama-bench of llama-cpp-python 0.3.36 on a CPU: -p 32 -n 8 -fa 0,1, then -pg 16,4."""
ON_GPU = REAL.with_name("llama-bench-0.3.36-h100.jsonl")
"""Of the same program on the CUDA libraries of a verified build: -ngl 99 -p 512 -n 128 -r 5 with
-fa 0 and 1, the synthetic models 160m, 1b and 7b in Q4_0 (driver 580.159.04, CUDA 13.0)."""
LINES = REAL.read_text("utf-8").splitlines()
ROW: dict[str, Any] = json.loads(LINES[1])

GPU: dict[str, Any] = {
    **ROW,
    "backends": "CUDA",
    "gpu_info": "NVIDIA H100 80GB HBM3, NVIDIA H200",
    "n_gpu_layers": 99,
    "build_commit": "abc1234",
    "build_number": 7000,
}


def of(**changes: Any) -> Record:
    found = record_of(json.dumps({**GPU, **changes}), "box")
    assert isinstance(found, Record), found
    return found


def test_every_column_that_it_prints_is_known() -> None:
    assert tuple(ROW) == COLUMNS


def test_a_file_of_a_gpu_comes_in_and_goes_out_as_it_was() -> None:
    found = list(read_file(ON_GPU, "box"))
    records = [one for one in found if isinstance(one, Record)]
    assert len(records) == len(found) == 12
    assert {(r.gpu_info, r.gpus, r.gpu_uuid) for r in records} == {("NVIDIA H100 80GB HBM3", 1, "")}
    assert [r.flash_attn for r in records] == [False, False, True, True] * 3
    rates = {(r.test, r.flash_attn): round(r.median_ts) for r in records[-4:]}
    assert rates == {
        ("pp", False): 10774, ("tg", False): 294, ("pp", True): 12517, ("tg", True): 345,
    }  # fmt: skip
    rows = [row_of(one) for one in records]
    assert [{name: row[name] for name in COLUMNS} for row in rows] == [
        json.loads(line) for line in ON_GPU.read_text("utf-8").splitlines()
    ]


def test_a_real_file_comes_in_and_goes_out_as_it_was() -> None:
    *found, refused = read_file(REAL, "box")
    records = [one for one in found if isinstance(one, Record)]
    assert [(r.test, r.n_prompt, r.n_gen, r.flash_attn) for r in records] == [
        ("pp", 32, 0, False), ("tg", 0, 8, False), ("pp", 32, 0, True), ("tg", 0, 8, True),
    ]  # fmt: skip
    # One that measures both at once is neither.
    assert isinstance(refused, str)
    assert refused.startswith(f"{REAL}:5: found n_prompt 16 and n_gen 4; expected one of them")
    for record, line in zip(records, LINES, strict=False):
        assert row_of(record) == json.loads(line)
        assert list(row_of(record)) == list(COLUMNS), "in its order"
        assert json.loads(line_of(record)) == json.loads(line)
        assert record_of(line_of(record), "box", REAL.name) == record, "once more in"


def test_the_samples_are_as_exact_as_nanoseconds() -> None:
    record = of()
    assert record.samples_ts == tuple(1e9 * 8 / ns for ns in ROW["samples_ns"])
    assert record.median_ts == sorted(record.samples_ts)[1]
    assert (record.avg_ts, record.stddev_ts) == (ROW["avg_ts"], ROW["stddev_ts"])
    assert of(samples_ns=[]).samples_ts == tuple(ROW["samples_ts"])
    assert of(samples_ns=[], samples_ts=[]).median_ts == ROW["avg_ts"]


@pytest.mark.parametrize(
    ("changes", "gpus", "names"),
    [
        ({}, 2, "NVIDIA H100 80GB HBM3, NVIDIA H200"),
        ({"split_mode": "none"}, 1, "NVIDIA H100 80GB HBM3"),
        ({"split_mode": "none", "main_gpu": 1}, 1, "NVIDIA H200"),
        ({"split_mode": "none", "main_gpu": 7}, 1, "NVIDIA H100 80GB HBM3"),
        ({"devices": "CUDA1"}, 1, "NVIDIA H200"),
        ({"devices": "CUDA0/CUDA1"}, 2, "NVIDIA H100 80GB HBM3, NVIDIA H200"),
        ({"devices": "none"}, 0, ""),
        ({"n_gpu_layers": 0}, 0, ""),
        ({"backends": "CPU"}, 0, ""),
        ({"gpu_info": ""}, 0, ""),
    ],
)
def test_the_gpus_that_were_at_work(changes: dict[str, Any], gpus: int, names: str) -> None:
    record = of(**changes)
    assert (record.gpus, record.gpu_info, record.gpu_uuid) == (gpus, names, "")


def test_names_as_they_are_compared() -> None:
    assert of(model_filename="C:\\models\\a b.gguf").model_filename == "a b.gguf"
    assert of(model_filename="/models/7b.gguf").model_filename == "7b.gguf"
    assert [of(flash_attn=f).flash_attn for f in (-1, 0, 1, True)] == [None, False, True, True]
    assert row_of(of(flash_attn=True))["flash_attn"] is True, "as older ones write it"
    assert (of().build_number, of().build_commit) == (7000, "abc1234")
    assert (of(build_number=0, build_commit="unknown").build_number, of().host) == (None, "box")
    assert of().verdict is None


def test_what_an_older_one_lacks_and_a_newer_one_adds() -> None:
    few = {k: ROW[k] for k in ("n_prompt", "n_gen", "test_time", "avg_ts")}
    record = record_of(json.dumps(few), "")
    assert isinstance(record, Record)
    assert record.median_ts == ROW["avg_ts"]
    assert row_of(of(new_one={"a": [1]}))["new_one"] == {"a": [1]}


def test_a_record_of_ours_as_a_row() -> None:
    _, tg = records_of(RESULT)
    tg = with_id(
        replace(tg, samples_ts=(100.0, 200.0), busy=("pid 7",), throttled_s={"power": 1.0})
    )
    row = row_of(tg)
    assert list(row) == [*COLUMNS, OURS]
    assert (row["n_gen"], row["avg_ts"], row["backends"], row["flash_attn"]) == (
        128, 150.5, "CUDA", -1,
    )  # fmt: skip
    assert row["samples_ns"] == [1_280_000_000, 640_000_000]
    assert row["avg_ns"] == 960_000_000
    assert row["test_time"] == "2026-11-25T00:03:20Z"
    assert row["cpu_info"] is None, "a result does not tell it"
    assert record_of(json.dumps(row), "box") == tg, "the same measurement, BUSY as it was"
    del row[OURS]
    again = record_of(json.dumps(row), "gpu-a")
    assert isinstance(again, Record)
    assert (again.median_ts, again.gpu_info) == (150.0, tg.gpu_info)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"busy": "no"}, "found busy: found"),
        ({"median_ts": 1e6}, "which is not that of its figures in the column llamafleet"),
        ({"host": "h" * 501}, "found host of 501 characters"),
        (
            {"test_time": "2026-11-26T12:00:00"},
            "found test_time 2026-11-26 12:00:00 without a zone",
        ),
        ({"id": None}, "found id: found nothing|found id: found null"),
    ],
)
def test_a_column_of_ours_that_is_none(changes: dict[str, Any], said: str) -> None:
    row = row_of(records_of(RESULT)[1])
    found = record_of(json.dumps({**row, OURS: {**row[OURS], **changes}}), "")
    assert isinstance(found, Unreadable)
    assert re.search(said, found.reason), found.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_prompt": 16}, "n_prompt 16 and n_gen 8"),
        ({"n_gen": 0}, "n_prompt 0 and n_gen 0"),
        ({"n_gen": -8}, "n_prompt 0 and n_gen -8"),
        ({"n_gen": "8"}, "n_gen"),
        ({"n_gen": 2**64}, "bits"),
        ({"avg_ts": None}, "avg_ts: found nothing"),
        ({"avg_ts": -1.0}, "-1.0 tokens per second; expected more than 0"),
        ({"samples_ns": [], "samples_ts": [5.0, -1.0]}, "-1.0 tokens per second"),
        ({"samples_ns": [], "samples_ts": [0.0]}, "0.0 tokens per second"),
        ({"test_time": "9999-12-31T23:59:59-14:00"}, "which no calendar has in UTC"),
        ({"test_time": "0001-01-01T00:00:00+14:00"}, "which no calendar has in UTC"),
        ({"samples_ns": [0]}, "took no time"),
        ({"test_time": "yesterday"}, "found test_time 'yesterday'"),
        ({"test_time": "2026-11-26T12:00:00"}, "without a zone"),
        ({"test_time": "\x1b[2J"}, r"test_time ' \[2J'"),
    ],
)
def test_a_row_that_is_none(changes: dict[str, Any], said: str) -> None:
    found = record_of(json.dumps({**GPU, **changes}), "box")
    assert isinstance(found, Unreadable)
    assert re.search(said, found.reason), found.reason
    assert found.reason.isprintable()


@pytest.mark.parametrize("line", ["[]", "{", "null", '"x"', '{"avg_ts": NaN}', LINES[0][:500]])
def test_a_line_that_is_no_row(line: str) -> None:
    assert isinstance(record_of(line, ""), Unreadable)


def test_a_line_that_was_cut_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text(f"{LINES[0]}\n\n{LINES[1][:200]}\n{LINES[2]}\n\xff")
    first, cut, third, odd = read_file(path, "box")
    assert isinstance(first, Record) and isinstance(third, Record)
    assert str(cut).startswith(f"{path}:3: found no row of llama-bench (no JSON: ")
    assert str(odd).startswith(f"{path}:5: ")


def test_a_file_that_cant_be_read(tmp_path: Path) -> None:
    with pytest.raises(BenchFileError, match="no regular file"):
        list(read_file(tmp_path, ""))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(BenchFileError, match=f"found more than {LARGEST} bytes"):
        list(read_file(tmp_path / "large", ""))
