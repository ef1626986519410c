"""Several hosts in one run: what stops one host stops no other, and each run is kept."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import termios
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from llamafleet.history.records import History
from llamafleet.history.store import Store
from operations.ending import LIMIT_S
from tests.e2e.runs import PYINFRA, checkout, environment, llamafleet, pyinfra, start
from tests.history import RESULT
from tests.hosts.recorded import load
from tests.test_settings import make_wheelhouse

NO_GPU = """#llamafleet-snapshot 1
complete=1
#end"""

SOUND = Path(__file__).parents[1] / "hosts" / "cpu-debian12.snapshot"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkout(tmp_path)


def fleet(folder: Path, snapshots: dict[str, str], delay: int = 0) -> str:
    """Hosts that answer the snapshot script with these texts, after so many seconds."""
    hosts = [
        (
            f"@fake/{name}",
            {
                "fake_responses": {"llamafleet-snapshot": text.splitlines()},
                "fake_delay": delay,
                "fake_delay_jitter": 0,
            },
        )
        for name, text in snapshots.items()
    ]
    (folder / "fleet").write_text(f"hosts = {hosts!r}\n")
    return "fleet"


def runs(folder: Path) -> list[dict[str, Any]]:
    """Every run that is kept, oldest first."""
    done = llamafleet(folder, "report", "--run", "all", "--json")
    assert done.returncode == 0, done.stderr
    return list(reversed(json.loads(done.stdout)))


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """By host, of the only run."""
    (run,) = runs(folder)
    return {row["host"]: row for row in run["rows"]}


def test_each_bad_host_fails_alone_and_has_its_own_reason(folder: Path) -> None:
    inventory = fleet(folder, {"bare": NO_GPU, "cut": NO_GPU[:30], "odd": "Welcome to lab 3!"})
    run = pyinfra(folder, "-y", inventory, "deploy.py")
    assert run.returncode == 1, run.output
    assert "Traceback" not in run.output, run.output
    found = rows(folder)
    assert set(found) == {"@fake/bare", "@fake/cut", "@fake/odd"}
    assert {row["verdict"] for row in found.values()} == {"FAIL"}
    assert "no NVIDIA GPU" in str(found["@fake/bare"]["reason"])
    assert "snapshot: found 'complet' in line 1" in str(found["@fake/cut"]["reason"])
    assert "snapshot: found 'Welcome to lab 3!'" in str(found["@fake/odd"]["reason"])


def test_a_host_that_is_not_reached_is_in_the_table(folder: Path) -> None:
    inventory = fleet(folder, {"bare": NO_GPU})
    with (folder / inventory).open("a") as file:
        file.write("hosts.append(('127.0.0.1', {'ssh_port': 1, 'ssh_connect_retries': 0}))\n")
    run = pyinfra(folder, "-y", inventory, "deploy.py")
    assert run.returncode == 1, run.output
    row = rows(folder)["127.0.0.1"]
    (reason,) = row["reason"]
    assert row["verdict"] == "NOT VERIFIED"
    assert "Connection refused of 127.0.0.1 (127.0.0.1 port 1)" in reason, reason
    assert reason.endswith("next: ssh -p 1 127.0.0.1 true")
    assert "Traceback" not in run.output and run.output.count("Connection refused") == 2


def test_a_host_that_its_wheelhouse_does_not_fit_is_not_touched(
    folder: Path, tmp_path: Path
) -> None:
    house = make_wheelhouse(tmp_path / "w", pythons=["3.11"])
    inventory = fleet(folder, {"gpu": load("rtx4090-580-ubuntu24").text})
    run = pyinfra(folder, "-y", "-vv", "--data", f"wheelhouse={house}", inventory, "deploy.py")
    assert run.returncode == 1 and "Traceback" not in run.output, run.output
    reason = str(rows(folder)["@fake/gpu"]["reason"])
    assert "toolkit: found no CUDA Toolkit on the host" in reason, reason
    assert "wheelhouse: found Python 3.12 on the host, and the wheelhouse is for 3.11" in reason
    assert f"next: llamafleet wheelhouse build {house} " in reason
    # It was read, and that is all.
    (command,) = run.commands
    assert command.startswith("""[@fake/gpu] >>> eval "$(printf 'LF_SCOPE=system""")


def test_a_dry_run_writes_no_results(folder: Path) -> None:
    run = pyinfra(folder, "--dry", fleet(folder, {"bare": NO_GPU}), "deploy.py")
    assert "no NVIDIA GPU" in run.output, run.output
    assert not (folder / "results").exists()


