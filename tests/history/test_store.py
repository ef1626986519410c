"""The store: rows from results, and files that are whole or absent."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from llamafleet.history.store import Built, Row, Store
from tests.history import RESULT


def of(result: dict[str, Any] | None = None, failures: list[str] | None = None) -> Row:
    return Row.of(host="gpu-a", result=result, changed=["built"], failures=failures or [])


def changed(path: str, value: object) -> dict[str, Any]:
    """RESULT with the value at a dotted path replaced."""
    result = deepcopy(RESULT)
    *parents, last = path.split(".")
    at: Any = result
    for part in parents:
        at = at[part]
    at[last] = value
    return result


def test_a_row_of_a_result() -> None:
    assert of(RESULT) == Row(
        host="gpu-a",
        verdict="PASS",
        gpu="2x NVIDIA GeForce RTX 4090, NVIDIA A100-PCIE-40GB",
        driver="580.95.05",
        toolkit="13.0",
        build="0123456789abcdef",
        pp=11536.25,
        tg=150.5,
        changed=("built",),
        built=Built(
            wall_s=333.4,
            cpu_s=4542.0,
            wheel_bytes=131_600_000,
            phases={"resolve": 3.0, "compile": 301.5},
        ),
    )


def test_a_failed_check_is_a_reason_with_the_next_command() -> None:
    check = {"name": "offload", "status": "fail", "found": "0 of 33 layers on CUDA0",
             "expected": "33 of 33", "next": "nvidia-smi"}  # fmt: skip
    result = {**changed("verdict", "FAIL"), "checks": [*RESULT["checks"], check]}
    row = of(result)
    assert row.verdict == "FAIL"
    assert row.reason == (
        "offload: found 0 of 33 layers on CUDA0; expected 33 of 33; next: nvidia-smi",
    )
    # The same reason told by the run itself is not told twice.
    assert of(result, failures=list(row.reason)).reason == row.reason


@pytest.mark.parametrize("verdict", ["PASS", "CPU ONLY"])
def test_no_good_verdict_beside_a_failed_check_or_a_failure(verdict: str) -> None:
    assert of(changed("verdict", verdict)).verdict == verdict
    assert of(changed("verdict", verdict), failures=["driver: found none"]).verdict == "FAIL"
    result = changed("verdict", verdict)
    result["checks"][0]["status"] = "fail"
    assert of(result).verdict == "FAIL"


def test_without_a_result() -> None:
    assert of(None, failures=["driver: found none"]) == Row(
        host="gpu-a", verdict="FAIL", changed=("built",), reason=("driver: found none",)
    )
    row = of(None)
    assert row.verdict == "NOT VERIFIED"
    assert row.reason == (
        "result: found no result of gpu-a; expected a finished verification; "
        "next: pyinfra -y inventory deploy.py",
    )


def test_a_result_without_benchmark_has_no_figures() -> None:
    row = of(changed("benchmark", None))
    assert (row.pp, row.tg) == (None, None)


def test_what_a_stamp_does_not_tell_stays_open() -> None:
    stamp = {"wall_s": 160.0, "cpu_s": None, "wheel_bytes": None, "phases": None}
    row = of(changed("build", stamp))
    assert (row.verdict, row.built, row.toolkit) == ("PASS", Built(wall_s=160.0), "")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 2),
        ("verdict", "GOOD"),
        ("verdict", None),
        ("system", None),
        ("system.gpus", [{"index": 0}]),
        ("checks", [{"name": "offload"}]),
        ("benchmark", {"pp": {"median_ts": "fast"}, "tg": {"median_ts": 1.0}}),
        ("build", None),
        ("build.wall_s", "long"),
        ("build.phases", {"compile": "long"}),
        ("build.inputs", [1]),
    ],
)
def test_a_result_that_can_t_be_understood_is_a_row_that_says_so(path: str, value: object) -> None:
    row = of(changed(path, value))
    assert row.verdict == "NOT VERIFIED"
    assert row.reason[0].startswith("result: found one that can't be understood (")
    assert "expected a finished verification; next: " in row.reason[0]
    assert row.changed == ("built",)


@pytest.mark.parametrize("key", ["verdict", "checks", "system", "benchmark", "fingerprint"])
def test_a_result_without_a_key(key: str) -> None:
    row = of({name: value for name, value in RESULT.items() if name != key})
    assert row.verdict == "NOT VERIFIED"
    assert key in row.reason[0]


@pytest.mark.parametrize(
    ("host", "folder"),
    [
        ("@local", "local"),
        ("gpu-a.example", "gpu-a.example"),
        ("@docker/debian:12", "docker_debian_12"),
        ("../etc", ".._etc"),
        ("..", "__"),
        ("a/b", "a_b"),
    ],
)
def test_a_host_s_folder_is_directly_below_the_root(host: str, folder: str, tmp_path: Path) -> None:
    found = Store(tmp_path).folder(host)
    assert found == tmp_path / folder
    assert found.resolve().parent == tmp_path.resolve()


def test_results_are_kept_under_their_time_and_as_the_latest(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    first = store.write_result("@local", RESULT)
    assert first == tmp_path / "results/local/20261125T000320Z-0123456789abcdef.json"
    second = store.write_result("@local", changed("finished", 1795565001.0))
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == [first.name, second.name, "latest.json"]
    assert json.loads(first.read_text()) == RESULT
    assert json.loads((first.parent / "latest.json").read_text())["finished"] == 1795565001.0


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write_result("gpu-a", RESULT)
    before = path.read_text()
    with pytest.raises(TypeError):
        store.write_result("gpu-a", {**RESULT, "model": object()})
    assert path.read_text() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, "latest.json"]
