"""Child processes that die, hang or can't import: findings of the parent, with the last words."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.onhost.verify.child import Children, TaskProblem, cure

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
    assert "smaller model or context" in cure(outcome)
    with pytest.raises(TaskProblem, match="SIGSEGV"):
        _ = outcome.result


def test_a_silent_end_is_no_reply(tmp_path: Path) -> None:
    outcome = children(tmp_path, "import os\nos._exit(0)\n").run("probe")
    assert "status 0 and no reply" in (outcome.problem or "")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("libcublas.so.13: cannot open shared object file: No such file", "deploy again"),
        ("libcuda.so.1: cannot open shared object file: No such file", "NVIDIA driver"),
        ("No module named 'llama_cpp'", "<prefix>/bin/python"),
        ("something else", "worker-probe.log"),
    ],
)
def test_an_import_that_fails_has_a_cure(tmp_path: Path, error: str, advice: str) -> None:
    outcome = children(tmp_path, f"raise RuntimeError({error!r})\n").run("probe")
    assert error in (outcome.problem or "")
    assert advice in cure(outcome)


def test_code_for_another_gpu_has_a_cure(tmp_path: Path) -> None:
    said = "CUDA error: no kernel image is available for execution on the device"
    code = f"import os\nos.write(2, {said.encode()!r})\nos.abort()\n"
    outcome = children(tmp_path, code).run("probe")
    assert "SIGABRT" in (outcome.problem or "") and said in (outcome.problem or "")
    assert "machine_code" in cure(outcome)


@pytest.mark.parametrize(
    ("line", "signum", "advice"),
    [
        ("can't be used with preferred buffer type AMX, using CPU", "SIGSEGV", "-mno-amx-tile"),
        ("load_tensors: CPU_Mapped", "SIGSEGV", "worker-probe.log"),
        ("load_tensors: CPU_Mapped", "SIGILL", "GGML_NATIVE"),
    ],
)
def test_code_for_another_cpu_has_a_cure(
    tmp_path: Path, line: str, signum: str, advice: str
) -> None:
    die = (
        f"import os, signal\nos.write(2, {line.encode()!r})\nos.kill(os.getpid(), signal.{signum})"
    )
    outcome = children(tmp_path, die).run("probe")
    assert signum in (outcome.problem or "")
    assert advice in cure(outcome)


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
