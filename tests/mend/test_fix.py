"""`llamafleet fix` as a user calls it, in a real environment; build and verification are told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result as Ended

from llamafleet.facts.environment import NoAnswer
from llamafleet.facts.host import HostSnapshot, Tool
from llamafleet.mend import machine as of_machine
from llamafleet.mend import mending
from llamafleet.mend.change import Change
from llamafleet.mend.work import Failed, Worker
from llamafleet.protocol.job import Stamp
from llamafleet.protocol.result import Result, failed
from tests.bench.fix import Bench
from tests.cli import run
from tests.history import RESULT
from tests.hosts.recorded import load
from tests.onhost.wheels import write_wheel

ROOT = Path(__file__).resolve().parents[2]
CPU = {"llama_cpp/__init__.py": "", "llama_cpp/lib/libllama.so": "x"}
BASE = getattr(sys, "_base_executable", sys.executable)
GOOD = replace(RESULT, verdict="CPU ONLY", gpus=())
BAD = replace(
    GOOD, verdict="FAIL", checks=(failed("offload", "0 of 33 layers", "33 of 33", "build again"),)
)


def recorded(name: str) -> HostSnapshot:
    """A recorded host that has this very Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    return replace(
        load(name).snapshot,
        pythons=(Tool(str(Path(BASE).resolve()), version),),
        user="ada",
        uid=1000,
    )


class Here:
    """A user's machine with one environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, template: Path) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.env = folder / "env"
        shutil.copytree(template, self.env, symlinks=True)
        self.done: list[str] = []
        self.results: list[Result | Failed] = []
        self.wheel = write_wheel(folder, "llama-cpp-python", "0.3.36", {**CPU, "llama_cpp/new": ""})
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv("HOME", str(folder))
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "CMAKE_ARGS"):
            monkeypatch.delenv(name, raising=False)
        self.on("cpu-debian12")
        monkeypatch.setattr(Worker, "job", self._job)
        monkeypatch.setattr(Worker, "pack", lambda *_: self.wheel)
        monkeypatch.setattr(Worker, "needs", lambda *_: ("numpy", "jinja2"))
        monkeypatch.setattr(mending, "verify_build", lambda *_: self._result("new build"))
        monkeypatch.setattr(mending, "verify_in_place", lambda *_: self._result("in place"))

    def on(self, name: str, **changes: Any) -> None:
        """On that recorded machine."""
        found = replace(recorded(name), **changes)
        self.patch.setattr(of_machine, "read_machine", lambda *_: found)

    def _job(self, *told: Any) -> Stamp:
        self.done.append(told[-2].kind)
        return Stamp(kind="build", key="x", ok=True)

    def _result(self, what: str) -> Result:
        self.done.append(what)
        told = self.results.pop(0) if self.results else GOOD
        if isinstance(told, Failed):
            raise told
        return told

    def fix(self, *words: str) -> Ended:
        return run("fix", "--venv", self.env, *words)

    @property
    def site(self) -> Path:
        (site,) = self.env.glob("lib/python*/site-packages")
        return site

    def files(self) -> set[str]:
        found = [p for p in self.site.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        return {str(path.relative_to(self.site)) for path in found}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    subprocess.run([BASE, "-m", "venv", "--without-pip", folder / "env"], check=True)
    wheels = [write_wheel(folder, "llama-cpp-python", "0.3.16", CPU)]
    for name in ("diskcache", "jinja2", "markupsafe", "numpy", "typing-extensions"):
        wheels.append(write_wheel(folder, name, "9.0", {f"{name.replace('-', '_')}.py": ""}))
    argv = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python"), "install"]
    subprocess.run([*argv, "--no-index", "--no-deps", *wheels], check=True, capture_output=True)
    return folder / "env"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Path) -> Here:
    return Here(tmp_path, monkeypatch, template)


def test_a_cpu_build_without_a_gpu_is_right(here: Here) -> None:
    before = here.files()
    ended = here.fix("--check")
    assert ended.exit_code == 0, ended.output
    assert "there is no NVIDIA GPU here (CPU ONLY)" in ended.output
    assert here.done == ["in place"] and here.files() == before


def test_a_cpu_build_beside_a_gpu_is_planned(here: Here) -> None:
    here.on("h100-ubuntu24")
    before = here.files()
    ended = here.fix()
    assert ended.exit_code == 1
    assert "WRONG cpu_only: " in ended.output and "from source for the GPU" in ended.output
    assert "-DCMAKE_CUDA_ARCHITECTURES=90" in ended.output
    assert ended.output.strip().endswith("next: the same command with --yes")
    assert here.done == [] and here.files() == before


def test_an_interpreter_behind_a_link_is_the_one_of_the_snapshot(here: Here) -> None:
    """As Debian's /usr/bin/python3 is python3.11."""
    (here.folder / "python3").symlink_to(Path(BASE).resolve())
    ended = run("fix", "--python", here.folder / "python3")
    assert "python: found" not in ended.output and ended.exit_code in (0, 1), ended.output


