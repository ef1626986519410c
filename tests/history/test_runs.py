"""Runs: each is kept, none hides another, and no file of one can do harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafleet.history import runs as module
from llamafleet.history.runs import ID, MAX_BYTES, MAX_TEXT, Run, RunError, Runs
from llamafleet.history.store import Row
from tests.history import RESULT

COMMAND = ["pyinfra", "-y", "inventory", "deploy.py"]


def row(host: str) -> Row:
    return Row.of(host, RESULT, ["built"], [])


def begun(folder: Path, *hosts: str) -> Run:
    return Runs(folder).begin(COMMAND, hosts, 40, [hosts])


def ended(folder: Path, *hosts: str) -> Run:
    return Runs(folder).finish(begun(folder, *hosts), "complete", map(row, hosts))


def path_of(folder: Path, run: Run) -> Path:
    return folder / "runs" / f"{run.id}.json"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(call: Callable[[], object]) -> str:
    """The error of a call: one line, of characters that can be seen."""
    with pytest.raises(RunError) as error:
        call()
    text = str(error.value)
    assert text.isprintable()
    return text


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = Runs(tmp_path).begin(COMMAND, ["gpu-b", "gpu-a"], 40, [["gpu-a"], ["gpu-b"]])
    rows = (row("gpu-b"), Row.of("gpu-a", None, [], ["driver: found none"]))
    run = Runs(tmp_path).finish(run, "interrupted", rows)
    assert Runs(tmp_path).read(run.id) == run
    assert (run.command, run.hosts, run.fleet) == (tuple(COMMAND), ("gpu-b", "gpu-a"), 40)
    assert (run.waves, run.state) == ((("gpu-a",), ("gpu-b",)), "interrupted")
    assert run.rows == rows
    assert run.started and run.finished and run.started <= run.finished


def test_every_run_is_kept_and_the_newest_is_the_last(tmp_path: Path) -> None:
    first = ended(tmp_path, "gpu-a", "gpu-b")
    before = path_of(tmp_path, first).read_bytes()
    second = ended(tmp_path, "gpu-a")
    assert path_of(tmp_path, first).read_bytes() == before
    assert list(Runs(tmp_path).newest_first()) == [second, first]
    assert Runs(tmp_path).last() == (second, [])


def test_an_id_sorts_by_time(tmp_path: Path) -> None:
    ids = [begun(tmp_path, "gpu-a").id for _ in range(100)]
    assert ids == sorted(ids) == Runs(tmp_path).ids()
    run = Runs(tmp_path).read(ids[0])
    assert ID.fullmatch(run.id) and run.started
    assert re.sub(r"\D", "", run.id.split("Z")[0]) == f"{run.started:%Y%m%d%H%M%S%f}"


def test_an_id_that_is_taken_is_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 11, 26, 1, 2, 3, 4000, tzinfo=tz)

    drawn = iter(["ab12", "ab12", "ab12", "cd34"])
    monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(module.secrets, "token_hex", lambda size: next(drawn))
    first, second = begun(tmp_path, "gpu-a"), begun(tmp_path, "gpu-b")
    assert first.id == "20261126T010203.004000Z-ab12"
    assert second.id == "20261126T010203.004000Z-cd34"
    assert Runs(tmp_path).read(first.id).hosts == ("gpu-a",)


BEGIN_50 = """
import sys
from pathlib import Path
from llamafleet.history.runs import Runs
for _ in range(50):
    print(Runs(Path(sys.argv[1])).begin([], ["gpu-a"], 1, []).id)
