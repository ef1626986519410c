"""llamafleet history: what it prints and takes in, and its exit codes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import pytest

from llamafleet.history.llama_bench import COLUMNS, OURS
from llamafleet.history.record import Record
from llamafleet.history.records import VARIABLE, History
from llamafleet.history.runs import Runs
from llamafleet.history.store import DATABASE, Row, Store
from llamafleet.protocol.result import Check
from llamafleet.terminal import columns
from tests.cli import run
from tests.history import OFFLOAD, RESULT, benchmark, gpu
from tests.history.test_llama_bench import LINES, REAL

LONG = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"
HOSTILE = "\x1b[2J\u202e=cmd|' /C calc'!A0"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two hosts, and the second one later, BUSY and with two GPUs."""
    other = Check("conditions", "busy", "pid 7", "none", "kill 7")
    busy = replace(gpu(1, tg=99.0), checks=(OFFLOAD, other), verdict="BUSY")
    later = replace(RESULT, host="gpu-b", finished=RESULT.finished + 86400, verdict="BUSY")
    two = replace(later, gpus=(gpu(0), busy))
    for one in (RESULT, two):
        Store(tmp_path).write_result(one.host, one)
    return tmp_path


def test_the_table(results: Path) -> None:
    done = run("history", "--results", results)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines[2:]] == ["gpu-a"] * 2 + ["gpu-b"] * 4
    assert lines[2].split() == [
        "2026-11-25", "00:03", "gpu-a", "GeForce", "RTX", "4090", "GPU-0", "pp512", "11536.2",
        "580.95.05", "01234567", "PASS",
    ]  # fmt: skip
    assert "(99.0)" in lines[7] and "BUSY" in lines[7]
    assert (results / DATABASE).is_file()


def test_long_names_fit_the_terminal(tmp_path: Path) -> None:
    long = replace(gpu(name="NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition " * 3))
    Store(tmp_path).write_result("h", replace(RESULT, host="机" * 60, gpus=(long,)))
    lines = run("history", "--results", tmp_path).stdout.splitlines()
    assert len(lines) == 4
    assert max(map(columns, lines)) <= 100


def test_what_several_gpus_did_is_before_what_each_did(tmp_path: Path) -> None:
    both = replace(RESULT, gpus=(gpu(0), gpu(1)), benchmark=benchmark(pp=2e7))
    Store(tmp_path).write_result("gpu-a", both)
    lines = run("history", "--results", tmp_path).stdout.splitlines()[2:]
    assert ["2x GeForce RTX 4090 " in line for line in lines] == [True] * 2 + [False] * 4
    assert [line.split()[-4] for line in lines[:2]] == ["2e+07", "150.5"]
    row = {**json.loads(LINES[1]), "build_commit": "abc123456789"}
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    done = run("history", "--results", tmp_path, "--import", tmp_path / "one.jsonl", "--of", "box",
               "--host", "box")  # fmt: skip
    assert done.stdout.splitlines()[2].split()[-2:] == ["abc12345", "-"]


def test_filters_and_the_newest(results: Path) -> None:
    def ids(*options: str) -> list[str]:
        done = run("history", "--results", results, "--json", *options)
        assert done.exit_code == 0, done.output
        return [f"{r['host']} {r['gpu_uuid']} {r['test']}" for r in json.loads(done.stdout)]

    assert len(ids()) == 6
    assert ids("--host", "gpu-a", "--test", "tg") == ["gpu-a GPU-0 tg"]
    assert ids("--busy", "--test", "pp") == ["gpu-b GPU-1 pp"]
    assert len(ids("--free")) == 4
    assert ids("--verdict", "BUSY", "--gpu", "GPU-1", "--test", "tg") == ["gpu-b GPU-1 tg"]
    assert ids("--window", ":2026-11-25T12", "--test", "pp") == ["gpu-a GPU-0 pp"]
    assert ids("--window", "now-1m:now") == []
    assert {one.split()[0] for one in ids("--last", "4")} == {"gpu-b"}
    assert ids("--driver", "570.*") == ids("--toolkit", "12.?") == ids("--together") == []
    assert len(ids("--build", "0123*", "--model", "*7b*", "--run", "")) == 6


def test_a_table_says_what_it_leaves_out(results: Path) -> None:
    out = run("history", "--results", results, "--last", 2).stdout
    assert out.splitlines()[-1] == "the newest 2 of 6; more: --last 6, --json, --csv"
    none = run("history", "--results", results, "--host", "none")
    assert (none.exit_code, none.stdout) == (0, "nothing was measured that is so\n")
    assert json.loads(run("history", "--results", results, "--host", "x", "--json").stdout) == []


