"""The wheel of this project: what is no code must be in it as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALL = "import llamafleet.cli.main as it; print(it.__file__, flush=True); it.main()"
COMMANDS = (
    ("report", "--example", "--format", "html", "-o", "example.html"),  # templates, example, bands
    ("history", "--results", "."),  # migrations
    ("wheelhouse", "--help"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel") / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, ROOT],
        check=True,
    )
    return folder


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_finds_in_the_wheel_what_it_reads(
    installed: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(str(installed)), done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