def test_every_run_is_kept_and_a_part_of_the_fleet_says_so(folder: Path) -> None:
    inventory = fleet(folder, {"a": NO_GPU, "b": NO_GPU, "c": NO_GPU})
    results = folder / "results"
    Store(results).write_result("@fake/a", replace(RESULT, host="@fake/a"))
    whole = pyinfra(folder, "-y", inventory, "deploy.py")
    assert len(list(History(results).records())) == 2, "the end of a run takes results in"
    secret = ("--data", "ssh_password=hunter2")
    part = pyinfra(folder, "-y", "--limit", "@fake/b", *secret, inventory, "deploy.py")
    assert (whole.returncode, part.returncode) == (1, 1), whole.output + part.output
    first, second = runs(folder)
    assert first["hosts"] == ["@fake/a", "@fake/b", "@fake/c"]
    assert second["hosts"] == ["@fake/b"]
    assert {row["host"]: row["verdict"] for row in first["rows"]} == dict.fromkeys(
        first["hosts"], "FAIL"
    )
    assert (first["fleet"], second["fleet"]) == (3, 3)
    assert (first["state"], second["state"]) == ("complete", "complete")
    for run, kept in ((whole, first), (part, second)):
        assert f"run {kept['id']}, " in run.output
    head = (
        f"run {second['id']}, 1 of 3 hosts, started {second['started'][:10]} "
        f"{second['started'][11:19]}+0000 as: pyinfra -y --limit @fake/b "
        "--data 'ssh_password=***' fleet deploy.py"
    )
    last = llamafleet(folder, "report")
    assert (last.stdout.splitlines()[0], last.returncode) == (head, 1)
    written = "".join(path.read_text() for path in (folder / "results").rglob("*.json"))
    assert "@fake/b" in written and "hunter2" not in written
    assert "@fake/c" in llamafleet(folder, "report", "--run", first["id"]).stdout


def test_waves_are_those_of_pyinfra(folder: Path) -> None:
    inventory = fleet(folder, {"a": NO_GPU, "b": NO_GPU, "c": NO_GPU})
    for option in (("--parallel", "2"), ("--serial",), ()):
        pyinfra(folder, "-y", *option, inventory, "deploy.py")
    found = [run["waves"] for run in runs(folder)]
    assert [[len(wave) for wave in waves] for waves in found] == [[2, 1], [1, 1, 1], [3]]
    for waves in found:
        assert sorted(host for wave in waves for host in wave) == ["@fake/a", "@fake/b", "@fake/c"]


