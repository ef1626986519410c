"""Whose a process is."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from llamafleet.onhost.verify import owners
from llamafleet.onhost.verify.freedom import Called, processes
from llamafleet.protocol.conditions import Conditions, Process


def test_children_and_their_children_are_ours() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE
    ) as shell:
        assert shell.stdout
        grandchild = int(shell.stdout.readline())
        assert owners.ours(os.getpid()) and owners.ours(shell.pid) and owners.ours(grandchild)
        end = time.monotonic() + 30
        # Between fork and exec it is still called as its parent.
        while owners.described(grandchild)[1] != "sleep 60" and time.monotonic() < end:
            time.sleep(0.01)
        assert owners.described(grandchild)[1] == "sleep 60"
        os.kill(grandchild, 9)
    assert not owners.ours(os.getppid()) and not owners.ours(1) and not owners.ours(0)
    assert not owners.ours(shell.pid), "it has ended: whose it was is not known"
    assert owners.described(shell.pid) == ("", "")


@pytest.mark.parametrize(
    ("cmdline", "comm", "shown"),
    [
        (b"python\0-m\0train\0", b"python\n", "python -m train"),
        (b"", b"nvidia-cuda-mps\n", "nvidia-cuda-mps"),
        (b"a\x1b[2Jb\n\xff\0", b"", "a?[2Jb?\N{REPLACEMENT CHARACTER}"),
        (b"x" * 100, b"", "x" * owners.LONGEST + "..."),
        (b"", b"", ""),
    ],
)
def test_a_command_is_one_printable_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cmdline: bytes, comm: bytes, shown: str
) -> None:
    monkeypatch.setattr(owners, "PROC", tmp_path)
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "cmdline").write_bytes(cmdline)
    (folder / "comm").write_bytes(comm)
    assert owners.described(7)[1] == shown


def test_a_name_with_brackets_and_blanks_hides_no_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(f"7 (a) R 1 (b) S {os.getpid()} 7 7 0")
    assert owners.ours(7)


def test_the_broker_of_mps_is_no_load() -> None:
    broker = Process(7, "compute", 30.0, "root", "nvidia-cuda-mps-server")
    seen = Conditions("GPU-0", others=(broker,))
    (finding,) = processes(seen, Called("GPU 0", "0000:01:00.0"))
    assert finding.weight == "note"
