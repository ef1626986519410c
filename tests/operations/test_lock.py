"""The lock of a host: taken and given back as a host sees it, and with two processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from llamafleet.facts.host import DeployLock
from llamafleet.plans.lock import Holder
from operations import lock
from tests.operations.shells import LOGIN_SHELLS, run

OTHER = Holder("joe@laptop", "d" * 32, 4711, 99, 1.5)


def take(path: Path, was: str = "", login: str = "sh", host: str = "") -> None:
    done = run(lock._command(str(path), lock._TAKE, host, was=was), login)
    assert done.returncode == 0, done.stderr


def test_it_is_taken_touched_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "deploy.json"
    path.parent.mkdir()
    for login in LOGIN_SHELLS[:2]:
        take(path, login=login)
        assert json.loads(path.read_text()) == json.loads(lock.me().text())
        before = path.stat().st_mtime_ns
        time.sleep(0.02)
        assert run(lock._command(str(path), lock._TOUCH), login).returncode == 0
        assert path.stat().st_mtime_ns > before
        assert run(lock._command(str(path), lock._RELEASE), login).returncode == 0
        assert [left.name for left in path.parent.iterdir()] == ["deploy.json.lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="another account's process needs root")
def test_no_other_account_can_hold_it_up() -> None:
    """A folder that all may read, as /run, can be locked by all."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "deploy.json")
        take(path)
        path.unlink()
        for held in (folder, f"{path}.lock"):
            theirs = subprocess.Popen(
                ["flock", "--no-fork", held, "sleep", "60"], user=65534, group=65534
            )
            try:
                time.sleep(0.3)
                begun = time.monotonic()
                take(path)
                assert time.monotonic() - begun < 40 and path.exists()
            finally:
                theirs.kill()
                theirs.wait()
            path.unlink()


def test_one_of_another_run_is_neither_taken_nor_touched_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "deploy.json"
    path.write_text(OTHER.text() + "\n")
    before = path.stat().st_mtime_ns
    take(path)
    take(path, was=lock.me().text())
    for script in (lock._TOUCH, lock._RELEASE):
        assert run(lock._command(str(path), script)).returncode == 0
    assert path.read_text() == OTHER.text() + "\n" and path.stat().st_mtime_ns == before


def test_a_host_of_two_names_is_one_name_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "deploy.json"
    take(path, host="gpu-a")
    take(path, host="10.0.0.7")
    assert path.read_text().strip() == lock.me("gpu-a").text() != lock.me("10.0.0.7").text()
    assert run(lock._command(str(path), lock._RELEASE, "10.0.0.7")).returncode == 0
    assert path.exists()


def test_the_one_that_was_seen_is_taken_over_and_no_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "deploy.json"
    path.write_text(OTHER.text() + "\n")
    take(path, was=OTHER.text())
    assert json.loads(path.read_text())["pid"] == lock.me().pid
    newer = Holder("eve@laptop", "e" * 32, 1, 2, 3.5)
    path.write_text(newer.text() + "\n")
    take(path, was=OTHER.text())
    assert path.read_text() == newer.text() + "\n"


def test_after_a_reboot_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "deploy.json"
    assert run(lock._command(str(path), lock._TOUCH)).returncode == 0
    assert json.loads(path.read_text())["pid"] == lock.me().pid


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, path = tmp_path / "shadow", tmp_path / "deploy.json"
    target.write_text("secret")
    for name in (path, tmp_path / "deploy.json.partial"):
        name.symlink_to(target)
    take(path)
    assert target.read_text() == "secret", "an unreadable lock is nobody's to take"
    path.unlink()
    take(path)
    assert target.read_text() == "secret" and not path.is_symlink()


RUN = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from operations import lock
from tests.operations.shells import run
path = sys.argv[1]
reads, writes = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        os.close(writes)
        os.read(reads, 1)  # All begin at its end.
        done = run(lock._command(path, lock._TAKE))
        won = Path(path).read_text().strip() == lock.me().text()
        # In one write, whatever PYTHONUNBUFFERED says: another one may write in between.
        os.write(1, f"{done.stderr or won} ".encode())
        os._exit(0)
os.close(writes)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def test_of_two_runs_at_once_one_gets_it(tmp_path: Path) -> None:
    """Eight processes, as of eight controllers."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", RUN, str(tmp_path / "deploy.json"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["False"] * 7 + ["True"], done.stdout


@pytest.fixture
def gone() -> Iterator[int]:
    """Pid of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    yield process.pid


def test_a_process_of_this_machine_that_is_gone_is_known_to_be(gone: int) -> None:
    mine = lock.me()
    alive = DeployLock(mine.owner, mine.controller, mine.pid, mine.start_ticks, mine.started, 0)
    assert not lock.ended(alive) and not lock.ended(None)
    dead = DeployLock(mine.owner, mine.controller, gone, 5, mine.started, 0)
    assert lock.ended(dead)
    reused = DeployLock(mine.owner, mine.controller, mine.pid, 1, mine.started, 0)
    assert lock.ended(reused), "another process of that number"
    elsewhere = DeployLock("joe@laptop", "d" * 32, gone, 5, 1.0, 0)
    assert not lock.ended(elsewhere), "of another machine nothing is known"
