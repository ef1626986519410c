"""The log of a host's last failed job, by the command that the host runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from llamafleet.facts.failed_log import HEAD, FailedLog
from llamafleet.protocol.job import STAMP, log_name
from llamafleet.protocol.log_text import HALF
from tests.facts.fakehost import SHELLS, shell_command


def job(state: Path, name: str, log: str, age: int, *, failed: bool = True) -> Path:
    folder = state / "build" / name
    folder.mkdir(parents=True)
    (folder / STAMP).write_text('{"error": {"signature": "x"}}' if failed else '{"error": null}')
    path = folder / log_name("build")
    path.write_text(log)
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def read(state: Path, shell: str = "sh") -> str:
    fact = FailedLog()
    command = fact.command(str(state), str(state / "none"))
    done = subprocess.run(
        [*shell_command(shell), "-c", command],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return fact.process(done.stdout.splitlines())


@pytest.mark.parametrize("shell", SHELLS)
def test_the_newest_log_of_a_job_that_failed(shell: str, tmp_path: Path) -> None:
    job(tmp_path, "a", "old\n", age=3)
    wanted = job(tmp_path, "b", "wrong\n", age=2)
    job(tmp_path, "c", "well\n", age=1, failed=False)
    assert read(tmp_path, shell) == f"{HEAD}{wanted}\nwrong"


def test_no_job_failed(tmp_path: Path) -> None:
    job(tmp_path, "c", "well\n", age=1, failed=False)
    assert read(tmp_path) == ""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    path = job(tmp_path, "a", "", age=1)
    path.unlink()
    path.symlink_to(secret)
    linked = job(tmp_path / "elsewhere", "b", "secret\n", age=1).parent
    (tmp_path / "build" / "b").symlink_to(linked)
    (tmp_path / "toolkit").symlink_to(tmp_path / "away" / "toolkit")
    kind = job(tmp_path / "away", "c", "secret\n", age=1).parents[1]
    kind.rename(kind.with_name("toolkit"))
    (kind.with_name("toolkit") / "c" / "build.log").rename(
        kind.with_name("toolkit") / "c" / log_name("toolkit")
    )
    stamp = job(tmp_path, "d", "linked stamp\n", age=1).with_name(STAMP)
    stamp.rename(tmp_path / STAMP)
    stamp.symlink_to(tmp_path / STAMP)
    assert read(tmp_path) == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_pipe_is_not_waited_for(shell: str, tmp_path: Path) -> None:
    wanted = job(tmp_path, "a", "wrong\n", age=3)
    for name, pipe in (("b", log_name("build")), ("c", STAMP)):
        path = job(tmp_path, name, "", age=1).with_name(pipe)
        path.unlink()
        os.mkfifo(path)
    assert read(tmp_path, shell) == f"{HEAD}{wanted}\nwrong"


def test_of_a_long_log_both_ends(tmp_path: Path) -> None:
    line = "x" * 99 + "\n"
    job(tmp_path, "a", f"first\n{line * (2 * HALF // 100 + 50)}last\n", age=1)
    text = read(tmp_path)
    assert "first" in text and text.endswith("last")
    assert len(text) < 2 * HALF + 500


@pytest.mark.parametrize("path", ["relative", '/a"b', "/a\nb"])
def test_a_path_that_can_not_be_quoted_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="found path"):
        FailedLog().command(path, "/x")