@pytest.mark.parametrize(
    ("sent", "state", "said"),
    [
        (signal.SIGKILL, "running", "NO END: it still runs, or was killed"),
        (signal.SIGINT, "interrupted", "INTERRUPTED: not everything was done"),
        (signal.SIGTERM, "interrupted", "INTERRUPTED: not everything was done"),
    ],
)
def test_a_run_that_was_stopped_is_no_success(
    folder: Path, sent: signal.Signals, state: str, said: str
) -> None:
    process = start(folder, fleet(folder, {"a": NO_GPU, "b": NO_GPU}, delay=2))
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob("results/runs/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    begun = time.monotonic()
    output = process.communicate(timeout=60)[0]
    assert time.monotonic() - begun < LIMIT_S + 10
    assert process.returncode == (-sent if sent == signal.SIGKILL else 128 + sent)
    assert sent == signal.SIGKILL or "@fake/a NOT VERIFIED  run: found it interrupted" in output
    (run,) = runs(folder)
    assert run["state"] == state, output
    assert [row["verdict"] for row in run["rows"]] == ["NOT VERIFIED", "NOT VERIFIED"]
    report = llamafleet(folder, "report")
    assert said in report.stdout
    assert report.returncode == 1


def test_a_run_that_is_given_up_is_not_complete(folder: Path) -> None:
    inventory = fleet(folder, {"bare": NO_GPU, "sound": SOUND.read_text()})
    with (folder / inventory).open("a") as file:
        file.write("hosts[1][1]['accelerator'] = 'auto'\n")
    run = pyinfra(folder, "-y", "--fail-percent", "0", inventory, "deploy.py")
    assert "Over 0% of hosts failed" in run.output
    assert [run["state"] for run in runs(folder)] == ["interrupted"]
    assert {host: row["verdict"] for host, row in rows(folder).items()} == {
        "@fake/bare": "FAIL",
        "@fake/sound": "NOT VERIFIED",
    }


@pytest.mark.parametrize("option", [(), ("--serial",)])
def test_a_run_that_can_t_be_kept_touches_no_host(folder: Path, option: tuple[str, ...]) -> None:
    (folder / "results").touch()
    inventory = fleet(folder, {"a": NO_GPU, "b": NO_GPU, "c": NO_GPU})
    run = pyinfra(folder, "-y", *option, inventory, "deploy.py")
    assert run.returncode == 1, run.output
    assert run.output.splitlines()[-1] == (
        "run: found that it can't be kept ([Errno 20] Not a directory: 'results/runs'); "
        "expected to write below results/; next: ls -ld results results/runs"
    )
    assert "no NVIDIA GPU" not in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize("where", ["inventory", "prepare"])
def test_an_interrupt_before_anything_was_begun_is_no_success(folder: Path, where: str) -> None:
    inventory = fleet(folder, {"a": NO_GPU})
    file = folder / (inventory if where == "inventory" else "deploy.py")
    file.write_text(f"print('here', flush=True)\nimport time\ntime.sleep(600)\n{file.read_text()}")
    process = start(folder, inventory)
    assert process.stdout is not None
    while "here" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "nothing was begun" in output, output
    assert not (folder / "results").exists()


UNHEARD = """
import signal, time
from gevent import monkey

def late():
    monkey.get_original("time", "sleep")(1)
    signal.pthread_kill(monkey.get_original("threading", "get_ident")(), signal.SIGINT)

monkey.get_original("_thread", "start_new_thread")(late, ())
time.sleep(600)
"""
"""A signal that is noted while the loop sleeps on, as one that comes just as it falls asleep."""


def test_an_interrupt_is_heard_while_the_loop_sleeps(folder: Path) -> None:
    inventory = fleet(folder, {"a": NO_GPU})
    deploy = folder / "deploy.py"
    deploy.write_text(UNHEARD + deploy.read_text())
    run = pyinfra(folder, "-y", inventory, "deploy.py", limit=60)
    assert run.returncode == 130 and "nothing was begun" in run.output, run.output


DOWN = {"ssh_port": 1, "ssh_connect_retries": 0}
"""No server listens there."""


def down(folder: Path, **data: object) -> str:
    hosts = [(f"127.0.0.{number}", {**DOWN, **data}) for number in (1, 2)]
    (folder / "fleet").write_text(f"hosts = {hosts!r}\n")
    return "fleet"


def test_a_fleet_that_is_down_has_a_table_and_is_a_run(folder: Path) -> None:
    run = pyinfra(folder, "-y", down(folder), "deploy.py")
    assert run.returncode == 1 and "Traceback" not in run.output, run.output
    found = rows(folder)
    assert {row["verdict"] for row in found.values()} == {"NOT VERIFIED"}
    assert "Connection refused of 127.0.0.2 (127.0.0.2 port 1)" in str(found["127.0.0.2"]["reason"])
    assert pyinfra(folder, "--dry", down(folder), "deploy.py").returncode == 1
    assert len(runs(folder)) == 1


@pytest.mark.parametrize("options", [("--dry",), ("-y",)])
def test_settings_are_refused_before_any_connection(folder: Path, options: tuple[str, ...]) -> None:
    wrong = {"accelerator": "gpu", "jobs": 0, "toolkit_metod": "wheels"}
    run = pyinfra(folder, *options, down(folder, **wrong), "deploy.py")
    assert run.returncode == 2, run.output
    lines = [line for line in run.output.splitlines() if line.startswith("  host 127.0.0.")]
    assert len(lines) == 6, run.output
    for said in ("Connecting", "refused of", "Traceback", "No hosts remaining"):
        assert said not in run.output, run.output
    assert not (folder / "results").exists()
    run = pyinfra(folder, *options, "fleet", "uninstall.py")
    # That a setting is mistyped: it may be the scope. Of the values the scope's counts alone.
    assert run.returncode == 2 and run.output.count("  host 127.0.0.") == 2, run.output


def test_what_a_removal_does_not_need_keeps_nobody_from_it(folder: Path) -> None:
    gone = {"llama_version": "0.3.9", "wheelhouse": "/gone", "netrc": "/gone", "jobs": 0}
    fake = {"fake_responses": {"llamafleet-snapshot": NO_GPU.splitlines()}}
    (folder / "fleet").write_text(f"hosts = {[('@fake/a', fake | gone)]!r}\n")
    run = pyinfra(folder, "-y", "fleet", "uninstall.py")
    assert run.returncode == 0, run.output
    (folder / "fleet").write_text(f"hosts = {[('@fake/a', fake | {'scope': 'all'})]!r}\n")
    assert pyinfra(folder, "-y", "fleet", "uninstall.py").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inventry",), "inventory inventry: found no such file"),
        (("llamafleet",), "inventory llamafleet: found a folder"),
        (("empty",), "inventory: found no host in it"),
        (("inventory", "--limit", "nobody"), "--limit nobody: found no host or group"),
        (("inventory", "--exclude", "@local"), "--exclude @local: found that it leaves no host"),
        (("inventory", "--no-wait"), "--no-wait: found it set"),
        (("broken",), "ZeroDivisionError"),
    ],
)
def test_a_run_of_nothing_is_refused(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    (folder / "empty").write_text("hosts = []\n")
    (folder / "broken").write_text("hosts = [1 / 0]\n")
    run = pyinfra(folder, "-y", *arguments, "deploy.py")
    assert run.returncode == 2 and said in run.output, run.output
    assert "Connecting" not in run.output and "Beginning operation" not in run.output


def test_other_commands_of_pyinfra_are_left_alone(folder: Path) -> None:
    (folder / "fleet").write_text("hosts = [('@local', {'accelerator': 'gpu'})]\n")
    run = pyinfra(folder, "fleet", "exec", "--", "true")
    assert run.returncode == 0 and "refused" not in run.output, run.output


def test_a_dry_run_ends_as_its_plans_say(folder: Path) -> None:
    inventory = fleet(folder, {"sound": SOUND.read_text()})
    assert pyinfra(folder, "--dry", inventory, "deploy.py").returncode == 1
    with (folder / inventory).open("a") as file:
        file.write("hosts[0][1]['accelerator'] = 'auto'\n")
    run = pyinfra(folder, "--dry", inventory, "deploy.py")
    assert run.returncode == 0, run.output


def test_in_a_dry_run_a_host_that_is_down_is_no_end_of_the_others(folder: Path) -> None:
    """Nor does it ask: nobody may be there to answer."""
    inventory = fleet(folder, {"sound": SOUND.read_text()})
    with (folder / inventory).open("a") as file:
        file.write(f"hosts[0][1]['accelerator'] = 'auto'\nhosts.append(('127.0.0.1', {DOWN}))\n")
    run = pyinfra(folder, "--dry", inventory, "deploy.py")
    assert run.returncode == 1 and "Traceback" not in run.output, run.output
    assert "[@fake/sound] build: build " in run.output, run.output
    assert "found [Errno 111] Connection refused of 127.0.0.1" in run.output
    assert "internal exception" not in run.output and "continue?" not in run.output


@pytest.mark.parametrize("how", [["-vvv"], ["--debug"]])
def test_what_pyinfra_says_of_a_command_holds_no_secret(folder: Path, how: list[str]) -> None:
    data = {"scope": "user", "accelerator": "cpu", "_env": {"LAB_TOKEN": "planted-7f3a"}}
    (folder / "fleet").write_text(f"hosts = [('@local', {data})]\n")
    run = pyinfra(folder, "--dry", *how, "fleet", "deploy.py")
    assert "planted" not in run.output and "LAB_TOKEN=***" in run.output, run.output


BREAK = """
def render_run(run, *, colours):
    raise ZeroDivisionError("of a table")
"""


def test_an_error_while_reporting_is_no_success(folder: Path) -> None:
    with (folder / "llamafleet/history/report.py").open("a") as file:
        file.write(BREAK)
    run = finished(folder)
    assert run.returncode == 1, run.output
    assert "ZeroDivisionError: of a table" in run.output and "Traceback" not in run.output


FINISHED = """
from operations.run import begin, here
from pyinfra.api import StringCommand, operation
from dataclasses import replace
from tests.history import RESULT, ORIGIN

@operation()
def fetched():
    run = here()
    run.result = {result}
    yield StringCommand("true")

begin()
fetched(name="Fetched")
"""


def finished(folder: Path, result: str = "RESULT") -> Any:
    """A run whose only operation succeeds, with this for a result."""
    (folder / "deploy.py").write_text(FINISHED.format(result=result))
    return pyinfra(folder, "-y", fleet(folder, {"a": NO_GPU}), "deploy.py")


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ("RESULT", 0),
        ("replace(RESULT, verdict='CPU ONLY')", 0),
        ("replace(RESULT, verdict='CPU ONLY', checks=(replace(ORIGIN, status='fail'),))", 1),
        ("replace(RESULT, verdict='BUSY')", 1),
        ("__import__('llamafleet.received').received.received_result({'version': 9})", 1),
        ("None", 1),
    ],
)
def test_the_exit_code_is_that_of_the_table(folder: Path, result: str, code: int) -> None:
    run = finished(folder, result)
    assert run.returncode == code, run.output
    assert llamafleet(folder, "report").returncode == code
    assert code == 0 or "@fake/a" in run.output.splitlines()[-1], run.output


