"""What the catalogue of failures tells to type."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from llamafleet.tables import failures

SPLIT = {"grep", "sudo", "nvidia-cuda-mps-control"}
"""What a command's output is given to."""
TYPED = [
    (row["id"], command)
    for row in failures.rows()
    for command in re.findall("`([^`]+)`", row["fix"])
    if " " in command
]


@pytest.mark.parametrize(("id", "command"), TYPED)
def test_what_is_typed_is_what_is_meant(id: str, command: str) -> None:
    # A pattern with | that is not quoted would run its second word.
    outside = re.sub(r"'[^']*'", "''", command)
    _, *others = outside.split("|")
    assert all(other.split()[0] in SPLIT for other in others)
    bash = shutil.which("bash") or ""
    assert subprocess.run([bash, "-nc", command], check=False).returncode == 0
