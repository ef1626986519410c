"""The command that prints runs: what it says and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafleet.history.report import render
from llamafleet.history.store import LAST_RUN, Row, Store, Verdict
from tests.cli import run


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("CPU ONLY", 0), ("FAIL", 1)])
def test_report_prints_the_last_run_and_judges_it(
    verdict: Verdict, code: int, tmp_path: Path
) -> None:
    rows = [Row(host="gpu-a", verdict="PASS"), Row(host="gpu-b", verdict=verdict)]
    Store(tmp_path).write_run(rows)
    result = run("report", "--results", tmp_path)
    assert (result.output, result.exit_code) == (render(rows) + "\n", code)


def test_report_as_json(tmp_path: Path) -> None:
    Store(tmp_path).write_run([Row(host="gpu-a", verdict="FAIL", reason=("disk: found 2 GiB",))])
    result = run("report", "--json", "--results", tmp_path)
    (row,) = json.loads(result.output)
    assert (row["host"], row["verdict"], row["reason"]) == ("gpu-a", "FAIL", ["disk: found 2 GiB"])
    assert result.exit_code == 1


def test_report_without_a_run_is_bad_input(tmp_path: Path) -> None:
    result = run("report", "--results", tmp_path)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: no {tmp_path / LAST_RUN}: nothing was run here; "
        "next: pyinfra -y inventory deploy.py\n"
    )
