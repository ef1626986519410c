"""The command that prints runs: what it says and its exit codes."""

from __future__ import annotations

import errno
import html
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.cli import report
from llamafleet.history.fleet import newest
from llamafleet.history.report import NOTHING, render_line, render_run
from llamafleet.history.runs import Run, Runs, RunState
from llamafleet.history.store import GpuLine, Row, Store
from llamafleet.protocol.result import Verdict
from tests.cli import run
from tests.history import RESULT

COMMAND = ["pyinfra", "-y", "inventory", "deploy.py"]


def keep(folder: Path, *verdicts: Verdict) -> Run:
    """A run of hosts that got these verdicts."""
    rows = [Row(host=f"gpu-{n}", verdict=verdict) for n, verdict in enumerate(verdicts)]
    hosts = [row.host for row in rows]
    return Runs(folder).finish(Runs(folder).begin(COMMAND, hosts, 40, [hosts]), "complete", rows)


def spoil(folder: Path, spoiled: Run) -> str:
    """The error line of a run whose file is no longer one."""
    path = folder / "runs" / f"{spoiled.id}.json"
    path.write_text("[]")
    return (
        f"Error: {path} can't be read: found no object; expected what a run wrote; "
        f"next: mv {path} {path}.unreadable\n"
    )


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("CPU ONLY", 0), ("FAIL", 1)])
def test_the_last_run_is_printed_and_judged(verdict: Verdict, code: int, tmp_path: Path) -> None:
    keep(tmp_path, "NOT VERIFIED")
    last = keep(tmp_path, "PASS", verdict)
    result = run("report", "--results", tmp_path)
    assert (result.output, result.exit_code) == (render_run(last) + "\n", code)


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("FAIL", 1)])
def test_another_run_by_its_id_or_the_beginning(
    verdict: Verdict, code: int, tmp_path: Path
) -> None:
    first = keep(tmp_path, verdict)
    keep(tmp_path, "CPU ONLY")
    for wanted in (first.id, first.id[:-1]):
        result = run("report", "--results", tmp_path, "--run", wanted)
        assert (result.output, result.exit_code) == (render_run(first) + "\n", code)


def test_a_run_that_was_cut_off_is_no_success_whatever_its_rows_say(tmp_path: Path) -> None:
    """As after Ctrl-C between the last result and the switch: the run itself ended with 130."""
    hosts = ["gpu-a"]
    begun = Runs(tmp_path).begin(COMMAND, hosts, 1, [hosts])
    Runs(tmp_path).finish(begun, "interrupted", [Row(host="gpu-a", verdict="PASS")])
    result = run("report", "--results", tmp_path)
    assert result.exit_code == 1 and "INTERRUPTED" in result.output


@pytest.mark.parametrize(("allowed", "code"), [(False, 1), (True, 0)])
def test_a_busy_host_is_no_success_unless_the_settings_say_so(
    allowed: bool, code: int, tmp_path: Path
) -> None:
    busy = ("benchmark: found pid 42; expected none; next: nvidia-smi",)
    gpus = (GpuLine("NVIDIA H100", "GPU-1", "BUSY", 1.0, 2.0, busy=True),)
    row = Row("gpu-a", "BUSY", gpus=gpus, busy=busy, figures_busy=True, allowed=allowed,
              left_out=("NVIDIA H100 GPU-2",))  # fmt: skip
    begun = Runs(tmp_path).begin(COMMAND, ["gpu-a"], 1, [["gpu-a"]])
    kept = Runs(tmp_path).finish(begun, "complete", [row])
    result = run("report", "--results", tmp_path)
    assert (result.output, result.exit_code) == (render_run(kept) + "\n", code)
    told = json.loads(run("report", "--results", tmp_path, "--json").output)["rows"][0]
    assert (told["busy"], told["figures_busy"], told["allowed"]) == ([*busy], True, allowed)
    assert told["gpus"][0]["busy"] is True and told["left_out"] == ["NVIDIA H100 GPU-2"]


def test_an_id_that_is_none_names_those_there_are(tmp_path: Path) -> None:
    last = keep(tmp_path, "PASS")
    result = run("report", "--results", tmp_path, "--run", "1999")
    assert result.exit_code == 2
    assert result.output == (
        f"Error: --run 1999: found no runs that begin so in {tmp_path}/runs; "
        f"expected one, as {last.id}; next: llamafleet report --run all\n"
    )


