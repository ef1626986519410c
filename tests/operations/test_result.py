"""The result that a run fetches: which verdicts let a host through."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import operations.run
from llamafleet.history.store import Store
from llamafleet.plans.plan import Plan
from llamafleet.protocol.result import Check, Result, Verdict
from operations import verify
from operations.files import tools
from operations.preflight import preflight
from operations.verify import result
from tests.hosts.recorded import load
from tests.operations.fake import GPU, FakeHost, fleet
from tests.plans.hosts import proven

pytestmark = pytest.mark.usefixtures("frozen_tables")
RED = Check("vram", "fail", "0 MiB", "3500 MiB", "look")
GREEN = Check("busy", "pass", "0 MiB", "0 MiB")


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verify, "RESULTS", tmp_path)
    return tmp_path


def wanted(verdict: Verdict = "PASS", *red: Check) -> Result:
    """The result of the very plan of the recorded host, whose name the plan's inputs hold not."""
    found = proven(load(GPU).plan.verify, verdict)
    return replace(
        found, gpus=tuple(replace(gpu, checks=(*gpu.checks, *red)) for gpu in found.gpus)
    )


def failed(monkeypatch: pytest.MonkeyPatch, text: str | None) -> tuple[list[str], list[str]]:
    """Names of the hosts that failed, and why."""
    host = FakeHost()
    if text is not None:
        host.file("latest", "latest.json", text=text)
    with fleet(monkeypatch, {"a": host}) as run:
        return run.run(result), run.runs["a"].failures


def text(result: Result) -> str:
    return json.dumps(asdict(result))


def test_a_pass_of_this_plan_lets_the_host_through_and_is_kept(
    monkeypatch: pytest.MonkeyPatch, results: Path
) -> None:
    assert failed(monkeypatch, text(wanted())) == ([], [])
    assert len(list(Store(results).folder("@fake/a").glob("2*.json"))) == 1


