"""One run of a job: lock, progress, stamp, and what becomes of its children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost import job
from llamafleet.protocol.job import PROGRESS, STAMP, Progress, read_progress, status
from tests.onhost.runner import Runner, kill, processes_below, wait_for

# Work of its own, in a process that is named as the zipapp is.
SCRIPT = """
import os, sys, time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
sys.path.insert(0, {root!r})
from llamafleet.onhost import job
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import ToolkitConfig, ToolkitProduct

@dataclass(frozen=True, kw_only=True)
class Toy(ToolkitConfig):
    shell: str
    there: bool
    held: bool

def work(run, config):
    run.phase("one")
    if config.shell == "full":
        run.log_path = Path("/dev/full")
    with job.STOPPER.hold() if config.held else nullcontext():
        run.command(["sh", "-c", config.shell], env=dict(os.environ))
    return ToolkitProduct(nvcc="13.0")

class Slow(job.subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        time.sleep({slow})

job.subprocess.Popen = Slow
worker = job.Worker("toolkit", partial(decode, Toy), work, lambda config: config.there)
sys.exit(job.run(worker, Path(sys.argv[1]), Path(sys.argv[2])))
"""
ROOT = str(Path(job.__file__).parents[2])
CONFIG = "told.json"


def toy(
    folder: Path, shell: str, there: bool = True, slow: float = 0, held: bool = False
) -> list[str]:
    script = folder / "llamafleet-host-toy.py"
    script.write_text(SCRIPT.format(root=ROOT, slow=slow))
    common = {"version": 1, "kind": "toolkit", "key": "k", "inputs": {"method": "wheels"}}
    common |= {"method": "wheels", "cuda": "13.0", "root": "/r", "cxx": "/usr/bin/g++"}
    config = common | {"shell": shell, "there": there, "held": held}
    (folder / CONFIG).write_text(json.dumps(config))
    return [sys.executable, str(script), str(folder / CONFIG), str(folder)]


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def stamp(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / STAMP).read_text())
    return data


def test_success_is_stamped(tmp_path: Path) -> None:
    answer = run(toy(tmp_path, "echo said; python3 -c 'sum(range(5000000))'"))
    assert answer.returncode == 0, answer.stderr
    data = stamp(tmp_path)
    assert data["version"] == 1
    assert (data["kind"], data["key"], data["ok"]) == ("toolkit", "k", True)
    assert data["nvcc"] == "13.0"
    assert data["inputs"] == {"method": "wheels"}
    assert 0 < data["phases"]["one"] <= data["wall_s"]
    assert data["cpu_s"] > 0
    assert data["max_rss_mib"] > 1
    assert abs(sum(data["phases"].values()) - data["wall_s"]) < 0.5 + 0.1 * data["wall_s"]
    assert "said" in (tmp_path / "toolkit.log").read_text()
    assert status(tmp_path).state == "ok"


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    argv = toy(tmp_path, "true")
    assert run(argv).returncode == 0
    first = stamp(tmp_path)
    answer = run(argv)
    assert answer.returncode == 0
    assert "done already" in answer.stdout
    assert stamp(tmp_path) == first


def test_a_product_that_is_gone_is_made_again(tmp_path: Path) -> None:
    argv = toy(tmp_path, "true", there=False)
    assert run(argv).returncode == 0
    first = stamp(tmp_path)
    assert run(argv).returncode == 0
    assert stamp(tmp_path)["started"] > first["started"]


def test_failure_is_stamped_with_the_error(tmp_path: Path) -> None:
    argv = toy(tmp_path, "echo fine; echo 'x.c:1: error: broken'; exit 3")
    answer = run(argv)
    assert answer.returncode == job.EXIT_FAILED
    assert "error: broken" in answer.stderr
    error = stamp(tmp_path)["error"]
    assert error["phase"] == "one"
    assert error["lines"][0] == "sh ended with status 3"
    assert "x.c:1: error: broken" in error["lines"]
    assert error["log"] == str(tmp_path / "toolkit.log")
    assert status(tmp_path).state == "failed"
    # A failed job may be tried again.
    assert run(toy(tmp_path, "true")).returncode == 0


def test_missing_program_is_named(tmp_path: Path) -> None:
    this = job.Job("toolkit", tmp_path, "k")
    with pytest.raises(job.JobFailed, match="can't run /no/such/program"):
        this.command(["/no/such/program"], env={})


def test_child_ended_by_a_signal_is_named(tmp_path: Path) -> None:
    run(toy(tmp_path, "kill -9 $$"))
    assert stamp(tmp_path)["error"]["lines"][0] == "sh was ended by SIGKILL"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the whole: found null"),
        ("{", "the whole: found null"),
        ('{"version": 2}', "version: found 2, expected 1"),
        ('{"version": 1, "kind": "build"}', 'kind: found "build", expected toolkit'),
    ],
)
def test_wrong_settings_are_stamped(tmp_path: Path, text: str, why: str) -> None:
    argv = toy(tmp_path, "true")
    assert run(argv).returncode == 0
    # Also where an earlier run went well.
    (tmp_path / CONFIG).write_text(text)
    assert run(argv).returncode == job.EXIT_FAILED
    line = stamp(tmp_path)["error"]["lines"][0]
    assert "found no settings of a toolkit job (" in line and why in line
    assert "next: deploy again" in line


def test_full_disk_is_stamped(tmp_path: Path) -> None:
    argv = toy(tmp_path, "full")
    assert run(argv).returncode == job.EXIT_FAILED
    assert "No space left on device" in stamp(tmp_path)["error"]["lines"][0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_job_is_stamped_and_its_children_end(
    tmp_path: Path, signum: signal.Signals
) -> None:
    marker = tmp_path / "running"
    argv = toy(tmp_path, f"touch {marker}; (sleep 77; echo {tmp_path}) & sleep 77")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(marker.exists)
    process.send_signal(signum)
    assert process.wait(20) == 128 + signum
    data = stamp(tmp_path)
    assert data["ok"] is False
    assert data["error"]["lines"] == [f"stopped by {signum.name}"]
    wait_for(lambda: not processes_below(tmp_path), 5)


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_children_in_groups_of_their_own_end_too(tmp_path: Path, deaf: str) -> None:
    # As ninja starts its compilers; with and without an ear for SIGTERM.
    marker = tmp_path / "running"
    child = f"{deaf}touch {marker}; sleep 77; sleep 78; : {tmp_path}"
    argv = toy(tmp_path, f'set -m; sh -c "{child}" & sleep 77')
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(marker.exists)
    assert processes_below(tmp_path)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    wait_for(lambda: not processes_below(tmp_path), 2)


def test_stopped_while_a_child_is_being_started(tmp_path: Path) -> None:
    marker = tmp_path / "running"
    argv = toy(tmp_path, f"touch {marker}; sleep 77", slow=1)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(marker.exists)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert stamp(tmp_path)["error"]["lines"] == ["stopped by SIGTERM"]
    wait_for(lambda: not processes_below(tmp_path), 2)


def test_a_child_that_must_end_by_itself_is_let(tmp_path: Path) -> None:
    marker, ended = tmp_path / "running", tmp_path / "ended"
    argv = toy(tmp_path, f"touch {marker}; sleep 1; touch {ended}", held=True)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(marker.exists)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert ended.exists() and stamp(tmp_path)["error"]["lines"] == ["stopped by SIGTERM"]


def test_what_runs_beside_is_waited_for_and_how_it_ends_counts_for_nothing(tmp_path: Path) -> None:
    ended, begun = tmp_path / "ended", time.monotonic()
    argv = ["sh", "-c", f"sleep 0.5; yes | head -c 200000; touch {ended}; exit 3"]
    with job.beside(argv, env=dict(os.environ), cwd=tmp_path, limit_s=20):
        assert time.monotonic() - begun < 0.4
    assert ended.exists()
    with job.beside(["sleep", "77"], env=dict(os.environ), cwd=tmp_path, limit_s=0.1):
        pass
    assert time.monotonic() - begun < 20


def test_what_runs_beside_ends_with_what_it_runs_beside(tmp_path: Path) -> None:
    argv = ["sh", "-c", f"(sleep 77; echo {tmp_path}) & sleep 77"]
    with (
        pytest.raises(job.JobFailed, match="amid"),
        job.beside(argv, env=dict(os.environ), cwd=tmp_path, limit_s=77),
    ):
        wait_for(lambda: processes_below(tmp_path))
        raise job.JobFailed("amid")
    assert not processes_below(tmp_path)
    missing = job.beside([f"{tmp_path}/none"], env={}, cwd=tmp_path, limit_s=1)
    with pytest.raises(job.JobFailed, match="can't run"), missing:
        pytest.fail("it was not started")


def test_second_runner_is_refused(tmp_path: Path) -> None:
    argv = toy(tmp_path, f"touch {tmp_path}/running; sleep 30")
    first = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "running").exists)
        before = (tmp_path / PROGRESS).read_text()
        second = run(argv)
        assert second.returncode == job.EXIT_BUSY
        assert "another process runs this job: toolkit" in second.stderr
        assert status(tmp_path).state == "running"
        assert json.loads((tmp_path / PROGRESS).read_text())["pid"] == first.pid
        assert json.loads(before)["phase"] == "one"
    finally:
        first.terminate()
        first.wait(20)


def other(argv: list[str], folder: Path) -> list[str]:
    """The same kind of job in another folder."""
    return [*argv[:-1], str(folder)]


def test_one_job_of_a_kind_at_a_time_on_a_host(tmp_path: Path) -> None:
    folder, second = tmp_path / "k", tmp_path / "l"
    folder.mkdir()
    argv = toy(folder, f"touch {tmp_path}/running; sleep 30")
    first = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "running").exists)
        answer = run(other(argv, second))
        assert answer.returncode == job.EXIT_BUSY
        found = status(second)
        assert found.state == "failed" and found.stamp and found.stamp.error
        (line,) = found.stamp.error.lines
        assert "found another toolkit on this host (toolkit k, process " in line
        assert f"process {first.pid}, since 20" in line and "next: " in line
        assert status(folder).state == "running"
    finally:
        first.terminate()
        first.wait(20)
    # Whatever the holder wrote: a lock ends with its process.
    quick = toy(folder, "true")
    assert run(other(quick, second)).returncode == 0


def test_the_job_makes_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "k"
    assert run(other(toy(tmp_path, "true"), folder)).returncode == 0
    assert status(folder).state == "ok"


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    (tmp_path / "k").symlink_to(elsewhere)
    answer = run(other(toy(tmp_path, "true"), tmp_path / "k"))
    assert answer.returncode == job.EXIT_USAGE and "found no folder of uid" in answer.stderr
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is refused")
def test_root_works_in_no_folder_that_another_account_can_write(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    argv = other(toy(tmp_path, f"touch {tmp_path}/ran"), state / "build" / "k")
    for owner, mode in ((65534, 0o755), (0, 0o777)):
        os.chown(state, owner, owner)
        state.chmod(mode)
        answer = run(argv)
        assert answer.returncode == job.EXIT_USAGE, answer
        assert (
            f"{state}: found uid {owner}, mode {mode:o}; expected what root alone" in answer.stderr
        )
        assert list(state.iterdir()) == []
    # Nor does it read what such an account could have written.
    os.chown(tmp_path / CONFIG, 65534, 65534)
    (tmp_path / "root").mkdir()
    assert run(other(argv, tmp_path / "root")).returncode == job.EXIT_FAILED
    assert "expected what root alone" in stamp(tmp_path / "root")["error"]["lines"][0]
    assert not (tmp_path / "ran").exists()


def test_settings_that_are_a_link_are_not_read(tmp_path: Path) -> None:
    argv = toy(tmp_path, "true")
    (tmp_path / CONFIG).rename(tmp_path / "secret")
    (tmp_path / CONFIG).symlink_to(tmp_path / "secret")
    assert run(argv).returncode == job.EXIT_FAILED
    assert "symbolic links" in stamp(tmp_path)["error"]["lines"][0]


def test_a_log_says_no_secret_and_is_for_its_owner(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "toolkit.log").symlink_to(victim)
    said = "echo 'https://bob:hunter2@x/ https://x/?token=hunter2'; echo 'error: at http://b:hunter2@x'"
    assert run(toy(tmp_path, f"{said}; exit 1")).returncode == job.EXIT_FAILED
    assert victim.read_text() == "mine"
    log = tmp_path / "toolkit.log"
    assert log.lstat().st_mode & 0o777 == 0o640
    assert "https://***@x/ https://x/?token=***" in log.read_text()
    for path in (*tmp_path.glob("*.log"), tmp_path / STAMP, tmp_path / PROGRESS):
        assert "hunter2" not in path.read_text(), path


def test_killed_runner_is_dead_and_may_be_replaced(tmp_path: Path) -> None:
    argv = toy(tmp_path, f"touch {tmp_path}/running; sleep 3")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "running").exists)
    assert status(tmp_path).state == "running"
    kill(process.pid)
    # Not reaped yet: a zombie is no runner.
    wait_for(lambda: status(tmp_path).state == "dead", 5)
    process.wait()
    assert status(tmp_path).state == "dead"
    assert run(toy(tmp_path, "true")).returncode == 0
    assert status(tmp_path).state == "ok"


def test_steps_are_written_once_a_second_and_phases_always(tmp_path: Path) -> None:
    def told() -> Progress:
        found = read_progress(tmp_path)
        assert found is not None
        return found

    progress = job.ProgressFile(tmp_path, "toolkit", "k")
    progress.phase("one")
    for number in range(1000):
        progress.step(number, 1000, "x" * 500)
    assert (told().phase, told().step) == ("one", 0)
    time.sleep(1.05)
    progress.step(999, 1000, "x" * 500)
    assert (told().step, told().steps, len(told().line)) == (999, 1000, 200)
    assert told().updated >= told().started > 0
    progress.phase("two")
    assert (told().phase, told().step) == ("two", 0)


def test_status_command_prints_one_line(tmp_path: Path) -> None:
    answer = Runner(tmp_path).run("status", "--dir", tmp_path)
    assert answer.stdout == (
        '{"state": "absent", "progress": null, "stamp": null, "unreadable": ""}\n'
    )


def test_progress_may_be_told_by_several_threads(tmp_path: Path) -> None:
    """As of GPUs that are looked at side by side: they share one file beside the final one."""
    progress = job.ProgressFile(tmp_path, "verify", "0" * 16)

    def tell(number: int) -> None:
        for step in range(40):
            progress.phase("offload", f"GPU {number}")
            progress.step(step, 40, f"GPU {number}")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tell, range(4))) == [None] * 4
    told = read_progress(tmp_path)
    assert told is not None and told.phase == "offload" and told.line.startswith("GPU ")
