"""Several hosts in one run: what stops one host stops no other, and each run is kept."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.runs import checkout, llamafleet, pyinfra, start
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
    whole = pyinfra(folder, "-y", inventory, "deploy.py")
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
    output = process.communicate(timeout=60)[0]
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