def test_json_and_csv_tell_every_field(results: Path) -> None:
    names = [one.name for one in fields(Record)]
    told = json.loads(run("history", "--results", results, "--json").stdout)
    assert list(told[0]) == names
    rows = list(csv.DictReader(StringIO(run("history", "--results", results, "--csv").stdout)))
    assert len(rows) == len(told) == 6
    assert list(rows[0]) == names
    assert float(rows[0]["median_ts"]) == told[0]["median_ts"]
    assert rows[0]["test_time"] == "2026-11-25T00:03:20.400000+00:00"


def test_what_a_host_says_is_no_formula_and_moves_no_cursor(tmp_path: Path) -> None:
    hostile = replace(gpu(name=HOSTILE), uuid="=1+1")
    Store(tmp_path).write_result("-h", replace(RESULT, host="-h", gpus=(hostile,)))
    for form in ((), ("--json",), ("--csv",), ("--llama-bench",)):
        out = run("history", "--results", tmp_path, *form).stdout
        assert "\x1b" not in out and "\u202e" not in out
    [row, _] = csv.DictReader(StringIO(run("history", "--results", tmp_path, "--csv").stdout))
    assert (row["gpu_uuid"], row["host"]) == ("'=1+1", "'-h")
    for sign in "+@":
        told = replace(RESULT, host=f"{sign}h", finished=RESULT.finished + 60)
        Store(tmp_path).write_result(told.host, told)
    rows = csv.DictReader(StringIO(run("history", "--results", tmp_path, "--csv").stdout))
    assert {row["host"] for row in rows} == {"'-h", "'+h", "'@h"}


def test_files_of_llama_bench_come_in_and_go_out(results: Path) -> None:
    options = ("history", "--results", results, "--host", "box", "--llama-bench")
    done = run(*options, "--import", REAL, "--of", "box")
    assert done.exit_code == 0
    by_key = {row["avg_ts"]: row for row in map(json.loads, LINES[:4])}
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["avg_ts"]: row for row in rows} == by_key
    assert f"Warning: {REAL}:5: found n_prompt 16 and n_gen 4" in done.stderr
    assert f"{REAL}: 4 new records" in done.stderr
    assert f"{REAL}: 0 new records" in run(*options, "--import", REAL, "--of", "box").stderr
    ours = run("history", "--results", results, "--host", "gpu-a", "--llama-bench").stdout
    assert [list(json.loads(line)) for line in ours.splitlines()] == [[*COLUMNS, OURS]] * 2


def test_what_was_exported_comes_back_as_the_same_and_as_busy_as_it_was(results: Path) -> None:
    """A figure of a GPU that was not free is no baseline because it was in a file."""
    file = results / "all.jsonl"
    file.write_text(run("history", "--results", results, "--llama-bench").stdout)
    before = run("history", "--results", results, "--json").stdout
    done = run("history", "--results", results, "--json", "--import", file)
    assert f"{file}: 0 new records" in done.stderr
    assert done.stdout == before
    elsewhere = ("history", "--results", results.parent / "none", "--database")
    there = run(*elsewhere, f"sqlite:///{results}/other.db", "--json", "--import", file)
    assert f"{file}: 6 new records" in there.stderr
    assert there.stdout == before
    assert "BUSY" in before


def test_figures_that_are_on_one_line_but_of_other_things_are_told_apart(tmp_path: Path) -> None:
    two = (gpu(0, name=LONG), replace(gpu(1, name=LONG), model="/models/other.gguf"))
    Store(tmp_path).write_result(
        "synthetic-h100-1", replace(RESULT, host="synthetic-h100-1", gpus=two)
    )
    deep = {**json.loads(LINES[1]), "n_depth": 4096}
    (tmp_path / "deep.jsonl").write_text(json.dumps(deep) + f"\n{LINES[3]}\n")
    done = run("history", "--results", tmp_path, "--import", tmp_path / "deep.jsonl", "--of", "box")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(columns, lines)) <= 100
    at = lines.index("")
    assert [line[18:34].strip() for line in lines[2:6]] == ["synthetic-h100-1"] * 4
    assert [" GPU-0 " in line for line in lines[2:6]] == [True, True, False, False]
    assert [" GPU-1 " in line for line in lines[2:6]] == [False, False, True, True]
    assert [line.split()[-1] for line in lines[:at]] == ["#", "-", "1", "1", "2", "2", "3", "4"]
    assert {line.split()[4] for line in lines[6:at]} == {"tg8", "tg8@d4096"}
    name = json.loads(LINES[1])["model_filename"].rpartition("/")[2]
    assert lines[at + 1 :] == [
        "# 1: synthetic:7b-q4_0",
        "# 2: other.gguf",
        f"# 3: {name}, flash attention off",
        f"# 4: {name}, flash attention on",
    ]