LOSE = """
import shutil
from pathlib import Path

@operation()
def lose():
    shutil.rmtree("results")
    Path("results").touch()
    yield StringCommand("true")

lose(name="Lose")
"""


def test_results_that_can_t_be_kept_are_no_success(folder: Path) -> None:
    (folder / "deploy.py").write_text(FINISHED.format(result="RESULT") + LOSE)
    run = pyinfra(folder, "-y", fleet(folder, {"a": NO_GPU}), "deploy.py")
    assert run.returncode == 1 and "can't be kept" in run.output, run.output
    assert re.search(r"^@fake/a .* PASS ", run.output, re.MULTILINE)


def test_an_error_of_pyinfra_after_all_was_done_is_no_success(folder: Path) -> None:
    broken = "\nimport pyinfra_cli.cli\npyinfra_cli.cli.print_results = lambda state: 1 / 0\n"
    (folder / "deploy.py").write_text(FINISHED.format(result="RESULT") + broken)
    run = pyinfra(folder, "-y", fleet(folder, {"a": NO_GPU}), "deploy.py")
    assert run.returncode == 1 and "ZeroDivisionError" in run.output, run.output
    assert re.search(r"^@fake/a .* PASS ", run.output, re.MULTILINE)


def nobody_reads() -> IO[str]:
    """A pipe whose reader is gone."""
    reads, writes = os.pipe()
    os.close(reads)
    return os.fdopen(writes, "w")


