"""Commands that fix runs: what they say and what they leave running is bounded."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from llamafleet.facts.environment import attempt
from llamafleet.mend.machine import MOST, machine, run
from llamafleet.onhost.job import session_members

ENV = {"PATH": os.environ["PATH"]}


def test_one_that_never_stops_talking_fills_no_memory() -> None:
    code = (
        "import resource; from llamafleet.mend.machine import run;"
        # Some 10 GB/s come out of it: 1 GiB is full within a second.
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "said = run(['yes', 'x' * 4000], 4, {'PATH': '/usr/bin:/bin'}); print(said)"
    )
    said = run([sys.executable, "-c", code], 60, dict(os.environ))
    assert said.status == 0 and "status=None" in said.output, said.error[-500:]


def test_the_end_of_a_long_answer_is_kept() -> None:
    said = run(["sh", "-c", f"head -c {3 * MOST} /dev/zero | tr '\\0' x; echo; echo last"], 60, ENV)
    assert said.status == 0 and said.output.endswith("x\nlast\n")
    assert len(said.output) <= MOST


def test_what_it_started_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    begun = time.monotonic()
    said = run(["sh", "-c", f"sleep 100 & echo $$ > {file}; echo done"], 90, ENV)
    assert said.output == "done\n" and time.monotonic() - begun < 60
    assert session_members(int(file.read_text())) == []


def test_one_that_left_with_the_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    begun = time.monotonic()
    said = run(["sh", "-c", f"setsid sleep 100 & echo $! > {file}; echo done"], 90, ENV)
    assert said.output == "done\n" and time.monotonic() - begun < 60
    os.kill(int(file.read_text()), 9)


def test_to_look_leaves_nothing_in_an_environment(tmp_path: Path) -> None:
    """uv compiles nothing at an installation: an import would."""
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp/__init__.py").touch()
    environ = {**ENV, "PYTHONPATH": str(tmp_path)}
    made = machine(1000, tmp_path / "home", environ)
    assert attempt(sys.executable, made.ask).imported
    assert [path.name for path in (tmp_path / "llama_cpp").iterdir()] == ["__init__.py"]