def test_what_is_found_as_json(here: Here) -> None:
    here.on("h100-ubuntu24")
    here.patch.setenv("CMAKE_ARGS", "-DLLAMA_CUBLAS=on")
    ended = here.fix("--check", "--json")
    told = json.loads(ended.stdout)
    assert (ended.exit_code, told["right"]) == (1, False)
    assert [finding["kind"] for finding in told["findings"]] == ["cpu_only", "variables"]
    assert told["mending"]["needed"] and told["mending"]["old"] == "0.3.16"


def test_a_broken_one_is_mended(here: Here) -> None:
    (here.site / "llama_cpp/lib/libllama.so").unlink()
    ended = here.fix("--yes")
    assert ended.exit_code == 0, ended.output
    assert here.done == ["build", "new build", "in place"]
    assert "0.3.16 -> 0.3.36" in ended.output and "right: llama-cpp-python 0.3.36" in ended.output
    assert "llama_cpp/new" in here.files()
    assert "numpy-9.0.dist-info/RECORD" in here.files()


@pytest.mark.parametrize("how", ["red", pytest.param("no result", marks=pytest.mark.long)])
def test_one_that_is_no_better_in_place_goes_again(here: Here, how: str) -> None:
    (here.site / "llama_cpp/lib/libllama.so").unlink()
    before = here.files()
    here.results = [GOOD, BAD if how == "red" else Failed("verification: found no result")]
    ended = here.fix("--yes")
    assert ended.exit_code == 1 and "the old one is back" in ended.output
    assert here.files() == before


def test_a_build_that_is_not_good_changes_nothing(here: Here) -> None:
    (here.site / "llama_cpp/lib/libllama.so").unlink()
    before = here.files()
    here.results = [BAD]
    ended = here.fix("--yes", "--json")
    assert ended.exit_code == 1 and "nothing was changed: offload: found 0 of 33" in ended.output
    told = json.loads(ended.stdout)
    assert not told["right"] and told["failure"].startswith("the new build is not good")
    assert here.files() == before and here.done == ["build", "new build"]


def cut_off(here: Here) -> None:
    """A mending that was killed when the new one was there and not proven."""
    (here.site / "llama_cpp/lib/libllama.so").unlink()
    with here.patch.context() as killed:
        killed.setattr(Change, "restore", lambda *_: None)
        here.results = [GOOD, BAD]
        assert here.fix("--yes").exit_code == 1


@pytest.mark.long
@pytest.mark.parametrize("half", ["a file of the old one", "no record", "verification"])
def test_one_that_was_cut_off_is_seen_and_taken_back(here: Here, half: str) -> None:
    cut_off(here)
    if half == "no record":
        (here.site / "llama_cpp_python-0.3.36.dist-info/RECORD").unlink()
    elif half == "verification":
        here.results = [BAD]
    else:
        (here.site / "llama_cpp/__init__.py").write_text("# of 0.3.16")
    ended = here.fix("--check")
    assert ended.exit_code == 1 and "interrupted: a change of" in ended.output
    assert "next: llamafleet fix --yes, which takes it back first" in ended.output
    here.results = [BAD] if half == "verification" else []
    ended = here.fix("--yes")
    assert ended.exit_code == 0, ended.output
    assert "0.3.16 -> 0.3.36" in ended.output and "The old one is back" in ended.output


def test_one_that_was_cut_off_and_mended_by_hand_is_judged_as_it_is(here: Here) -> None:
    """And what was mended by hand is never taken back."""
    cut_off(here)
    files = here.files()
    ended = here.fix("--check")
    assert ended.exit_code == 0, ended.output
    assert "note  interrupted: a change of" in ended.output
    assert "What is there now is whole, and judged as it is" in ended.output
    for said in ("its old files are removed", ""):
        ended = here.fix("--yes")
        assert ended.exit_code == 0 and said in ended.output, ended.output
        assert here.files() == files
    assert "interrupted" not in ended.output


def test_root_does_nothing_in_another_users_environment(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    here.env.chmod(here.env.stat().st_mode | stat.S_IWOTH)
    ended = here.fix("--check")
    assert ended.exit_code == 2 and "as another account can write there" in ended.output


@pytest.mark.parametrize("step", ["take", "begin", "install"])
def test_a_full_disk_is_no_bad_input(here: Here, step: str) -> None:
    (here.site / "llama_cpp/lib/libllama.so").unlink()
    before = here.files()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    here.patch.setattr(Change, step, full)
    ended = here.fix("--yes", "--json")
    told = json.loads(ended.stdout)
    assert ended.exit_code == 1 and "No space left" in told["failure"]
    words = "the old one is back" if step == "install" else "nothing was changed"
    assert words in told["failure"] and here.files() == before


def test_an_interpreter_that_is_gone_after_the_change_is_no_bad_input(here: Here) -> None:
    (here.site / "llama_cpp/lib/libllama.so").unlink()
    before = here.files()

    def no_answer(*_: object) -> None:
        raise NoAnswer("python: found no Python that runs")

    here.patch.setattr(mending, "describe", no_answer)
    ended = here.fix("--yes")
    assert ended.exit_code == 1 and "the old one is back" in ended.output
    assert here.files() == before


def test_json_also_where_a_journal_cant_be_read(here: Here) -> None:
    here.patch.setattr(Change, "unfinished", lambda *_: (_ for _ in ()).throw(Failed("no journal")))
    ended = here.fix("--check", "--json")
    told = json.loads(ended.stdout)
    assert ended.exit_code == 1 and not told["right"] and told["failure"] == "no journal"
    assert told["findings"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--yes", "--check"), "found --yes and --check"),
        (("--python", "python3"), "found --venv and --python"),
        (("--set", "scope=system"), "--set scope: the environment decides it"),
        (("--set", "jobs=-1"), "jobs: found -1"),
        (("--set", "no_such=1"), "no_such: found an unknown key"),
    ],
)
def test_bad_input(here: Here, words: tuple[str, ...], said: str) -> None:
    ended = here.fix(*words)
    assert ended.exit_code == 2 and said in ended.output
    assert not (here.folder / ".local").exists() or here.done == []