def test_all_runs_one_line_each(tmp_path: Path) -> None:
    first, second = keep(tmp_path, "PASS"), keep(tmp_path, "FAIL", "PASS")
    result = run("report", "--results", tmp_path, "--run", "all")
    assert result.output.splitlines() == [render_line(second), render_line(first)]
    assert result.exit_code == 0


def test_json(tmp_path: Path) -> None:
    first = keep(tmp_path, "PASS")
    row = Row(host="gpu-a", verdict="FAIL", reason=("disk: found 2 GiB\x1b[2J\x7f\x9b",))
    second = Runs(tmp_path).begin(COMMAND, ["gpu-a"], 40, [["gpu-a"]])
    Runs(tmp_path).finish(second, "interrupted", [row])
    last = run("report", "--results", tmp_path, "--json")
    data = json.loads(last.output)
    assert last.exit_code == 1
    assert last.output.replace("\n", "").isprintable()
    assert (data["id"], data["state"], data["command"]) == (second.id, "interrupted", COMMAND)
    assert (data["hosts"], data["fleet"], data["waves"]) == (["gpu-a"], 40, [["gpu-a"]])
    assert data["rows"][0]["reason"] == list(row.reason)
    older = run("report", "--results", tmp_path, "--json", "--run", first.id)
    assert (json.loads(older.output)["id"], older.exit_code) == (first.id, 0)
    both = run("report", "--results", tmp_path, "--json", "--run", "all")
    assert [run["id"] for run in json.loads(both.output)] == [second.id, first.id]
    assert both.exit_code == 0


@pytest.mark.parametrize("wanted", [(), ("--run", "all"), ("--run", "2026"), ("--json",)])
def test_no_run_is_bad_input(wanted: tuple[str, ...], tmp_path: Path) -> None:
    result = run("report", "--results", tmp_path, *wanted)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: found no run in {tmp_path}/runs; expected one; "
        "next: pyinfra -y inventory deploy.py\n"
    )


def test_a_run_that_can_t_be_read_is_named_and_what_is_older_is_no_success(tmp_path: Path) -> None:
    older = keep(tmp_path, "PASS")
    error = spoil(tmp_path, keep(tmp_path, "PASS"))
    last = run("report", "--results", tmp_path)
    assert (last.stderr, last.stdout) == (error, render_run(older) + "\n")
    assert last.exit_code == 2
    listed = run("report", "--results", tmp_path, "--run", "all")
    assert (listed.stderr, listed.stdout) == (error, render_line(older) + "\n")
    assert listed.exit_code == 2


def test_an_old_run_that_can_t_be_read_is_no_fault_of_the_last(tmp_path: Path) -> None:
    spoil(tmp_path, keep(tmp_path, "PASS"))
    last = keep(tmp_path, "PASS")
    result = run("report", "--results", tmp_path)
    assert (result.output, result.exit_code) == (render_run(last) + "\n", 0)


def test_nothing_but_runs_that_can_t_be_read(tmp_path: Path) -> None:
    errors = [spoil(tmp_path, keep(tmp_path, "PASS")) for _ in range(2)]
    result = run("report", "--results", tmp_path)
    assert (result.stderr, result.stdout) == ("".join(reversed(errors)), "")
    assert result.exit_code == 2
    one = run("report", "--results", tmp_path, "--run", Runs(tmp_path).ids()[0])
    assert (one.output, one.exit_code) == (errors[0], 2)


def test_the_run_of_before_runs_were_kept(tmp_path: Path) -> None:
    rows = [{"host": "gpu-a", "verdict": "PASS"}]
    (tmp_path / "last-run.json").write_text(json.dumps({"version": 1, "rows": rows}))
    result = run("report", "--results", tmp_path)
    assert result.output.startswith("run last-run, of before runs were kept")
    assert result.exit_code == 0


# -- forms -----------------------------------------------------------------------------------------


def fleet(folder: Path) -> Run:
    """A run of gpu-0, and results of it and of gpu-b, which that run did not ask."""
    for host in ("gpu-0", "gpu-b"):
        Store(folder).write_result(host, replace(RESULT, host=host))
    return keep(folder, "PASS")


def test_html_holds_the_run_the_history_and_hosts_of_before(tmp_path: Path) -> None:
    fleet(tmp_path)
    result = run("report", "--results", tmp_path, "--format", "html")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "<strong>2</strong> hosts" in text
    assert "; 4 measurements kept<br>run 2" in text
    assert text.count('<th scope="row">gpu-b</th>') == 2
    assert "Roofline" in text