def test_a_corrupt_result_is_named(results: Path) -> None:
    (results / "gpu-a" / "bad.json").write_text("{")
    done = run("history", "--results", results)
    assert done.exit_code == 0
    assert f"Warning: {results}/gpu-a/bad.json: found JSONDecodeError" in done.stderr
    (results / "runs").mkdir()
    run_file = results / "runs" / "20261125T010203.000004Z-0a1b.json"
    run_file.write_text("{")
    assert f"Warning: {run_file} can't be read" in run("history", "--results", results).stderr


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*options: object) -> str:
        done = run("history", *options)
        assert done.exit_code == 2, done.output
        return done.stderr

    assert "found no such folder" in refused("--results", tmp_path / "none")
    here = ("--results", tmp_path)
    assert "--window: found 'x'; expected FROM:TO" in refused(*here, "--window", "x")
    # As of a variable that is not set: no window is not all there is.
    assert "--window: found ''; expected FROM:TO" in refused(*here, "--window", "")
    assert "no regular file" in refused(*here, "--import", tmp_path / "none")
    said = refused(*here, "--import", REAL)
    assert f"expected --of; next: llamafleet history --import {REAL} --of HOST" in said
    assert "--of gpu-a: found no --import" in refused(*here, "--of", "gpu-a")
    assert History(tmp_path).count() == 0
    # Bytes that are no UTF-8 come so, and no driver takes them; nor such a number.
    for option in ("--of", "--host", "--gpu", "--run"):
        assert "found \\udcff; expected a text of one line" in refused(*here, option, "\udcff")
    assert "is not in the range" in refused(*here, "--last", 10**30)
    assert "Invalid value for '--test'" in refused(*here, "--test", "xx")
    assert "expected postgresql://" in refused(*here, "--database", "mysql://u:hunter22@h/d")
    monkeypatch.setenv(VARIABLE, "mysql://u:hunter22@h/d")
    assert "hunter22" not in refused(*here)
    monkeypatch.delenv(VARIABLE)
    (tmp_path / DATABASE).write_text("no database, but longer than its header is" * 100)
    assert f"next: mv {tmp_path / DATABASE} " in refused(*here)


def test_another_file_by_url(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.db"
    done = run("history", "--results", results, "--database", f"sqlite:///{file}", "--json")
    assert len(json.loads(done.stdout)) == 6
    assert not (results / DATABASE).exists()
    # A history elsewhere needs no results here.
    again = run("history", "--results", tmp_path / "none", "--database", f"sqlite:///{file}",
                "--json")  # fmt: skip
    assert json.loads(again.stdout) == json.loads(done.stdout)


def keep_run(results: Path) -> None:
    """A report without a run has nothing to print, and takes in nothing."""
    runs = Runs(results)
    row = Row.of("gpu-a", RESULT, (), ())
    runs.finish(runs.begin(["pyinfra"], ["gpu-a"], 1, []), "complete", [row])


def test_a_report_takes_new_results_in(results: Path) -> None:
    keep_run(results)
    run("report", "--results", results)
    assert History(results).count() == 6
    (results / "gpu-a" / "bad.json").write_text("{")
    assert "Warning: " in run("report", "--results", results).stderr


def test_a_report_goes_on_without_a_history(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_run(results)
    plain = run("report", "--results", results)
    monkeypatch.setenv(VARIABLE, "mysql://u:hunter22@h/d")
    done = run("report", "--results", results)
    assert (done.exit_code, done.stdout) == (plain.exit_code, plain.stdout)
    assert "Warning: history: found the database mysql://d" in done.stderr


WITHOUT = """
import sys
sys.modules["sqlalchemy"] = None
from llamafleet.cli.main import main
main()
"""
"""As in a venv of before there was a history."""


@pytest.mark.parametrize(
    "command",
    [
        ("history",),
        ("compare", "--last-update"),
        ("report", "--format", "html"),
    ],
)
def test_without_its_libraries_the_step_is_told(results: Path, command: tuple[str, ...]) -> None:
    keep_run(results)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *command, "--results", results],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    *warnings, error = done.stderr.splitlines()
    told = "history: found no sqlalchemy; expected what setup.sh brings; next: sh setup.sh"
    assert error == f"Error: {told}"
    assert warnings in ([], [f"Warning: {told}"])
