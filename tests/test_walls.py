"""The walls of the house: who may import whom, and what an import of the plans costs."""

from __future__ import annotations

import os
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
        ("llamafleet/history/words.py", "import click"),
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


PLANS = "import llamafleet.plans.make"
YARDSTICK = "import packaging.requirements, pydantic.main, yaml"
TIMES = 3
"""Of the yardstick's time: 0.3 s where that takes 0.1 s, of an idle core (measured: 0.2 s)."""
LIBRARIES = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}
MODULES = 300
"""Measured: 256, 124 of them the standard library's."""
CODE = "; import resource, sys; spent = resource.getrusage(resource.RUSAGE_SELF)"
PRINT = "; print(spent.ru_utime + spent.ru_stime, *sys.modules)"


class Imports:
    """Of the code below `root`, compiled before it is measured, whatever this process says."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = root
        self.env = os.environ | {"PYTHONPYCACHEPREFIX": str(cache)}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def measure(self, program: str) -> tuple[float, list[str]]:
        """(seconds of the processor's, modules)"""
        done = subprocess.run(
            [sys.executable, "-c", f"{program}{CODE}{PRINT}"],
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        spent, *modules = done.stdout.split()
        return float(spent), modules

    def faults(self, tries: int) -> list[str]:
        """What an import of the plans costs that it should not; of a busy core's time the best."""
        self.measure(YARDSTICK)  # Compiled now.
        _, modules = self.measure(PLANS)
        ours = {"llamafleet", "__main__", *LIBRARIES, *sys.stdlib_module_names}
        tops = {name.partition(".")[0] for name in modules if not name.startswith("_sysconfigdata")}
        found = [f"it imports {name}" for name in sorted(tops - ours)]
        if len(modules) > MODULES:
            found.append(f"{len(modules)} modules")
        plans: list[float] = []
        other: list[float] = []
        while not plans or (min(plans) > TIMES * min(other) and len(plans) < tries):
            plans.append(self.measure(PLANS)[0])
            other.append(self.measure(YARDSTICK)[0])
        if min(plans) > TIMES * min(other):
            found.append(f"{min(plans)} s, where {YARDSTICK} takes {min(other)} s")
        return found


def test_the_plans_load_quickly_and_without_pyinfra(tmp_path: Path) -> None:
    assert Imports(ROOT, tmp_path).faults(tries=10) == []


def test_what_makes_them_slow_is_seen(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "llamafleet", tmp_path / "llamafleet")
    with (tmp_path / "llamafleet/plans/host.py").open("a") as file:
        file.write("\nimport jinja2, unittest, xml.dom.minidom\nsum(range(50_000_000))\n")
    said = "; ".join(Imports(tmp_path, tmp_path / "cache").faults(tries=2))
    assert "it imports jinja2" in said and " modules" in said and " takes " in said, said
