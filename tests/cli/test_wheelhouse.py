"""The commands that make and check a wheelhouse: what they print and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import run
from tests.test_settings import make_wheelhouse


def test_wheelhouse_check(tmp_path: Path) -> None:
    folder = make_wheelhouse(tmp_path / "w")
    result = run("wheelhouse", "check", folder)
    assert (result.output, result.exit_code) == (f"{folder}: 2 files, all as listed\n", 0)
    (folder / "a.whl").unlink()
    (folder / "c.whl").touch()
    result = run("wheelhouse", "check", folder)
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "a.whl is missing",
        "c.whl is not in manifest.json",
        f"Error: 2 problems; next: llamafleet wheelhouse build {folder}",
    ]


def test_wheelhouse_build_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    result = run("wheelhouse", "build", tmp_path)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: {tmp_path} is not empty and no wheelhouse: name another folder\n"
    )
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.usefixtures("frozen_tables")
def test_wheelhouse_build_names_the_toolkits_there_are(tmp_path: Path) -> None:
    result = run("wheelhouse", "build", tmp_path / "w", "--toolkit", "12.4")
    assert result.exit_code == 2
    assert result.output == (
        "Error: no pinned wheels of CUDA 12.4; toolkits that have some: "
        "13.0, 13.1, 13.2, 13.3, 13.4, 13.5\n"
    )
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("option", "value"), [("--python", "3.9"), ("--arch", "riscv64")])
def test_wheelhouse_build_refuses_what_has_no_wheels(
    option: str, value: str, tmp_path: Path
) -> None:
    result = run("wheelhouse", "build", tmp_path / "w", option, value)
    assert result.exit_code == 2
    assert value in result.output


@pytest.mark.parametrize("manifest", ["[" * 100_000, '{"version": 9}'])
def test_a_manifest_that_is_none_is_told(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    done = run("wheelhouse", "check", tmp_path)
    assert done.exit_code == 2
    assert "manifest.json is not" in done.stderr and "Traceback" not in done.stderr


def test_what_a_manifest_says_can_not_move_the_cursor(tmp_path: Path) -> None:
    house = make_wheelhouse(tmp_path / "house")
    manifest = json.loads((house / "manifest.json").read_text())
    manifest["files"]["\x1b[31mX"] = next(iter(manifest["files"].values()))
    (house / "manifest.json").write_text(json.dumps(manifest))
    done = run("wheelhouse", "check", house)
    assert "[31mX is missing" in done.stderr and "\x1b" not in done.stderr
