"""What the catalogue of failures tells to type."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from llamafleet.protocol.diagnose import diagnose, signatures_from
from llamafleet.tables import failures
from llamafleet.tables.toolkits import toolkits

SPLIT = {"grep", "sudo", "nvidia-cuda-mps-control"}
"""What a command's output is given to."""
SIGNATURES = signatures_from(failures.rows())
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


def test_an_architecture_that_nvcc_does_not_know_tells_the_toolkit_that_does() -> None:
    known = sorted(toolkits(), key=lambda row: row.order)
    for sm in sorted(known[-1].sm - known[0].sm):
        first = next(row.version for row in known if sm in row.sm)
        said = f"nvcc fatal   : Unsupported gpu architecture 'compute_{sm}'"
        match = diagnose(SIGNATURES, said)
        assert match and first.removesuffix(".0") in match.cause