@pytest.mark.parametrize("output", ["/dev/full", "gone"])
@pytest.mark.parametrize("result", ["None", "RESULT"])
def test_a_table_that_nobody_can_read_is_no_success(folder: Path, result: str, output: str) -> None:
    """A full disk of a log; head(1), or the tee(1) of a log that the same Ctrl-C ended."""
    (folder / "deploy.py").write_text(FINISHED.format(result=result))
    command = [PYINFRA, "-y", fleet(folder, {"a": NO_GPU}), "deploy.py"]
    with Path(output).open("w") if output != "gone" else nobody_reads() as to:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=to,
            check=False,
            timeout=120,
        )
    assert done.returncode == 1


def test_an_interrupt_at_a_question_for_a_password_leaves_a_terminal_that_shows(
    folder: Path,
) -> None:
    inventory = fleet(folder, {"a": NO_GPU})
    command = shlex.join([PYINFRA, "--same-sudo-password", inventory, "deploy.py"])
    pid, terminal = pty.fork()
    if pid == 0:  # The shell stays: with it the terminal would go, and begin anew.
        os.chdir(folder)
        script = f"trap : INT; {command}; echo ended $?; read line"
        os.execve("/bin/sh", ["sh", "-c", script], environment(folder))
    try:
        read_until(terminal, b"sudo password:")
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.1)
        os.write(terminal, b"\x03")
        read_until(terminal, b"ended 130")
        assert termios.tcgetattr(terminal)[3] & termios.ECHO
    finally:
        os.write(terminal, b"\n")
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, words: bytes) -> None:
    said = b""
    while words not in said:
        assert select.select([terminal], [], [], 60)[0], said
        said += os.read(terminal, 4096)


def test_an_error_of_our_own_shows_where_it_was_for_those_who_ask(folder: Path) -> None:
    wrong = FINISHED.format(result="RESULT").replace(
        "    run.result =", "    {}['\\x1b[2J']\n    run.x ="
    )
    (folder / "deploy.py").write_text(wrong)
    inventory = fleet(folder, {"a": NO_GPU})
    run = pyinfra(folder, "-y", inventory, "deploy.py")
    assert run.returncode == 1 and "Traceback" not in run.output, run.output
    assert "KeyError: '\\x1b[2J'; expected none; next: report this" in run.output
    run = pyinfra(folder, "-y", "--debug", inventory, "deploy.py")
    assert 'deploy.py", line ' in run.output and "\x1b[2J" not in run.output, run.output
