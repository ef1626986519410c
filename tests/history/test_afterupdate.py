"""The end of a run after a driver update: all GPUs together, where that says anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.history.afterupdate import after_update
from llamafleet.history.records import History
from llamafleet.history.store import Row
from llamafleet.history.update import Side, Update
from tests.history.made import runs

OLD, NEW = "570.86.10", "580.95.05"
UPDATE = Update(Side(OLD, "PASS", "b"), Side(NEW, "PASS", "b"))


def kept(folder: Path, gpus: int, factor: float) -> list[Row]:
    """A fleet of two GPUs a host, measured once before and once since."""
    records = [
        *runs(1, gpus, 1, driver=OLD),
        *runs(3, gpus, 1, driver=NEW, day=5.0, factor=factor),
    ]
    History(folder).add(records)
    hosts = dict.fromkeys(record.host for record in records)
    return [Row(host=host, verdict="PASS", update=UPDATE) for host in hosts]


def test_a_fleet_s_update_is_judged_as_one(tmp_path: Path) -> None:
    rows = kept(tmp_path, 8, 0.95)
    lines = after_update(tmp_path, rows)
    assert lines[0].startswith("driver 570.86.10 -> 580.95.05, first measured 2026-11-06 ")
    assert lines[2].endswith("SLOWER")
    assert lines[3].strip() == "A: 8 runs on 8 GPUs, B: 8 runs on 8 GPUs"


@pytest.mark.parametrize("gpus", [1, 5])
def test_too_few_runs_say_nothing_here(tmp_path: Path, gpus: int) -> None:
    assert after_update(tmp_path, kept(tmp_path, gpus, 0.5)) == []


def test_only_hosts_of_this_run_that_were_updated(tmp_path: Path) -> None:
    rows = kept(tmp_path, 16, 0.95)
    assert "A: 8 runs on 8 GPUs" in "\n".join(after_update(tmp_path, rows[:4]))
    assert after_update(tmp_path, [replace(row, update=None) for row in rows]) == []
    other = replace(UPDATE, after=Side("590.1.1", "PASS", "b"))
    assert after_update(tmp_path, [replace(row, update=other) for row in rows]) == []


def test_a_host_with_a_wild_name_is_no_pattern(tmp_path: Path) -> None:
    rows = kept(tmp_path, 8, 0.95)
    assert after_update(tmp_path, [replace(rows[0], host="host-*")]) == []


def test_without_a_history_a_run_ends_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(b"no database")
    row = Row(host="host-0", verdict="PASS", update=UPDATE)
    assert after_update(tmp_path, [row]) == []