"""


def test_processes_that_begin_together_do_not_collide(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGIN_50, str(tmp_path)]
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = [run_id for process in together for run_id in process.communicate()[0].split()]
    assert len(ids) == len(set(ids)) == 200
    assert set(Runs(tmp_path).ids()) == set(ids)


def test_a_run_without_an_end_has_a_row_for_each_host(tmp_path: Path) -> None:
    run = Runs(tmp_path).read(begun(tmp_path, "gpu-a", "gpu-b").id)
    assert (run.state, run.finished) == ("running", None)
    assert [(r.host, r.verdict) for r in run.rows] == [
        ("gpu-a", "NOT VERIFIED"),
        ("gpu-b", "NOT VERIFIED"),
    ]
    assert "found no end of it for gpu-a" in run.rows[0].reason[0]


def test_a_host_whose_row_is_missing_is_not_verified(tmp_path: Path) -> None:
    run = Runs(tmp_path).finish(begun(tmp_path, "gpu-a", "gpu-b"), "complete", [row("gpu-b")])
    assert [(r.host, r.verdict) for r in Runs(tmp_path).read(run.id).rows] == [
        ("gpu-b", "PASS"),
        ("gpu-a", "NOT VERIFIED"),
    ]


def test_a_run_that_can_t_be_kept_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        begun(tmp_path, "gpu-a")
    assert list((tmp_path / "runs").iterdir()) == []


def test_no_run(tmp_path: Path) -> None:
    for call in (Runs(tmp_path).last, lambda: Runs(tmp_path).find("2026")):
        assert refused(call) == (
            f"found no run in {tmp_path}/runs; expected one; next: pyinfra -y inventory deploy.py"
        )
    (tmp_path / "runs").touch()
    assert refused(Runs(tmp_path).last) == (
        f"{tmp_path}/runs can't be read: found Not a directory; expected what a run wrote; "
        f"next: ls -ld {tmp_path}/runs"
    )


def kept_as(folder: Path, *ids: str) -> Runs:
    for run_id in ids:
        run = ended(folder, "gpu-a")
        change(path_of(folder, run), id=run_id)
        path_of(folder, run).rename(folder / "runs" / f"{run_id}.json")
    return Runs(folder)


def test_the_beginning_of_an_id_is_enough(tmp_path: Path) -> None:
    ids = [f"2026112{day}T010203.000000Z-ab12" for day in range(1, 6)]
    runs = kept_as(tmp_path, *ids)
    assert runs.find("20261121").id == ids[0]
    assert runs.find(ids[4]).id == ids[4]
    where = f"runs that begin so in {tmp_path}/runs; expected one, as "
    assert refused(lambda: runs.find("2026")) == (
        f"--run 2026: found 5 {where}{', '.join(ids[2:])} (2 more); "
        "next: llamafleet report --run all"
    )
    mistyped = refused(lambda: runs.find("20261122T010203.000000Z-ab13"))
    assert f"found no {where}{ids[1]}, " in mistyped
    assert f"found no {where}{', '.join(ids[2:])} (2 more); " in refused(lambda: runs.find("\x1b["))


def test_the_run_of_before_runs_were_kept_counts_until_there_is_another(tmp_path: Path) -> None:
    rows = [{"host": "gpu-a", "verdict": "PASS"}, {"host": "gpu-b", "verdict": "FAIL"}]
    (tmp_path / "last-run.json").write_text(json.dumps({"version": 1, "rows": rows}))
    runs = Runs(tmp_path)
    run, errors = runs.last()
    assert run is not None and errors == []
    assert (run.id, run.started, run.state) == ("last-run", None, "complete")
    assert [r.verdict for r in run.rows] == ["PASS", "FAIL"]
    assert runs.find("last") == run
    assert list(runs.newest_first()) == [run]
    newer = ended(tmp_path, "gpu-a")
    assert list(runs.newest_first()) == [newer]


def test_a_row_that_can_t_be_read_says_so_and_hides_no_other(tmp_path: Path) -> None:
    run = ended(tmp_path, "gpu-a", "gpu-b", "gpu-c")
    entries = json.loads(path_of(tmp_path, run).read_text())["rows"]
    entries[0]["verdict"] = "GOOD"
    entries[1] = {"host": ["gpu-b"]}
    change(path_of(tmp_path, run), rows=entries)
    first, second, third, missing = Runs(tmp_path).read(run.id).rows
    assert (first.host, first.verdict) == ("gpu-a", "NOT VERIFIED")
    assert first.reason[0].startswith("run: found row 0 with verdict: Input should be 'PASS'")
    assert (second.host, second.verdict) == ("?", "NOT VERIFIED")
    assert third == row("gpu-c")
    assert (missing.host, missing.verdict) == ("gpu-b", "NOT VERIFIED")


def sparse(path: Path) -> None:
    os.truncate(path, MAX_BYTES + 1)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def holding(text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda path: path.write_bytes(data)


def with_values(**values: Any) -> Callable[[Path], object]:
    return lambda path: change(path, **values)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (holding(""), "Expecting value"),
        (holding('{"version": 2,'), "Expecting property name"),
        (holding(b"\xff\xfe\x00"), "codec can't decode"),
        (holding("[]"), "no object"),
        (holding("[" * 100_000), "recursion depth"),
        (holding('{"version": 2, "rows": ' + "9" * 5000 + "}"), "integer string conversion"),
        (sparse, f"{MAX_BYTES + 1} bytes, more than {MAX_BYTES}"),
        (pipe, "no regular file"),
        (with_values(version="\x1b[2J"), r"version \x1b[2J"),
        (with_values(version="x" * 10_000), "version xxx"),
        (with_values(version=None), "version None"),
        (with_values(version=1), "version 1"),
        (with_values(rows={}), "no rows"),
        (with_values(rows=[0] * 100_001), "100001 rows, more than 100000"),
        (with_values(hosts=["h"] * 100_001), "100001 hosts, more than 100000"),
        (with_values(id="20261126T010203.000000Z-0000"), "the id 20261126T010203.000000Z-0000"),
        (with_values(id="\x1b[2J\0"), r"the id \x1b[2J\x00"),
        (with_values(id=1), "id: Input should be a valid string"),
        (with_values(started="2026-11-26T01:02:03"), "started: Input should have timezone info"),
        (with_values(started=1e300), "started: Input should be a valid datetime"),
        (with_values(command="pyinfra"), "command: Input should be a valid tuple"),
        (with_values(waves=["gpu-a"]), "waves.0: Input should be a valid tuple"),
        (with_values(fleet="many"), "fleet: Input should be a valid integer"),
        (with_values(state="over"), "state: Input should be 'running', "),
    ],
)
def test_a_file_that_is_no_run_is_named_and_hides_no_other(
    spoil: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    older, bad = ended(tmp_path, "gpu-a"), ended(tmp_path, "gpu-a")
    path = path_of(tmp_path, bad)
    spoil(path)
    run, (error,) = Runs(tmp_path).last()
    assert run == older
    text = refused(lambda: Runs(tmp_path).read(bad.id))
    assert str(error) == text
    assert text.startswith(f"{path} can't be read: found ")
    assert says in text
    assert text.endswith(f"; expected what a run wrote; next: mv {path} {path}.unreadable")
    assert len(text) < MAX_TEXT + 3 * len(str(path)) + 100


def test_a_newer_file_asks_for_a_newer_llamafleet(tmp_path: Path) -> None:
    run = ended(tmp_path, "gpu-a")
    change(path_of(tmp_path, run), version=3)
    assert refused(lambda: Runs(tmp_path).read(run.id)) == (
        f"{path_of(tmp_path, run)}: found version 3; expected up to 2; next: git pull"
    )


def test_a_newer_key_is_no_fault(tmp_path: Path) -> None:
    run = ended(tmp_path, "gpu-a")
    change(path_of(tmp_path, run), weather="fine")
    assert Runs(tmp_path).read(run.id) == run


def test_half_a_character_of_a_host_is_kept(tmp_path: Path) -> None:
    told = Row(host="gpu-a", verdict="FAIL", reason=("check: found \ud800\x1b[2J\0",))
    run = Runs(tmp_path).finish(begun(tmp_path, "gpu-a"), "complete", [told])
    assert Runs(tmp_path).read(run.id).rows == (told,)


def test_other_files_are_no_runs(tmp_path: Path) -> None:
    run = ended(tmp_path, "gpu-a")
    for name in ("notes.json", f"{run.id}.json.unreadable", f".{run.id}.json.x1", "latest.json",
                 "20261125T000320Z-0123456789abcdef.json"):  # fmt: skip
        (tmp_path / "runs" / name).write_text("{")
    assert list(Runs(tmp_path).newest_first()) == [run]


def test_a_number_that_no_figure_is_ends_no_report(tmp_path: Path) -> None:
    run = ended(tmp_path, "a", "b")
    path = path_of(tmp_path, run)
    rows = json.loads(path.read_text())["rows"]
    rows[0]["built"] = {"wall_s": 1.0, "cpu_s": 1.0, "wheel_bytes": 10**400, "phases": {}}
    change(path, rows=rows)
    first, second = Runs(tmp_path).read(run.id).rows
    assert first.verdict == "NOT VERIFIED" and "1329 bits" in first.reason[0]
    assert second.verdict == row("b").verdict


OLDER = {
    "host": "gpu-a",
    "verdict": "PASS",
    "gpu": "2x NVIDIA H100 80GB HBM3",
    "driver": "580.159.04",
    "toolkit": "13.0",
    "build": "0123456789abcdef",
    "pp": 12343.2,
    "tg": 344.3,
    "gpus": [
        {"name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-1", "verdict": "PASS", "pp": 1.0, "tg": 2.0}
    ],
    "changed": ["verified"],
    "reason": [],
    "built": {"wall_s": 1.0, "cpu_s": None, "wheel_bytes": None, "phases": {}},
    "update": {
        "before": {"driver": "570.1", "verdict": "PASS", "build": "0", "pp": None, "tg": None},
        "after": {"driver": "580.1", "verdict": "PASS", "build": "0", "pp": None, "tg": None},
        "differs": [],
    },
}
"""A row as it was kept before a GPU could be BUSY or left out."""


def test_a_run_of_before_busy_is_read(tmp_path: Path) -> None:
    run = ended(tmp_path, "gpu-a")
    change(path_of(tmp_path, run), rows=[OLDER])
    (found,) = Runs(tmp_path).read(run.id).rows
    assert (found.verdict, found.tg, found.good, found.busy) == ("PASS", 344.3, True, ())
    assert (found.figures_busy, found.allowed, found.left_out) == (False, False, ())
    assert found.update is not None and found.update.passed_over == 0 and not found.gpus[0].busy
