"""Child processes that die, hang or can't import: findings of the parent, with the last words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llamafleet.onhost.verify import child
from llamafleet.onhost.verify.child import Children, TaskProblem
from llamafleet.onhost.verify.gpu import Gpu

FLOOD = "import os\nos.write(2, b'CUDA error: out of memory\\n')\n"


def children(folder: Path, code: str, timeout_s: float = 60) -> Children:
    """Children whose llama_cpp is `code`."""
    package = folder / "llama_cpp"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(code)
    return Children(folder, None, {"PYTHONPATH": str(folder)}, timeout_s)


def test_a_hang_ends_at_the_limit(tmp_path: Path) -> None:
    outcome = children(tmp_path, "import time\ntime.sleep(60)\n", timeout_s=0.5).run("probe")
    assert outcome.reply is None and outcome.wall_s < 10
    assert "no end after 0 s" in (outcome.problem or "") or "no end after 1 s" in (
        outcome.problem or ""
    )


def test_a_crash_is_named_with_its_last_words(tmp_path: Path) -> None:
    code = FLOOD + "import ctypes\nctypes.string_at(0)\n"
    outcome = children(tmp_path, code).run("probe", "crash")
    assert outcome.problem == ("the process was ended by SIGSEGV; log: CUDA error: out of memory")
    assert outcome.log_path == tmp_path / "worker-crash.log"
    with pytest.raises(TaskProblem, match="SIGSEGV"):
        _ = outcome.result


def test_a_silent_end_is_no_reply(tmp_path: Path) -> None:
    outcome = children(tmp_path, "import os\nos._exit(0)\n").run("probe")
    assert "status 0 and no reply" in (outcome.problem or "")


def test_what_prints_to_standard_output_is_no_message(tmp_path: Path) -> None:
    outcome = children(tmp_path, "print('hello', flush=True)\nraise RuntimeError('x')\n").run(
        "probe"
    )
    assert outcome.problem is not None and outcome.problem.startswith("RuntimeError: x")
    assert "hello" in outcome.log


def test_the_current_folder_does_not_shadow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A llama_cpp in the folder where the command was typed is not the build's."""
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('from here')\n")
    monkeypatch.chdir(tmp_path)
    outcome = Children(tmp_path, None).run("probe")
    assert "from here" not in (outcome.problem or "")


HANGS = "import time\ntime.sleep(60)\n"


def test_a_process_that_no_signal_ends_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a call of a driver that hangs: it is killed, is not gone, and closes no pipe."""
    left: list[subprocess.Popen[str]] = []
    kill = subprocess.Popen.kill

    def spared(self: subprocess.Popen[str]) -> None:
        left.append(self)

    monkeypatch.setattr(subprocess.Popen, "kill", spared)
    monkeypatch.setattr(child, "END_S", 0.3)
    outcome = children(tmp_path, HANGS, timeout_s=0.5).run("probe")
    kill(left[0])
    left[0].wait()
    assert outcome.wall_s < 10 and (outcome.problem or "").startswith("no end after ")


def test_behind_a_hang_no_task_takes_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the second one ended with the unit's time, and there was no result."""
    monkeypatch.setattr(child, "SAME_S", 1.0)
    monkeypatch.setattr(child, "OTHER_S", 2.0)
    told = children(tmp_path, HANGS, timeout_s=3)
    first, other = (Gpu(n, "H200", f"GPU-{n}", "", "9.0", 1) for n in (0, 1))
    ended = [told.run("probe", gpu=gpu) for gpu in (first, first, other, None)]
    spent = [float((one.problem or "").split()[3]) for one in ended]
    assert spent == [3, 1, 2, 1] and sum(one.wall_s for one in ended) < 20


def test_a_long_answer_comes_whole(tmp_path: Path) -> None:
    """Several pipes full."""
    long = children(tmp_path, "raise RuntimeError('x' * 3_000_000 + '\\n' + 'end')\n").run("probe")
    assert (long.problem or "").count("x") >= 3_000_000 and "end" in (long.problem or "")