@pytest.mark.parametrize("verdict", ["FAIL", "NOT VERIFIED"])
def test_any_other_verdict_fails_it(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    hosts, why = failed(monkeypatch, text(wanted(verdict, GREEN, RED)))
    assert hosts == ["@fake/a"]
    assert why == ["vram: found 0 MiB; expected 3500 MiB; next: look"]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_busy_host_goes_on_to_the_switch_and_its_row_stays_busy(
    monkeypatch: pytest.MonkeyPatch, results: Path, allowed: bool
) -> None:
    """Its build is proven; whether that is good is the setting of today."""
    found = replace(wanted("BUSY"), allow_busy=not allowed)
    host = FakeHost().file("latest", "latest.json", text=text(found))
    with fleet(monkeypatch, {"a": host}) as run:
        settings = run.runs["a"].settings
        run.runs["a"].settings = settings.model_copy(update={"allow_busy": allowed})
        assert run.run(result) == [] and run.runs["a"].failures == []
        kept = run.runs["a"].result
        assert isinstance(kept, Result) and kept.good is allowed
        row = run.runs["a"].row("complete", failed=False)
        assert row.verdict == "BUSY"
    assert len(list(Store(results).folder("@fake/a").glob("2*.json"))) == 1


def test_a_busy_host_with_a_red_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, why = failed(monkeypatch, text(wanted("BUSY", RED)))
    assert hosts == ["@fake/a"] and "vram: found 0 MiB" in why[0]


def test_a_verdict_without_a_reason_fails_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, why = failed(monkeypatch, text(wanted("FAIL")))
    assert hosts == ["@fake/a"] and "the verdict FAIL" in why[0]


def test_a_pass_of_something_else_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = wanted()
    (gpu,) = made.inputs.gpus
    other = replace(made, key="0" * 16, inputs=replace(made.inputs, driver="570.86.10", gpus=()))
    hosts, why = failed(monkeypatch, text(other))
    assert hosts == ["@fake/a"] and "a result of something else" in why[0]
    assert f"(driver {made.inputs.driver} -> 570.86.10; gpus -{gpu})" in why[0]


@pytest.mark.parametrize(
    ("other", "why_not"),
    [
        ({"machine_id": "f" * 32}, "the last result is of another machine"),
        ({"prefix": "/opt/llamafleet/versions/0123-2"}, "the last result is on another build"),
    ],
)
def test_a_pass_with_its_key_of_another_machine_or_build_fails_it(
    monkeypatch: pytest.MonkeyPatch, results: Path, other: dict[str, str], why_not: str
) -> None:
    """As a home that hosts share brings it, or one that was built again."""
    hosts, why = failed(monkeypatch, text(replace(wanted(), **other)))  # type: ignore[arg-type]
    assert hosts == ["@fake/a"] and f"a result of something else ({why_not}" in why[0]
    assert list(results.rglob("*.json")) == [], "it is kept as nobody's"


@pytest.mark.parametrize("content", [None, "{", '{"version": 9}', '{"version": 2}', "[]"])
def test_none_or_an_unreadable_one_fails_it(
    monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    hosts, why = failed(monkeypatch, content)
    assert hosts == ["@fake/a"] and len(why) == 1
    assert (
        "no result (no verification was begun there) on @fake/a"
        if content is None
        else "can't be understood"
    ) in why[0]


def test_an_unreadable_one_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    _, why = failed(monkeypatch, text(wanted()).replace('"version": 2', '"version": 9'))
    assert "can't be understood (found a result of version 9" in why[0]


@pytest.mark.parametrize("dry", [True, False])
def test_only_a_run_that_is_carried_out_keeps_the_result(
    monkeypatch: pytest.MonkeyPatch, results: Path, dry: bool
) -> None:
    new, store = wanted(), Store(results)
    inputs = replace(new.inputs, driver="570.86.10")
    store.write_result("@fake/a", replace(new, key="k0", inputs=inputs, finished=1.0))
    before = sorted(results.rglob("*.json"))
    host = FakeHost().file("latest", "latest.json", text=text(new))
    with fleet(monkeypatch, {"a": host}, dry=dry) as run:
        assert run.run(result) == []
        assert (run.runs["a"].update is None) is dry
    assert host.sent == []
    assert (sorted(results.rglob("*.json")) == before) is dry


def test_what_is_prepared_before_it_is_asked_for_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without -y pyinfra prepares every operation; one that then breaks off must leave no PASS."""
    made = wanted()
    old = replace(made, key="0" * 16, inputs=replace(made.inputs, driver="570.86.10"))
    host = FakeHost().file("latest", "latest.json", text=text(old))
    host.answers = {"PUT": False, "mkdir": False}
    with fleet(monkeypatch, {"a": host}) as run:
        run.state.check_for_changes = True
        assert run.run(tools, result) == ["@fake/a"]
        assert run.runs["a"].row("complete", failed=True).verdict == "FAIL"


def test_a_result_that_can_not_be_kept_fails_its_host_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = FakeHost().file(
        "latest", "latest.json", text=text(replace(wanted(), fingerprint="x" * 400))
    )
    good = FakeHost().file("latest", "latest.json", text=text(wanted()))
    with fleet(monkeypatch, {"a": long, "b": good}) as run:
        assert run.run(result) == ["@fake/a"]
        assert "can't be kept" in run.runs["a"].failures[0]
        assert run.runs["b"].failures == []


def test_cpu_only_is_no_pass_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, why = failed(monkeypatch, text(replace(wanted(), verdict="CPU ONLY")))
    assert hosts == ["@fake/a"] and "the verdict CPU ONLY" in why[0]


@pytest.mark.parametrize("odd", ["13-rc1.0", "abc", "", "9" * 5000])
def test_a_compiler_of_no_version_stops_no_other_host(
    monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    host = FakeHost().found(f"compiler=/usr/bin/g++-99\tgcc\t{odd}")
    with fleet(monkeypatch, {"a": host, "b": FakeHost()}) as run:
        run.run(preflight)
        assert run.runs["a"].failures == run.runs["b"].failures == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("@begin smi_query\n 0,", "@begin smi_query\n {},"),
        ("@begin packages\n", "@begin packages\n libnvidia-compute-580 580.{} installed\n"),
    ],
)
def test_a_number_of_5000_digits_stops_no_other_host(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    host = FakeHost()
    assert before in host.text
    host.text = host.text.replace(before, after.format("1" * 5000), 1)
    with fleet(monkeypatch, {"a": host, "b": FakeHost()}) as run:
        run.run(preflight)
        assert run.runs["b"].failures == []


def test_a_plan_that_can_not_be_made_is_its_host_s_own_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = operations.run.make_plan

    def broken(name: str, *given: Any, **told: Any) -> Plan:
        if name == "@fake/a":
            raise ZeroDivisionError("of a fault of ours")
        return made(name, *given, **told)

    monkeypatch.setattr(operations.run, "make_plan", broken)
    with fleet(monkeypatch, {"a": FakeHost(), "b": FakeHost()}) as run:
        run.run(preflight)
        assert run.runs["a"].plan().problems[0].found == "ZeroDivisionError: of a fault of ours"
        assert run.runs["b"].plan().problems == ()
