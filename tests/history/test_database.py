"""The history in a real SQLite and a real PostgreSQL."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import sqlalchemy as sa

from llamafleet.history import database
from llamafleet.history.database import (
    HEAD,
    KINDS,
    METADATA,
    HistoryError,
    opened,
    url_of,
    writing,
)
from llamafleet.history.database_read import read
from llamafleet.history.record import Record
from llamafleet.history.records import (
    VARIABLE,
    Filter,
    History,
    keep_up,
    records_of,
    with_id,
)
from llamafleet.history.runs import Runs
from llamafleet.history.store import DATABASE, VERIFIED, Row, Store
from llamafleet.protocol.conditions import Conditions
from llamafleet.protocol.result import Benchmark, Rates, Result
from llamafleet.terminal import masked
from tests.history import RESULT, benchmark, gpu
from tests.history.test_records import KNOWN, PP, TG, WANTED

AT = RESULT.finished


def fill(results: Path, hosts: int = 3, times: int = 4) -> list[Result]:
    """Results as deploy.py leaves them."""
    found = [
        replace(RESULT, host=f"gpu-{host}", finished=AT + 3600 * time, gpus=(gpu(host),))
        for host in range(hosts)
        for time in range(times)
    ]
    for one in found:
        Store(results).write_result(one.host, one)
    return found


def test_a_record_comes_back_as_it_was(history: History) -> None:
    assert history.add(KNOWN.values()) == 4
    assert set(map(_hashable, history.records())) == set(map(_hashable, KNOWN.values()))


def _hashable(record: Record) -> str:
    return repr(record)


VALUES: dict[str, Any] = {
    "str": "ü \U0001f600 'x' \\ %",
    "Test": "tg",
    "Verdict | None": "BUSY",
    "datetime": datetime(2026, 11, 26, 23, 59, 59, 999999, timezone(timedelta(hours=5))),
    "float": 1 / 3,
    "float | None": 1e-300,
    "int": 2**40,
    "int | None": 2**63 - 1,
    "bool | None": False,
    "tuple[float, ...]": (0.1, 2.0),
    "tuple[str, ...]": ("a", "[]"),
    "Mapping[str, float]": {"power": 0.5},
    "Mapping[str, Any]": {"cpu_mask": "0x0", "repack": True, "samples_ns": [1, 2]},
}


def test_every_field_comes_back(history: History) -> None:
    """A column that is forgotten, or of the wrong type, is seen here."""
    full = Record(**{one.name: VALUES[str(one.type)] for one in fields(Record)})
    history.add([full])
    assert list(history.records()) == [full]
    assert set(VALUES) == set(KINDS)


def test_what_is_not_told_comes_back_so(history: History) -> None:
    bare = Record("0", "tg", datetime(1, 1, 1, tzinfo=timezone.utc), 0.0, 0.0)
    history.add([bare])
    assert list(history.records()) == [bare]


def test_filters(history: History) -> None:
    history.add(KNOWN.values())
    with opened(history.results, history.url) as engine:
        for wanted, names in WANTED:
            assert {r.id for r in read(engine, wanted)} == {KNOWN[n].id for n in names}, wanted


def test_the_newest_are_the_last_and_all_are_counted(history: History) -> None:
    days = [3, 1, 6, 2, 5, 4, 0]
    history.add(with_id(replace(TG, test_time=TG.test_time + timedelta(days=d))) for d in days)

    def told(wanted: Filter) -> list[int]:
        return [(r.test_time - TG.test_time).days for r in history.records(wanted)]

    assert told(Filter(last=5)) == [2, 3, 4, 5, 6], "oldest first, of the newest ones"
    assert told(Filter()) == sorted(days)
    assert history.count(Filter(last=2)) == len(days)


# -- taking in -------------------------------------------------------------------------------------


def test_results_are_taken_in_once(history: History) -> None:
    results = fill(history.results)
    first = history.take_in()
    # latest.json tells a result that is there under its time as well.
    assert (first.files, first.records, first.aside) == (12 + 3, 24, [])
    wanted = {record.id for result in results for record in records_of(result)}
    assert {record.id for record in history.records()} == wanted
    assert all("latest" not in record.source for record in history.records())
    again = history.take_in()
    assert (again.files, again.records) == (0, 0), "no file is read twice"


def test_a_new_result_is_found_and_only_it_is_read(history: History) -> None:
    fill(history.results)
    history.take_in()
    Store(history.results).write_result("gpu-1", replace(RESULT, host="gpu-1", finished=AT + 7e5))
    found = history.take_in()
    assert (found.files, found.records) == (2, 2), "the result, and the host's latest.json"


def test_a_file_that_is_told_again_changes_no_run_and_no_source(history: History) -> None:
    history.add([replace(PP, run_id="run", source="a.json", utilisation=None)])
    assert history.add([replace(PP, run_id="", source="b.json", utilisation=91.0)]) == 0
    [found] = history.records()
    assert (found.run_id, found.source, found.utilisation) == ("run", "a.json", 91.0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON|JSONDecodeError"),
        (b'{"version": 2, "host": "gpu', "JSONDecodeError"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"[]", "expected an object"),
        (b'{"version": 9}', "version 9"),
        (b'{"version": 2, "host": "\x1b[2J"}', "JSONDecodeError"),
    ],
)
def test_a_corrupt_file_is_named_and_hides_no_other(
    tmp_path: Path, content: bytes, said: str
) -> None:
    history = History(tmp_path)
    fill(tmp_path, 1, 2)
    bad = tmp_path / "gpu-0" / "20261124T000000Z-bad.json"
    bad.write_bytes(content)
    found = history.take_in()
    assert (found.files, found.records) == (3, 4)
    [line] = found.aside
    assert line.startswith(f"{bad}: found ")

    assert re.search(said, line), line
    newer = said == "version 9"
    assert line.endswith("next: git pull" if newer else f"next: mv {bad} {bad}.unreadable")
    assert history.take_in().aside == found.aside, "it is named until it is gone"
    bad.rename(f"{bad}.unreadable")
    assert history.take_in().aside == []
    assert bad.with_name(bad.name + ".unreadable").exists()


def test_a_corrupt_file_that_is_mended_is_taken_in(tmp_path: Path) -> None:
    history = History(tmp_path)
    [result] = fill(tmp_path, 1, 1)
    path = next(p for p in tmp_path.glob("gpu-0/*.json") if p.name != "latest.json")
    whole = path.read_bytes()
    for other in tmp_path.glob("gpu-0/*.json"):
        other.write_bytes(whole[:100])
    assert len(history.take_in().aside) == 2
    path.write_bytes(whole)
    found = history.take_in()
    assert (found.records, len(found.aside)) == (2, 1)
    assert result.host == "gpu-0"


def test_a_pipe_and_a_time_that_no_calendar_has_are_named(tmp_path: Path) -> None:
    history = History(tmp_path)
    (tmp_path / "gpu-0").mkdir()
    os.mkfifo(tmp_path / "gpu-0" / "pipe.json")
    Store(tmp_path).write_result("gpu-1", replace(RESULT, finished=1e300))
    said = "\n".join(history.take_in().aside)
    assert "no regular file" in said
    assert "since 1970" in said


WIDE = "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FFF), k=3000)))
"""Nothing of it can be packed."""
MANY = 2**63 - 5
LIES: dict[str, Result] = {
    "vram_mib of 64 bits": replace(
        RESULT,
        benchmark=benchmark(),
        gpus=tuple(replace(gpu(n), vram_mib=MANY) for n in range(2)),
    ),
    "processes of 64 bits": replace(
        RESULT,
        benchmark=replace(
            benchmark(),
            conditions=tuple(Conditions(f"GPU-{n}", others_unnamed=MANY) for n in range(2)),
        ),
        gpus=(gpu(0), gpu(1)),
    ),
    "gpu_uuid of 3000 characters": replace(RESULT, gpus=(replace(gpu(), uuid=WIDE),)),
    "-5.0 tokens per second": replace(RESULT, gpus=(gpu(tg=-5.0),)),
    "0.0 tokens per second": replace(RESULT, gpus=(gpu(tg=0.0),)),
}


def test_what_one_host_sends_keeps_no_other_out(history: History) -> None:
    """No database takes all of these, and all files of a batch are written at once."""
    good = replace(RESULT, host="z")
    for host, result in (*((f"h{n}", lie) for n, lie in enumerate(LIES.values())), ("z", good)):
        Store(history.results).write_result(host, result)
    found = history.take_in()
    told = [said for said in LIES for _ in range(2)]
    assert len(found.aside) == len(told), found
    for line, said in zip(found.aside, told, strict=True):
        assert f": found {said}; expected" in line
    assert {record.id for record in history.records()} == {r.id for r in records_of(good)}


def test_names_of_the_longest_that_are_taken(history: History) -> None:
    whole = replace(RESULT, gpus=(replace(gpu(), uuid=WIDE[:500]),))
    assert history.add(records_of(replace(whole, host=WIDE[-500:]))) == 2
    assert len(list(history.records(Filter(gpus=(WIDE[:500],))))) == 2


def test_moments_at_the_calendars_edges_in_every_zone(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the database's session, which takes it from its role or from this process."""
    edges = [with_id(replace(TG, test_time=at)) for at in (
        datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc),
    )]  # fmt: skip
    history.add(edges)
    for zone in ("Pacific/Kiritimati", "America/Los_Angeles"):
        monkeypatch.setenv("PGTZ", zone)
        assert list(history.records()) == edges