@pytest.mark.parametrize(
    ("state", "said"), [("interrupted", "INTERRUPTED"), ("running", "NO END"), ("complete", "")]
)
def test_a_page_says_that_its_run_was_cut_off(state: RunState, said: str, tmp_path: Path) -> None:
    """Its rows may be all PASS."""
    rows = [Row(host="gpu-a", verdict="PASS")] if said else []
    hosts = [row.host for row in rows]
    Runs(tmp_path).finish(Runs(tmp_path).begin(COMMAND, hosts, 1, [hosts]), state, rows)
    result = run("report", "--results", tmp_path, "--format", "html")
    notes = re.findall('<p class="note">([^<]*)', result.stdout)
    assert result.exit_code == 1
    assert notes == [note for note in notes if note.startswith(said or NOTHING)] != []


def test_a_page_of_an_older_run_names_the_newer_one(tmp_path: Path) -> None:
    keep(tmp_path, "PASS")
    error = spoil(tmp_path, keep(tmp_path, "PASS"))
    result = run("report", "--results", tmp_path, "--format", "html")
    assert result.exit_code == 2
    note = error.removeprefix("Error: ").strip()
    assert f'<p class="note">{note}</p>' in html.unescape(result.stdout)


@pytest.mark.parametrize("form", ["text", "html"])
def test_what_the_history_can_t_take_in_is_said_and_keeps_no_table_waiting(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, "PASS")
    said: list[str] = []
    monkeypatch.setattr(report, "_put", lambda text, output: said.append(text))
    monkeypatch.setattr(report, "keep_up", lambda results: [f"bad after {len(said)}"])
    result = run("report", "--results", tmp_path, "--format", form)
    assert result.stderr == f"Warning: bad after {int(form == 'text')}\n"
    assert ("bad after 0" in said[0]) == (form == "html")


def test_a_result_that_can_t_be_read_is_named_on_the_page(tmp_path: Path) -> None:
    keep(tmp_path, "PASS")
    (tmp_path / "gpu-x").mkdir()
    (tmp_path / "gpu-x" / "latest.json").write_text("{")
    result = run("report", "--results", tmp_path, "--format", "html")
    assert "gpu-x/latest.json can&#39;t be read" in result.stdout


def test_a_result_in_another_host_s_folder_is_not_that_host_s(tmp_path: Path) -> None:
    Store(tmp_path).write_result("gpu-b", RESULT)
    found = newest(keep(tmp_path, "PASS"), tmp_path)
    assert [(row.host, row.verdict) for row in found.rows] == [("gpu-0", "PASS"), ("gpu-b", "PASS")]
    assert list(found.results) == ["gpu-b"]


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("text", "run 2"), ("html", "<!doctype html>"), ("md", "### llamafleet: run 2"),
        ("junit", "<testsuites "), ("json", "{"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("FAIL", 1)])
def test_each_form_is_written_and_judges_the_run(
    form: str, begins: str, verdict: Verdict, code: int, tmp_path: Path
) -> None:
    keep(tmp_path, verdict)
    file = tmp_path / "out"
    printed = run("report", "--results", tmp_path, "--format", form)
    written = run("report", "--results", tmp_path, "--format", form, "-o", file)
    assert (printed.exit_code, written.exit_code, written.stdout) == (code, code, "")
    text = file.read_text()
    assert text.startswith(begins)
    assert form == "html" or printed.stdout == text  # A page says when it was made.
    assert (file.stat().st_mode & 0o777) == 0o644


