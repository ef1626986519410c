"""A run as JUnit's XML."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from xml.etree import ElementTree

import pytest

from llamafleet.history import junit
from llamafleet.history.runs import Run, RunState
from llamafleet.history.store import GpuLine, Row
from llamafleet.protocol.result import Verdict


def run(*rows: Row, state: RunState = "complete") -> Run:
    return Run(
        id="20261126T220000.000000Z-abcd",
        started=datetime(2026, 11, 26, 22, tzinfo=timezone.utc),
        command=("pyinfra", "-y", "inventory", "deploy.py"),
        hosts=tuple(row.host for row in rows),
        fleet=len(rows),
        waves=(),
        state=state,
        rows=rows,
    )


def read(*rows: Row, state: RunState = "complete") -> ElementTree.Element:
    return ElementTree.fromstring(junit.render(run(*rows, state=state)))


def failed(suites: ElementTree.Element) -> list[str]:
    return [case.get("name") or "" for case in suites.iter("testcase") if len(case)]


@pytest.mark.parametrize(
    ("verdict", "allowed", "fails"),
    [
        ("PASS", False, 0), ("CPU ONLY", False, 0), ("FAIL", False, 1), ("BUSY", False, 1),
        ("BUSY", True, 0), ("NOT VERIFIED", False, 1),
    ],
)  # fmt: skip
def test_a_verdict_that_is_not_good_fails(verdict: Verdict, allowed: bool, fails: int) -> None:
    suites = read(Row(host="gpu-a", verdict=verdict, allowed=allowed, reason=("why",)))
    assert (suites.get("tests"), suites.get("failures")) == ("1", str(fails))
    assert failed(suites) == ["host"] * fails


def test_each_gpu_is_a_case_and_has_its_reason() -> None:
    gpus = GpuLine("RTX 4090", "GPU-1", "PASS"), GpuLine("RTX 4090", "GPU-2", "FAIL")
    reason = ("RTX 4090 GPU-2: offload: found 17 of 33; expected 33; next: deploy",)
    suites = read(Row(host="gpu-a", verdict="FAIL", gpus=gpus, reason=reason, pp=11000.0))
    assert failed(suites) == ["host", "RTX 4090 GPU-2"]
    messages = [one.get("message") for one in suites.iter("failure")]
    assert messages == [f"FAIL: {reason[0]}"] * 2
    (suite,) = suites.findall("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [(p.get("name"), p.get("value")) for p in suite.iter("property")] == [("pp", "11000.0")]


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_a_run_that_was_cut_off_fails_whatever_its_rows_say(state: RunState) -> None:
    suites = read(Row(host="gpu-a", verdict="PASS"), state=state)
    assert suites.get("failures") == "1"


def test_a_run_without_hosts_fails() -> None:
    assert read().get("failures") == "1"


@pytest.mark.parametrize(("allowed", "names"), [(False, ["host", "g GPU-1"]), (True, [])])
def test_a_busy_gpu_fails_unless_the_settings_allow_it(allowed: bool, names: list[str]) -> None:
    gpu = GpuLine("g", "GPU-1", "BUSY", busy=True)
    row = Row("gpu-a", "BUSY", gpus=(gpu,), busy=("GPU-1: in use", "GPU-2: hot"), allowed=allowed)
    suites = read(row)
    assert failed(suites) == names
    texts = [one.text for one in suites.iter("failure")]
    assert texts == ["GPU-1: in use\nGPU-2: hot", "GPU-1: in use"][: len(names)]


ALLOWED = {
    "testsuites": {"name", "tests", "failures"},
    "testsuite": {"name", "tests", "failures", "timestamp"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"classname", "name"},
    "failure": {"type", "message"},
}
"""Of what Jenkins' xunit-plugin allows in its junit-10.xsd."""


def test_it_has_nothing_that_jenkins_schema_has_not() -> None:
    rows = (
        Row("a", "FAIL", driver="580", reason=("why",), gpus=(GpuLine("g", "GPU-1", "PASS"),)),
        Row("b", "PASS"),
    )
    suites = read(*rows, state="interrupted")
    for one in suites.iter():
        assert set(one.keys()) <= ALLOWED[one.tag], one.tag
    times = {suite.get("timestamp") for suite in suites.iter("testsuite")}
    assert times == {"2026-11-26T22:00:00+00:00"}


def test_a_run_that_was_cut_off_before_any_host_says_both() -> None:
    (failure,) = read(state="interrupted").iter("failure")
    assert "INTERRUPTED" in failure.get("message", "")
    assert "nothing is proven" in failure.get("message", "")


def test_no_host_can_break_the_file() -> None:
    hostile = "]]><failure/>&\x00\x1b\ufffe\ud800\"'"
    row = Row(host=hostile, verdict="FAIL", reason=(hostile,), driver=hostile,
              gpus=(GpuLine(hostile, hostile, "FAIL"),))  # fmt: skip
    plain = replace(row, host="a", reason=("b",), driver="c", gpus=(GpuLine("d", "e", "FAIL"),))
    shapes = [[one.tag for one in read(some).iter()] for some in (row, plain)]
    assert shapes[0] == shapes[1]
