"""The walls of the house: who may import whom, and what an import of the plans costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]


def test_nobody_imports_through_a_wall() -> None:
    done = subprocess.run(LINT, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_dead() -> None:
    vulture = Path(sys.executable).parent / "vulture"
    done = subprocess.run([vulture], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("llamafleet/protocol/job.py", "import llamafleet.settings"),
        ("llamafleet/onhost/diagnose.py", "import yaml"),
        ("llamafleet/onhost/build.py", "from llamafleet.received import received"),
        ("llamafleet/plans/host.py", "from llamafleet.facts.snapshot import render"),
        ("llamafleet/plans/verify.py", "import llamafleet.onhost.driver"),
        ("llamafleet/settings.py", "import llamafleet.inventory"),
        ("llamafleet/tables/__init__.py", "from llamafleet.layout import Layout"),
        ("llamafleet/history/store.py", "from llamafleet.plans.plan import Plan"),
        ("llamafleet/render.py", "from operations.run import here"),
    ],
)
def test_a_hole_in_a_wall_is_seen(tmp_path: Path, module: str, line: str) -> None:
    for name in ("llamafleet", "operations", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    file = tmp_path / module
    assert file.exists(), "name another module of that room"
    file.write_text(file.read_text() + f"\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path[0] = '.'; "
         "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Broken contracts" in done.stdout


def test_the_plans_load_quickly_and_without_pyinfra() -> None:
    """0.3 s of an idle core, by the process's own time; of a busy one's it takes the best."""
    program = (
        "import resource, sys; import llamafleet.plans.make; "
        "spent = resource.getrusage(resource.RUSAGE_SELF); "
        "print(spent.ru_utime + spent.ru_stime, *sys.modules)"
    )
    seconds: list[float] = []
    while len(seconds) < 20 and min(seconds, default=1.0) >= 0.3:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        spent, *modules = done.stdout.split()
        assert not {"pyinfra", "jinja2", "gevent", "paramiko", "click"} & set(modules)
        seconds.append(float(spent))
    assert min(seconds) < 0.3, seconds
