"""The libraries job: the server's own packages, from wheels, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.serve.libraries import whole
from llamafleet.protocol.job import LibrariesConfig, LibrariesInputs
from tests.onhost.runner import PYTHON, Runner
from tests.onhost.wheels import hash_option, write_wheel


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., tuple[int, Path, dict[str, Any]]]:
    runner, wheels = Runner(tmp_path), tmp_path / "wheels"
    wheels.mkdir()
    wheel = write_wheel(wheels, "uvicorn", "0.54.0", {"uvicorn/__init__.py": "x = 1\n"})
    config = LibrariesConfig(
        key="k1",
        inputs=LibrariesInputs(requirements="0" * 64, python="3.12"),
        python=PYTHON,
        pip=str(runner.pip),
        requirements=f"uvicorn==0.54.0 {hash_option(wheel)}\n",
        index_url=None,
        find_links=str(wheels),
        root=str(tmp_path / "serve" / "k1"),
    )

    def start(**changed: Any) -> tuple[int, Path, dict[str, Any]]:
        told = replace(config, **changed)
        (tmp_path / "serve").mkdir(exist_ok=True)
        folder = runner.job("libraries", "k1", asdict(told))
        done = runner.run(*runner.command(folder))
        stamp = json.loads((folder / "stamp.json").read_text())
        return done.returncode, Path(told.root), stamp

    return start


def test_they_are_installed_and_found_to_be_there_again(started: Any) -> None:
    code, root, stamp = started()
    assert (code, stamp["packages"]) == (0, ["uvicorn-0.54.0"])
    assert (root / "uvicorn" / "__init__.py").read_text() == "x = 1\n"
    assert whole(root)
    before = stamp["started"]
    assert started()[2]["started"] == before  # done already


@pytest.mark.long
def test_what_is_no_longer_whole_is_installed_anew(started: Any) -> None:
    _, root, stamp = started()
    before = stamp["started"]
    (root / "whole.json").unlink()
    code, _, stamp = started()
    assert code == 0
    assert stamp["started"] > before
    assert whole(root)


@pytest.mark.long
def test_a_wheel_of_another_hash_leaves_nothing_behind(started: Any) -> None:
    code, root, stamp = started(requirements=f"uvicorn==0.54.0 --hash=sha256:{'0' * 64}\n")
    assert code == 1
    assert not stamp["ok"]
    assert list(root.parent.iterdir()) == []


def test_a_half_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "uvicorn").mkdir()
    assert not whole(tmp_path)
