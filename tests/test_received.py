"""Results as they come from hosts: old, newer, half written, hostile; one line, no traceback."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import pytest

from llamafleet.protocol.result import Result
from llamafleet.received import (
    LONGEST_TEXT,
    MOST_ITEMS,
    Unreadable,
    received_json,
    received_result,
    received_text,
)
from tests.history import OFFLOAD, ORIGIN, RESULT, VERSION_1, benchmark

DATA: dict[str, Any] = json.loads(json.dumps(asdict(RESULT)))


def changed(path: str, value: object, of: dict[str, Any] = DATA) -> dict[str, Any]:
    """A result with the value at a dotted path replaced."""
    data = deepcopy(of)
    *parents, last = path.split(".")
    at: Any = data
    for part in parents:
        at = at[int(part) if isinstance(at, list) else part]
    at[int(last) if isinstance(at, list) else last] = value
    return data


def test_a_result_comes_back_as_it_was_written() -> None:
    assert received_result(DATA) == RESULT


def test_keys_that_are_newer_are_left_out() -> None:
    data = changed("gpus.0.newer", {"x": 1}) | {"also_newer": [1]}
    assert received_result(data) == RESULT


def test_a_result_of_version_1_becomes_one_with_a_row() -> None:
    found = received_result(VERSION_1)
    assert isinstance(found, Result), found
    assert (found.verdict, found.key, found.inputs) == (RESULT.verdict, RESULT.key, RESULT.inputs)
    assert found.checks == (ORIGIN,) and found.benchmark is None
    (row,) = found.gpus
    assert (row.uuid, row.verdict, row.checks) == ("GPU-0", "PASS", (OFFLOAD,))
    assert row.bus_id == "" and row.model == "synthetic:7b-q4_0"
    assert row.benchmark is not None and row.benchmark.tg.median_ts == 150.5
    assert found.version == 2


def test_version_1_proves_no_gpu_of_several() -> None:
    gpus = VERSION_1["system"]["gpus"]
    data = changed("system.gpus", [*gpus, {**gpus[0], "uuid": "GPU-1"}], VERSION_1)
    found = received_result(data)
    assert isinstance(found, Result), found
    assert [gpu.verdict for gpu in found.gpus] == ["NOT VERIFIED", "NOT VERIFIED"]
    assert found.checks == (ORIGIN, OFFLOAD)
    assert found.measured == found.benchmark and found.benchmark is not None


def test_a_cpu_s_result_of_version_1_has_no_row() -> None:
    data = changed("system.gpus", [], VERSION_1) | {"verdict": "CPU ONLY"}
    found = received_result(data)
    assert isinstance(found, Result) and found.gpus == () and found.benchmark is not None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("verdict", "GOOD"),
        ("verdict", None),
        ("system", None),
        ("system.libraries", ["x"]),
        ("gpus", [{"index": 0}]),
        ("gpus", {"0": "x"}),
        ("gpus.0.uuid", 5),
        ("gpus.0.vram_mib", "24 GB"),
        ("gpus.0.verdict", "PASSED"),
        ("gpus.0.checks.0.status", "good"),
        ("checks", [{"name": "offload"}]),
        ("gpus.0.benchmark", {"pp": {"median_ts": "fast"}, "tg": {"median_ts": 1.0}}),
        ("gpus.0.benchmark.tg.median_ts", float("inf")),
        ("gpus.0.benchmark.tg.median_ts", float("nan")),
        ("build", None),
        ("build.wall_s", "long"),
        ("build.wheel_bytes", 10**400),
        ("build.phases", {"compile": "long"}),
        ("build.inputs", [1]),
        ("inputs.bench", 5),
        ("finished", "1795565000"),
        ("finished", True),
    ],
)
def test_a_wrong_type_is_one_line_that_names_it(path: str, value: object) -> None:
    found = received_result(changed(path, value))
    assert isinstance(found, Unreadable), found
    assert "\n" not in found.reason and len(found.reason) < 400
    if "median_ts" not in path and value != 10**400:
        assert path.rsplit(".", 1)[-1] in found.reason


@pytest.mark.parametrize("key", ["verdict", "inputs", "fingerprint", "key", "host", "finished"])
def test_a_missing_key_is_named(key: str) -> None:
    found = received_result({name: value for name, value in DATA.items() if name != key})
    assert found == Unreadable(f"{key}: found nothing")


@pytest.mark.parametrize("key", ["system", "checks", "benchmark", "verdict"])
def test_a_missing_key_of_version_1_is_named(key: str) -> None:
    found = received_result({name: value for name, value in VERSION_1.items() if name != key})
    assert isinstance(found, Unreadable) and key in found.reason


@pytest.mark.parametrize("version", [3, 99, 0, -1, None, "2", 2.0, True, [2]])
def test_another_version_is_named(version: object) -> None:
    found = received_result({**DATA, "version": version})
    assert isinstance(found, Unreadable)
    assert found.reason.startswith("found a result of version ")
    assert found.reason.endswith("expected 1 to 2")


@pytest.mark.parametrize("data", [None, [], "PASS", 5, [[[[]]]]])
def test_what_is_no_object(data: object) -> None:
    assert isinstance(received_result(data), Unreadable)


def test_errors_are_bounded_and_hold_no_escapes() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07" + "x" * 100_000
    data = changed("verdict", evil)
    data["gpus"] = [{evil: evil}] * 50
    found = received_result(data)
    assert isinstance(found, Unreadable)
    assert found.reason.isprintable() and len(found.reason) < 600
    assert "more" in found.reason


def test_depth_and_size_end_in_one_line() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"d": deep}
    found = received_result({**DATA, "build": {"inputs": deep}})
    assert isinstance(found, Unreadable) and found.reason.isprintable()
    text = '{"a":' * 200_000
    assert isinstance(received_text(Result, text), Unreadable)
    assert isinstance(received_text(Result, '{"version": 2, "host": "gpu'), Unreadable)
    huge = received_text(Result, json.dumps(DATA).replace("24564", "9" * 5000))
    assert isinstance(huge, Unreadable)


def test_a_benchmark_of_several_gpus_is_the_host_s() -> None:
    together = replace(RESULT, gpus=RESULT.gpus * 2, benchmark=benchmark(tg=99.0))
    assert together.measured is not None and together.measured.tg.median_ts == 99.0
    assert RESULT.measured is not None and RESULT.measured.tg.median_ts == 150.5
    assert replace(together, benchmark=None).measured is None


@pytest.mark.parametrize("evil", ["\n", "\x1b", "\x9b", "\r", "\u202e", "\u2028", "\ud800", "\0"])
def test_what_can_not_be_seen_is_a_blank_wherever_it_stands(evil: str) -> None:
    data = changed("gpus.0.name", f"RTX{evil}[31mPASS")
    data["build"]["inputs"] = {f"a{evil}b": [f"c{evil}d"]}
    found = received_result(data)
    assert isinstance(found, Result) and found.build is not None
    assert found.gpus[0].name == "RTX [31mPASS"
    assert found.build.inputs == {"a b": ["c d"]}


def test_texts_lists_and_numbers_are_bounded() -> None:
    found = received_result(changed("host", "x" * 100_000))
    assert isinstance(found, Result) and len(found.host) == LONGEST_TEXT
    assert isinstance(received_result(changed("checks", [None] * (MOST_ITEMS + 1))), Unreadable)
    begin = time.process_time()
    assert isinstance(received_json(f'{{"a": {"9" * 3_000_000}}}'), Unreadable)
    assert time.process_time() - begin < 5


def test_a_verdict_that_its_rows_do_not_hold_is_no_result() -> None:
    """A host's word alone: PASS beside a GPU that failed, or beside none."""
    for path, value in (("gpus.0.verdict", "FAIL"), ("gpus", [])):
        found = received_result(changed(path, value))
        assert isinstance(found, Unreadable) and found.reason.startswith("found PASS beside")
        busy = received_result({**changed(path, value), "verdict": "BUSY"})
        assert isinstance(busy, Unreadable) and busy.reason.startswith("found BUSY beside")
    good = received_result({**changed("gpus.0.verdict", "BUSY"), "verdict": "BUSY"})
    assert not isinstance(good, Unreadable)
    assert isinstance(received_result(changed("gpus.0.verdict", "BUSY")), Unreadable)
