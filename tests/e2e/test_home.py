"""Scope user on this machine, in a home with a blank: one run at a time, one machine a home.

The index does not answer, so that a deployment ends at the build, within seconds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from llamafleet.layout import Layout
from tests.e2e.runs import PYINFRA, Run, environment, pyinfra, write_inventory

pytestmark = pytest.mark.e2e
SETTINGS = {
    "scope": "user",
    "accelerator": "cpu",
    "index_url": "http://127.0.0.1:9/simple/",
    "model": "synthetic:tiny-q4_0",
}


class Home:
    """A home of its own for each test."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path
        path.mkdir()
        self.layout = Layout.user(str(path))
        self.fleet = write_inventory(folder, {"@local": dict(SETTINGS)}, "homes")

    def run(self, deploy: str = "deploy.py") -> Run:
        return pyinfra(self.folder, "-y", self.fleet, deploy, limit=300, HOME=str(self.path))

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PYINFRA, "-y", self.fleet, "deploy.py"],
            cwd=self.folder,
            env=environment(self.folder, HOME=str(self.path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def files(self) -> list[str]:
        """All that is no folder, or a folder of llamafleet's."""
        found = [p for p in self.path.rglob("*") if not p.is_dir() or p.name == "llamafleet"]
        return sorted(str(p.relative_to(self.path)) for p in found)


@pytest.fixture
def home(folder: Path, tmp_path: Path) -> Home:
    return Home(folder, tmp_path / "a home")


def test_a_home_with_a_blank_is_deployed_to_and_left_bare(home: Home) -> None:
    run = home.run()
    assert "build failed in phase resolve" in run.output, run.output
    config = next(Path(home.layout.configs).iterdir())
    assert config.stat().st_mode & 0o777 == 0o600
    assert not Path(home.layout.deploy_lock).exists(), "given back by a run that failed"
    run = home.run("uninstall.py")
    assert run.returncode == 0 and home.files == [], run.output
    assert "No changes" in home.run("uninstall.py").output


def test_of_two_runs_at_once_one_gets_the_host(home: Home) -> None:
    runs = [home.start()]
    deadline = time.monotonic() + 120
    while not Path(home.layout.deploy_lock).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    runs.append(home.start())
    said = [run.communicate(timeout=300)[0] for run in runs]
    held = [text for text in said if re.search(r"lock: found .+? \(process \d+\) deploys", text)]
    assert len(held) == 1 and "Starting operation: Build" not in held[0], said
    assert sum("build failed in phase resolve" in text for text in said) == 1


def test_a_run_that_was_killed_is_taken_over_at_once(home: Home) -> None:
    run = home.start()
    deadline = time.monotonic() + 120
    while not Path(home.layout.deploy_lock).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert Path(home.layout.deploy_lock).exists()
    again = home.run()
    assert "lock: taken over, the run of" in again.output, again.output
    assert "has ended without giving it back" in again.output


def test_a_run_that_was_cut_off_anywhere_is_uninstalled(home: Home) -> None:
    """21 MB stayed, with "No changes", where it was cut off before the zipapp."""
    for wanted in (home.layout.prefix, f"{home.layout.pip}.partial", home.layout.configs):
        run = home.start()
        deadline = time.monotonic() + 120
        while not Path(wanted).exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        done = home.run("uninstall.py")
        assert done.returncode == 0 and home.files == [], (wanted, done.output)


def test_a_home_of_another_machine_is_refused_by_name(home: Home) -> None:
    state = Path(home.layout.state)
    state.mkdir(parents=True)
    (state / "machine-id").write_text("b" * 32 + "\n")
    run = home.run()
    assert run.returncode != 0 and "home: found" in run.output, run.output
    assert f"another machine ({'b' * 32})" in run.output
    assert not Path(home.layout.prefix).exists()