def test_a_host_speaks_for_itself_alone(history: History) -> None:
    """By the folder that the controller chose, not by what a result says."""
    for folder, name in (
        ("gpu-a", "gpu-b"),
        ("@local", "gpu-b"),
        ("gpu/c", "gpu-b"),
        ("x y", "x y"),
    ):
        Store(history.results).write_result(folder, replace(RESULT, host=name))
    (history.results / "gpu_d").mkdir()  # As it was named before.
    old = Store(history.results).write_result("gpu/d", replace(RESULT, host="gpu/d"))
    old.rename(history.results / "gpu_d" / old.name)
    old.with_name("latest.json").unlink()
    assert history.take_in().aside == []
    assert {r.host for r in history.records()} == {"gpu-a", "@local", "gpu/c", "x y", "gpu/d"}


def test_a_result_that_is_changed_leaves_nothing_behind(history: History) -> None:
    [result] = fill(history.results, 1, 1)
    history.take_in()
    keeps = replace(result, finished=AT + 60)
    Store(history.results).write_result("gpu-0", keeps)
    history.take_in()
    path = next(history.results.glob(f"gpu-0/2*{'0320'}*.json"))
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("150.5", "149.25"))
    os.utime(path, ns=(before, before))  # By its size, as on a disk that counts whole seconds.
    assert history.take_in().records == 1, "the other test is the same"
    rates = sorted((r.test, r.median_ts) for r in history.records())
    assert rates == [("pp", 11536.25), ("pp", 11536.25), ("tg", 149.25), ("tg", 150.5)]
    # The newest one is told by its own file as well: it goes when that goes.
    Store(history.results).write_result("gpu-0", replace(result, finished=AT + 120))
    history.take_in()
    assert history.count() == 6
    path.write_text("{")
    assert len(history.take_in().aside) == 1
    assert history.count() == 6, "a file that can't be read takes nothing away"


