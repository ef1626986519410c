"""Builds that another one stands for are removed, but for those that somebody uses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llamafleet.onhost.discard import REMOVED
from llamafleet.protocol.job import BUILD
from llamafleet.protocol.place import PROOF
from tests.onhost.runner import PYTHON, Runner

CODE = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def build(runner: Runner, name: str) -> Path:
    """A whole one, with an interpreter and a library."""
    folder = runner.root / "versions" / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(PYTHON)
    (folder / "lib.so").write_bytes(b"x" * 4096)
    (folder / BUILD).write_text("{}")
    return folder


def discard(runner: Runner, *names: str) -> subprocess.CompletedProcess[str]:
    versions, current = runner.root / "versions", runner.root / "current"
    return runner.run("discard", "--versions", versions, "--current", current, "--", *names)


def left(runner: Runner) -> list[str]:
    return sorted(path.name for path in (runner.root / "versions").iterdir())


def test_those_that_are_named_go(runner: Runner) -> None:
    for name in ("f00d", "f00d-2", "beef"):
        build(runner, name)
    # What an earlier removal left that was cut off.
    build(runner, f"{REMOVED}f00d")
    done = discard(runner, "f00d", "gone")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left(runner) == ["beef", "f00d-2"]


def test_a_link_is_no_build(runner: Runner) -> None:
    other = build(runner, "beef").rename(runner.root / "elsewhere")
    (runner.root / "versions" / "f00d").symlink_to(other)
    assert discard(runner, "f00d").returncode == 0
    assert (other / BUILD).exists() and left(runner) == ["f00d"]


@pytest.mark.parametrize("how", ["command line", "memory"])
def test_one_that_runs_stays(runner: Runner, how: str) -> None:
    folder, script = build(runner, "f00d"), runner.root / "serve.py"
    mapped = f"import mmap; f = open({str(folder / 'lib.so')!r}, 'rb'); m = "
    mapped += "mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)"
    script.write_text(f"{mapped if how == 'memory' else ''}\n{CODE}\n")
    argv = [PYTHON if how == "memory" else str(folder / "bin/python"), str(script)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        done = discard(runner, "f00d")
        assert done.returncode == 0 and f"used by process {process.pid}" in done.stdout
        assert (folder / BUILD).exists()
        process.kill()
    assert discard(runner, "f00d").returncode == 0 and left(runner) == []


def test_a_model_that_is_read_stays(runner: Runner) -> None:
    """A server without mmap reads it; one that has it open may have it by name alone."""
    folder = runner.root / "gguf" / "f00d"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"x")
    (folder / PROOF).write_text("{}")
    argv = ["discard", "--versions", str(folder.parent), "--", "f00d"]
    with (folder / "model.gguf").open("rb"):
        assert "used by process" in runner.run(*argv).stdout and (folder / PROOF).exists()
    assert runner.run(*argv).returncode == 0 and not folder.exists()
