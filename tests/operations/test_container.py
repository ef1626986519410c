"""The image that a host pulls: recorded where llamafleet pulled it, and there alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operations.container import bring_image

IMAGE = f"registry.lab/llama@sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("there", "pulls", "status", "recorded"),
    [(0, 0, 0, ""), (1, 0, 0, f"{IMAGE}\n"), (1, 125, 125, "")],
)
def test_an_image_is_recorded_where_it_was_pulled(
    tmp_path: Path, there: int, pulls: int, status: int, recorded: str
) -> None:
    podman, record = tmp_path / "podman", tmp_path / "images"
    podman.write_text(f"#!/bin/sh\ncase $1 in image) exit {there} ;; pull) exit {pulls} ;; esac\n")
    podman.chmod(0o755)
    run: Any = SimpleNamespace(
        plan=lambda: SimpleNamespace(container=SimpleNamespace(image=IMAGE)),
        layout=lambda: SimpleNamespace(images=str(record)),
    )
    (command,) = bring_image(run)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command.get_raw_value()], env=env, check=False)
    assert done.returncode == status
    assert (record.read_text() if record.exists() else "") == recorded
