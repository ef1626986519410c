"""The end of a run, when all its operations are done: what it prints and what it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.history.records import History
from llamafleet.history.runs import Runs
from operations import run as room
from operations.run import fleet_of
from tests.history import RESULT
from tests.history.made import runs
from tests.history.test_afterupdate import NEW, OLD, UPDATE
from tests.operations.fake import FakeHost, fleet

HOST = "@fake/a"


class End:
    """A run of one host that was measured under a new driver, before its end."""

    def __init__(self, state: Any, of: Any) -> None:
        self.state, self.fleet = state, of
        self.run = of.runs[HOST]
        self.run.result, self.run.update = RESULT, UPDATE
        of.kept = Runs(room.RESULTS).begin(command=["pyinfra"], hosts=[HOST], fleet=1, waves=[])

    def finish(self) -> int:
        code: int = self.fleet.finish(self.state, interrupted=False)
        return code


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[End]:
    monkeypatch.setattr(room, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(room, "_end", lambda state: "complete")
    with fleet(monkeypatch, {"a": FakeHost()}) as made:
        yield End(made.state, fleet_of(made.state.inventory, report=True))


def measured_before_and_since() -> None:
    records = [*runs(1, 8, 1, driver=OLD), *runs(3, 8, 1, driver=NEW, day=5.0, factor=0.95)]
    History(room.RESULTS).add([replace(record, host=HOST) for record in records])


def test_what_a_driver_update_cost_stands_below_the_table(
    end: End, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_before_and_since()
    assert end.finish() == 0
    table, _, below = capsys.readouterr().err.partition(f"driver {OLD} -> {NEW}, first measured ")
    assert f"\n{HOST} " in table and "SLOWER" in below


@pytest.mark.parametrize("broken", ["keep_up", "after_update"])
def test_a_fault_of_the_history_takes_no_table_and_no_verdict_away(
    broken: str, end: End, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*told: object) -> list[str]:
        raise ZeroDivisionError("of a \x1b[2Jmedian")

    monkeypatch.setattr(room, broken, fail)
    assert end.finish() == 0
    said = capsys.readouterr().err
    assert f"\n{HOST} " in said
    assert "history: found ZeroDivisionError: of a \\x1b[2Jmedian; expected the runs" in said


def test_models_that_can_t_be_tidied_are_no_run_that_is_not_kept(
    end: End, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(now: float) -> list[str]:
        raise PermissionError("no")

    monkeypatch.setattr(type(end.fleet.sharing.models), "prune", lambda models, now: fail(now))
    assert end.finish() == 0
    said = capsys.readouterr().err
    assert "can't be tidied (no)" in said and "can't be kept" not in said