def test_an_active_environment_that_is_gone(here: Here) -> None:
    """Not the python3 on PATH in its place."""
    here.patch.setenv("VIRTUAL_ENV", str(here.folder / "gone env"))
    ended = run("fix", "--check")
    assert ended.exit_code == 2 and "$VIRTUAL_ENV: found no bin/python" in ended.output


def test_others_are_named_so_that_they_can_be_typed(here: Here) -> None:
    other = here.folder / "other env/bin/python"
    other.parent.mkdir(parents=True)
    other.touch(0o755)
    here.patch.setenv("VIRTUAL_ENV", str(here.env))
    here.patch.setenv("CONDA_PREFIX", str(other.parent.parent))
    ended = run("fix", "--check")
    assert f"next: llamafleet fix --python '{other}'" in ended.output


def test_a_version_that_is_not_known_is_looked_up(here: Here) -> None:
    """Before anything is built: no archive is taken without its hash."""
    index = here.folder / "simple/llama-cpp-python"
    index.mkdir(parents=True)
    (index / "index.html").write_text(f'<a href="llama_cpp_python-9.9.9.tar.gz#sha256={"a" * 64}">')
    words = ["--check", "--set", f"index_url=file://{index.parent}", "--set"]
    ended = here.fix(*words, "llama_version=9.9.9")
    assert ended.exit_code == 0 and f"9.9.9: sha256 {'a' * 64} (looked up at " in ended.output
    ended = here.fix(*words, "llama_version=9.9.8")
    assert ended.exit_code == 2 and "llama_sha256: found none of 9.9.8" in ended.output


PROVEN = os.environ.get("LLAMAFLEET_TEST_PYTHON")
SYSTEM = "/usr/bin/python3"
"""One that every user can run; the tests' own may lie in root's home."""


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[Path]:
    """A folder that no other account can write, above either, and that all can enter."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="llamafleet-test-", dir="/opt"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def real_environment(folder: Path) -> Path:
    """With the files of the proven build, and what it needs from the index."""
    assert PROVEN is not None
    pack = [PROVEN, "-m", "llamafleet.onhost", "pack", "--prefix", str(Path(PROVEN).parents[1])]
    made = subprocess.run(
        [*pack, "--to", folder / "wheel"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    wheel = Path(made.stdout.strip().rpartition("\n")[2])
    return Bench(SYSTEM, wheel, "", [], folder).make("env")


def by_uvx(folder: Path, *words: str | Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, the answer as JSON, and what was said beside it."""
    # HOME is another one, so that nothing of this machine's is used or left.
    env = {**os.environ, "HOME": str(folder)}
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH"):
        env.pop(name, None)
    command = ["uvx", "--from", ROOT, "llamafleet", "fix", "--json", *words]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.mark.long
@pytest.mark.skipif(not PROVEN, reason="needs LLAMAFLEET_TEST_PYTHON")
@pytest.mark.skipif(not shutil.which("uv"), reason="no uv here")
@pytest.mark.skipif(not Path(SYSTEM).exists(), reason=f"no {SYSTEM} here")
def test_a_real_environment_by_uvx(reachable: Path) -> None:
    """All that it needs is in the package: snapshot, tables, code for hosts, pip."""
    env = real_environment(reachable)
    code, told, said = by_uvx(reachable, "--check", "--venv", env, "--set", "accelerator=auto")
    assert (code, told.get("right")) == (0, True), (told, said)
    assert told["result"]["verdict"] in ("PASS", "CPU ONLY")
    assert {"numpy", "jinja2", "markupsafe"} <= set(told["copies"][0]["requires"])
    next(env.rglob("libggml-cpu*.so")).unlink()
    code, told, _ = by_uvx(reachable, "--check", "--venv", env)
    assert code == 1 and "incomplete" in [finding["kind"] for finding in told["findings"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--venv", "/no/such"), "found no bin/python in it"),
        (("--python", "/no/such"), "found no program"),
        (("--python", "/bin/false"), "found no Python that runs"),
    ],
)
def test_no_environment(words: tuple[str, ...], said: str) -> None:
    ended = run("fix", *words)
    assert ended.exit_code == 2 and said in ended.output
