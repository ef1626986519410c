"""The hold on the driver's packages as commands, and its files."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import HOLD_APT, Layout
from llamafleet.managed import Managed, rows
from llamafleet.plans.driver.hold import plan_hold
from llamafleet.plans.files import plan_files
from llamafleet.plans.plan import HoldPlan, Plan, Problem
from llamafleet.render import content_sha256
from llamafleet.settings import Settings
from operations import hold
from tests.plans.driver.test_hold import PARTS, host

LAYOUT = Layout.system()
RECORD = LAYOUT.hold_record
ON, OFF = Settings(hold_driver=True), Settings()


def carry_out(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, files: dict[str, str], **found: Any
) -> tuple[list[str], list[str]]:
    """What the operation runs, uploads as their target, and the changes that it records."""
    snapshot = replace(host(**found), files=files)
    changes: list[str] = []
    plan = Plan("gpu-a", "cuda", hold=held(settings, snapshot))
    run = SimpleNamespace(
        noop=lambda text: None,
        settings=settings,
        plan=lambda: plan,
        layout=lambda: LAYOUT,
        files=lambda group: plan_files(group, plan, settings, snapshot, LAYOUT, sha256=sha256),
        changed=changes.append,
    )
    monkeypatch.setattr(hold, "here", lambda: run)
    made: Any = hold.hold._inner  # type: ignore[attr-defined]
    commands = [str(getattr(c, "dest", c)) for c in made()]
    return [c for c in commands if not c.startswith(("mkdir", "chmod"))], changes


def held(settings: Settings, snapshot: HostSnapshot) -> HoldPlan | None:
    made = plan_hold(settings, snapshot)
    assert not isinstance(made, Problem), made
    return made


def sha256(row: Managed, plan: Plan) -> str:
    return content_sha256(row, plan, ON, LAYOUT)


def there(*record: str) -> dict[str, str]:
    """A host's files after a run that held these."""
    plan = Plan("gpu-a", "cuda", hold=HoldPlan("", record=record))
    return {row.path(LAYOUT): sha256(row, plan) for row in rows(LAYOUT, "hold")}


def test_the_record_is_there_before_the_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, changes = carry_out(monkeypatch, ON, {})
    names = " ".join(PARTS)
    assert commands == [f"{RECORD}.partial", f"{HOLD_APT}.partial", f"apt-mark hold {names}"]
    assert changes == ["3 packages held"]


def test_the_second_run_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert carry_out(monkeypatch, ON, there(*PARTS), held=PARTS, record=PARTS) == ([], [])


def test_a_file_that_was_changed_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**there(*PARTS), HOLD_APT: "0"}
    commands, changes = carry_out(monkeypatch, ON, files, held=PARTS, record=PARTS)
    assert commands == [f"{HOLD_APT}.partial"] and changes == ["files of the hold"]


def test_release_removes_the_files_last(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, changes = carry_out(monkeypatch, OFF, there(*PARTS), held=PARTS, record=PARTS)
    assert commands == [f"apt-mark unhold {' '.join(PARTS)}", f"rm -f {RECORD} {HOLD_APT}"]
    assert changes == ["hold released"]


def test_without_the_setting_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert carry_out(monkeypatch, OFF, {}, held=PARTS) == ([], [])


def test_dnf_has_no_list_of_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, _ = carry_out(monkeypatch, ON, {}, manager="dnf")
    assert [c.split()[0] for c in commands] == [f"{RECORD}.partial", "dnf"]