def test_json_is_json_by_either_name(tmp_path: Path) -> None:
    keep(tmp_path, "PASS")
    both = [
        run("report", "--results", tmp_path, *how) for how in (["--json"], ["--format", "json"])
    ]
    assert both[0].stdout == both[1].stdout
    assert json.loads(both[0].stdout)["state"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--json", "--format", "md"), "--json: found --format md beside it"),
        (("--run", "all", "--format", "junit"), "expected text or json"),
        (("--run", "2026", "--format", "html"), "expected none, as the page holds the whole"),
        (("--run", "2026", "--example"), "--example: found --run beside it"),
        (("-o", "/nowhere/at/all"), "next: mkdir -p /nowhere/at"),
        (("-o", "PIPE"), "found no file that could be written there"),
        (("--format", "pdf"), "'pdf' is not one of"),
    ],
)
def test_what_can_t_be_had_is_refused_and_nothing_printed(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    keep(tmp_path, "PASS")
    # No device of this machine: were it not refused, root's would be replaced.
    os.mkfifo(pipe := tmp_path / "pipe")
    told = [str(pipe) if one == "PIPE" else one for one in arguments]
    result = run("report", "--results", tmp_path, *told)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert pipe.is_fifo()


def test_a_file_that_can_t_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, "PASS")
    file = tmp_path / "out.md"
    file.write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    result = run("report", "--results", tmp_path, "--format", "md", "-o", file)
    assert result.exit_code == 2
    assert "found No space left on device" in result.stderr
    assert file.read_text() == "old"
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("form", ["text", "html", "md", "junit", "json"])
def test_the_example_needs_no_results_and_says_what_is_made_up(form: str, tmp_path: Path) -> None:
    result = run("report", "--example", "--results", tmp_path / "none", "--format", form)
    assert result.exit_code == 0
    assert "synthetic-capped" in result.stdout
    assert "Hosts named synthetic-… are made up" in result.stderr
    assert not (tmp_path / "none").exists()


def test_the_example_s_text_says_what_the_update_cost_and_who_is_slow() -> None:
    lines = run("report", "--example").stdout.splitlines()
    assert any(line.startswith("driver 575.57.08 -> 580.159.04") for line in lines)
    assert any("tg128" in line and line.endswith("SLOWER") for line in lines)
    (slow,) = (line for line in lines if line.startswith("SLOW "))
    assert slow.startswith("SLOW synthetic-capped GPU-5e5e0008 pp512: ")


def test_on_the_example_s_page_the_planted_slow_gpu_is_found_and_no_other() -> None:
    text = run("report", "--example", "--format", "html").stdout
    slow = re.findall(r'v-slow">SLOW</span> <strong><a href="#gpu-[0-9]*">([^<]*)<', text)
    assert slow == ["synthetic-capped"]
    assert "its power limit is 350 W, below its default of 700 W" in text
    tiles = text.split('<ul class="tiles">')[1].split("</ul>")[0]
    assert "the newest driver, from 575.57.08 on <time>2026-10-29</time>" in tiles
    assert '<span class="v v-slower">slower</span> -3.9 % (-' in tiles
    assert "Driver 575.57.08 → 580.159.04" in text


@pytest.mark.parametrize(
    ("piped", "variables", "colours"),
    [
        (False, {}, True),
        (False, {"NO_COLOR": "1"}, False),
        (False, {"NO_COLOR": ""}, True),
        (False, {"TERM": "dumb"}, False),
        (True, {}, False),
    ],
)
def test_a_terminal_alone_gets_colours(
    piped: bool, variables: dict[str, str], colours: bool, tmp_path: Path
) -> None:
    last = keep(tmp_path, "PASS", "FAIL")
    text = printed(tmp_path, piped=piped, **variables)
    assert text == render_run(last, colours=colours) + "\n"
    assert ("\x1b[31mFAIL\x1b[0m" in text) is colours


def test_a_file_gets_none_though_it_is_written_from_a_terminal(tmp_path: Path) -> None:
    last = keep(tmp_path, "PASS", "FAIL")
    assert printed(tmp_path, "-o", tmp_path / "out") == ""
    assert (tmp_path / "out").read_text() == render_run(last) + "\n"


def printed(results: Path, *options: str | Path, piped: bool = False, **variables: str) -> str:
    """By the command itself, on a terminal or into a pipe."""
    command = [Path(sys.executable).with_name("llamafleet"), "report", "--results", results]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8", **variables}
    reader, writer = os.pipe() if piped else pty.openpty()
    done = subprocess.run([*command, *options], stdout=writer, env=environment, check=False)
    # Nothing at all would be waited for.
    os.write(writer, b"$")
    with open(reader, "rb", closefd=True) as said:  # noqa: PTH123 - a descriptor
        text = said.read1(65536).decode().replace("\r\n", "\n")
    os.close(writer)
    assert done.returncode == 1
    return text.removesuffix("$")


def test_a_terminal_that_lacks_a_character_gets_its_escape(tmp_path: Path) -> None:
    Runs(tmp_path).finish(
        Runs(tmp_path).begin(COMMAND, ["gpu-測"], 1, [["gpu-測"]]),
        "complete",
        [Row(host="gpu-測", verdict="FAIL")],
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("llamafleet"), "report", "--results", tmp_path],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "gpu-\\u6e2c" in done.stdout