def test_what_the_newest_result_told_stays(history: History) -> None:
    """Its own file may be gone; latest.json is written anew each time."""
    for later in (0, 60):
        one = replace(RESULT, finished=AT + later)
        Store(history.results).write_result("gpu-a", one).unlink()
        assert history.take_in().records == 2
    assert history.count() == 4


def test_two_folders_are_two_though_their_files_look_alike(history: History) -> None:
    """Of two controllers that keep one history."""
    for folder, tg in (("a", 150.5), ("b", 149.5)):
        results = history.results / "of" / folder
        path = Store(results).write_result("gpu-a", replace(RESULT, gpus=(gpu(tg=tg),)))
        for each in path.parent.iterdir():
            os.utime(each, (AT, AT))
        url = history.url or f"sqlite:///{history.results}/both.db"
        assert History(results, url).take_in().files == 2
    assert {r.median_ts for r in History(results, url).records(Filter(tests=("tg",)))} == {
        150.5, 149.5,
    }  # fmt: skip


def test_what_may_not_be_read_is_named() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o777)
        fill(folder, 3, 1)
        (folder / "gpu-0").chmod(0)
        for path in (folder / "gpu-1").iterdir():
            path.chmod(0)
        with as_nobody():
            taken = History(folder).take_in()
        assert taken.records == 2
        assert taken.aside[0].startswith(f"{folder}/gpu-0: found Permission denied; expected ")
        for line, path in zip(
            taken.aside, [folder / "gpu-0", *sorted(folder.glob("gpu-1/*"))], strict=True
        ):
            assert line.endswith(f"next: ls -ld {path}")
    finally:
        shutil.rmtree(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read all there is."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_command_to_type_is_one_in_every_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my fleet's"
    fill(folder, 1, 1)
    bad = folder / "gpu-0" / "bad.json"
    bad.write_text("{")
    [line] = History(folder).take_in().aside
    (folder / DATABASE).write_text("not a database, but longer than its header is" * 100)
    with pytest.raises(HistoryError) as error:
        History(folder).count()
    for said in (line, str(error.value)):
        subprocess.run(said.partition("next: ")[2], shell=True, check=True)
    assert History(folder).take_in().aside == []
    assert History(folder).count() == 2
    assert bad.with_name("bad.json.unreadable").exists()


def test_a_wrong_folder_is_no_flood(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(30):
        (tmp_path / "a" / f"{number}.json").write_text("[]")
    lines = keep_up(tmp_path)
    assert len(lines) == 11
    assert lines[-1].startswith("history: found 20 more of that kind; expected none; next: ")
    assert "found list, expected an object" in lines[0]


TAKE_IN = """
import sys
from pathlib import Path
from alembic import command
from llamafleet.history import database_import
from llamafleet.history.records import History
database_import.BATCH = 10
print("ready", flush=True)
sys.stdin.readline()
taken = History(Path(sys.argv[1]), sys.argv[2]).take_in()
print(taken.records, taken.aside)
"""


def test_imports_at_the_same_time_lose_nothing(history: History) -> None:
    """Also the first ones, that make the tables."""
    results = fill(history.results, 10, 10)
    argv = [sys.executable, "-c", TAKE_IN, str(history.results), history.url]
    going = [
        subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for one in going:
        assert one.stdout and one.stdout.readline() == "ready\n"
    for one in going:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()
    for one in going:
        out, err = one.communicate(timeout=120)
        assert one.returncode == 0, err
        assert out.endswith("[]\n"), out
    assert history.count() == 2 * len(results)
    assert history.take_in().files == 0


KILLED = """
import os, sys
from pathlib import Path
from llamafleet.history import database_import
from llamafleet.history.records import History
database_import.BATCH = 5
mark, done = database_import._mark, []
def killed(*told):
    mark(*told)
    done.append(told)
    if len(done) == 3:
        os.kill(os.getpid(), 9)
database_import._mark = killed
History(Path(sys.argv[1]), sys.argv[2]).take_in()
"""


def test_an_import_that_is_killed_is_gone_on_with(history: History) -> None:
    results = fill(history.results, 5, 5)
    argv = [sys.executable, "-c", KILLED, str(history.results), history.url]
    assert subprocess.run(argv, check=False).returncode == -9
    kept = history.count()
    assert 0 < kept < 2 * len(results), "whole batches"
    found = history.take_in()
    assert (found.records, found.aside) == (2 * len(results) - kept, [])
    assert history.count() == 2 * len(results)


def test_who_writes_is_waited_for_but_not_for_ever(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time: two that write the same records in another order wait for each other."""
    history = History(tmp_path, postgres)
    history.add([PP])
    monkeypatch.setattr(database, "SESSION", database.SESSION.replace("60s", "50ms"))
    with opened(tmp_path, postgres) as engine, writing(engine):
        with pytest.raises(HistoryError, match="lock timeout"):
            history.add([TG])
        assert history.count(Filter(tests=("pp",))) >= 1, "who reads need not wait"
    assert history.add([TG]) <= 1


def test_a_folder_that_nobody_may_write_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 1, 1)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert keep_up(tmp_path) == []
    assert not (tmp_path / DATABASE).exists()
    # A history elsewhere is another's to write.
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    monkeypatch.setenv(VARIABLE, url)
    assert keep_up(tmp_path) == []
    assert History(tmp_path, url).count() == 2


def test_keeping_up_never_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: str
) -> None:
    fill(tmp_path, 1, 1)
    (tmp_path / "gpu-0" / "bad.json").write_text("{")
    [line] = keep_up(tmp_path)
    assert "bad.json" in line
    assert History(tmp_path).count() == 2
    (tmp_path / DATABASE).write_text("no database, but longer than its header is" * 100)
    [line] = keep_up(tmp_path)
    assert f"next: mv {tmp_path / DATABASE} " in line
    monkeypatch.setenv(VARIABLE, postgres)
    assert "bad.json" in "".join(keep_up(tmp_path))
    # Of the driver alone: it is loaded where a server is asked.
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "psycopg", None)
        [line] = keep_up(tmp_path)
        assert line.startswith("history: found no psycopg; ") and line.endswith("sh setup.sh")
    # A venv of before there was a history.
    monkeypatch.delattr("llamafleet.history.database")
    monkeypatch.delitem(sys.modules, "llamafleet.history.database")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    [line] = keep_up(tmp_path)
    assert line.startswith("history: found no ") and line.endswith("; next: sh setup.sh")


def test_a_new_database_that_another_writes_to_is_waited_for(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    Timer(0.5, other.execute, ["ROLLBACK"]).start()
    assert History(tmp_path).count() == 0
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# -- runs ------------------------------------------------------------------------------------------


def run_of(results: Path, rows: Iterable[Row]) -> str:
    runs = Runs(results)
    told = list(rows)
    run = runs.begin(["pyinfra"], [row.host for row in told], len(told), [])
    return runs.finish(run, "complete", told).id


def now(host: str, **changes: Any) -> Result:
    finished = datetime.now(timezone.utc).timestamp()
    return replace(RESULT, **{"host": host, "finished": finished, **changes})


def row_of(result: Result, *changed: str) -> Row:
    return Row.of(result.host, result, changed, ())


def test_a_run_tells_the_records_that_it_measured(history: History) -> None:
    several = now("gpu-a", gpus=(gpu(0), gpu(1, tg=149.0)), benchmark=benchmark(pp=11000.0))
    taken_as_it_was = now("gpu-b")
    other_time = replace(several, finished=several.finished - 3 * 86400)
    slower = replace(gpu(0), benchmark=benchmark(pp=9000.0, tg=99.0))
    other_rates = replace(several, finished=several.finished - 7, gpus=(slower,), benchmark=None)
    other_build = replace(several, finished=several.finished - 9, fingerprint="f" * 16)
    turned = Benchmark(Rates(512, 150.5, 0.0), Rates(128, 11536.25, 0.0))
    other_tests = replace(
        several, finished=several.finished - 11, gpus=(replace(gpu(0), benchmark=turned),),
        benchmark=None,
    )  # fmt: skip
    other_gpu = replace(several, finished=several.finished - 13, gpus=(gpu(5),), benchmark=None)
    # Its clock is wrong, but not by a day.
    slow_clock = now("gpu-c", finished=several.finished - 20 * 3600)
    for one in (
        *(several, taken_as_it_was, other_time, other_rates, other_build, other_tests),
        *(other_gpu, slow_clock),
    ):
        Store(history.results).write_result(one.host, one)
    history.take_in()
    rows = [
        *(row_of(several, "toolkit", VERIFIED), row_of(taken_as_it_was)),
        row_of(slow_clock, VERIFIED),
    ]
    run_id = run_of(history.results, rows)
    assert history.take_in().aside == []
    mine = {record.id for record in history.records(Filter(runs=(run_id,)))}
    assert mine == {record.id for one in (several, slow_clock) for record in records_of(one)}
    # Nobody takes them over, also not a run that finds the same result again.
    run_of(history.results, rows)
    history.take_in()
    assert history.count(Filter(runs=(run_id,))) == len(mine)


def test_a_run_that_goes_on_is_read_again_when_it_ends(history: History) -> None:
    runs, result = Runs(history.results), now("gpu-a")
    run = runs.begin(["pyinfra"], ["gpu-a"], 1, [])
    Store(history.results).write_result("gpu-a", result)
    history.take_in()
    assert {record.run_id for record in history.records()} == {""}
    runs.finish(run, "complete", [row_of(result, VERIFIED)])
    history.take_in()
    assert {record.run_id for record in history.records()} == {run.id}


def test_a_run_that_cant_be_read_is_named(tmp_path: Path) -> None:
    run_id = run_of(tmp_path, [])
    (tmp_path / "runs" / f"{run_id}.json").write_text("{")
    taken = History(tmp_path).take_in()
    assert run_id in "".join(taken.runs_aside)
    assert (taken.aside, keep_up(tmp_path)) == ([], []), "a report says it itself"


# -- its form --------------------------------------------------------------------------------------


def test_migrations_make_the_tables_of_today(history: History) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with opened(history.results, history.url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_name": lambda name, kind, parents: name != "benchmark_version",
                  "compare_type": True},
        )  # fmt: skip
        assert compare_metadata(context, METADATA) == []
        told = connection.execute(sa.text("SELECT version_num FROM benchmark_version")).scalar()
        assert told == HEAD


def test_alembic_is_asked_only_where_the_form_is_older(tmp_path: Path) -> None:
    History(tmp_path).count()
    code = (
        "import sys; from pathlib import Path; from llamafleet.history.records import History; "
        "History(Path(sys.argv[1])).count(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 0


SECOND = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0002", "0001"
branch_labels = depends_on = None
def upgrade():
    op.add_column("benchmark_records", sa.Column("new", sa.String(), server_default="x"))
    {then}
"""


def test_an_older_form_is_brought_to_todays_or_stays_whole(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a folder whose name has a % in it."""
    history.add(KNOWN.values())
    folder = tmp_path / "50% off"
    shutil.copytree(database.MIGRATIONS, folder)
    monkeypatch.setattr(database, "MIGRATIONS", folder)
    monkeypatch.setattr(database, "HEAD", "0002")
    second = folder / "versions" / "v0002.py"
    second.write_text(SECOND.format(then="op.execute('no SQL')"))
    with pytest.raises(HistoryError, match="syntax error"):
        history.count()
    second.write_text(SECOND.format(then=""))
    assert {r.id for r in history.records()} == {r.id for r in KNOWN.values()}
    with opened(history.results, history.url) as engine, engine.connect() as connection:
        assert {*connection.execute(sa.text("SELECT new FROM benchmark_records"))} == {("x",)}


def test_a_newer_form_is_refused(history: History) -> None:
    with opened(history.results, history.url) as engine, engine.begin() as connection:
        connection.execute(sa.text("UPDATE benchmark_version SET version_num = '9999'"))
    with pytest.raises(HistoryError, match=f"form 9999; expected up to {HEAD}; next: git pull"):
        history.count()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_text("not a database, but longer than its header is" * 100)
    with pytest.raises(HistoryError) as error:
        History(tmp_path).count()
    assert f"next: mv {tmp_path / DATABASE} {tmp_path / DATABASE}.unreadable" in str(error.value)


NO_ROOM = """
import resource, sys
from pathlib import Path
from llamafleet.history.records import keep_up
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
print(*keep_up(Path(sys.argv[1])))
"""


def test_a_disk_without_room_is_named_and_goes_on_later(tmp_path: Path) -> None:
    fill(tmp_path, 2, 2)
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, tmp_path],
        capture_output=True, text=True, check=True,
        env={key: value for key, value in os.environ.items() if key != VARIABLE},
    )  # fmt: skip
    assert re.search(f"(full|I/O error).*next: df -h {tmp_path}$", done.stdout), done.stdout
    taken = History(tmp_path).take_in()
    assert (taken.aside, History(tmp_path).count()) == ([], 8)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="unable to open database file"):
        History(tmp_path / "none").count()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://fleet:hunter22@db/x", "the database mysql://x; expected postgresql://"),
        ("sqlite://", "the database sqlite://"),
        ("sqlite:///:memory:", "the database sqlite://:memory:; expected postgresql://HOST/NAME"),
        ("sqlite:///h.db?timeout=hunter22", "the database sqlite://h.db"),
        ("sqlite:///h\0.db", "one that is no URL"),
        ("sqlite:///h\udcff.db", "one that is no URL"),
        ("results/history.db", "one that is no URL"),
        ("postgresql://fleet:hunter22@db:port/x", "one that is no URL"),
    ],
)
def test_a_url_of_something_else_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(HistoryError) as error:
        url_of(Path("results"), url)
    assert said in str(error.value)
    assert "hunter22" not in str(error.value)


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://fleet:hunter22@/fleet?host={tmp_path}"
    with pytest.raises(HistoryError) as error:
        History(tmp_path, url).count()
    assert "next: psql URL, as it was told with --database" in str(error.value)
    monkeypatch.setenv(VARIABLE, url)
    with pytest.raises(HistoryError) as error:
        History(tmp_path, url).count()
    assert 'next: psql "$LLAMAFLEET_HISTORY"' in str(error.value)
    assert "found that postgresql://" in str(error.value), "as it was told"
    assert "hunter22" not in str(error.value)
    assert "hunter22" not in masked("FATAL: hunter22")
