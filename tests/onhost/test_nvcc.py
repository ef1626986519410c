"""What nvcc tells of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafleet.onhost import nvcc

# Of the wheel nvidia-cuda-nvcc 13.2.51.
ANSWER = """\
nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2026 NVIDIA Corporation
Built on Mon_Mar_02_09:52:23_PM_PST_2026
Cuda compilation tools, release 13.2, V13.2.51
Build cuda_13.2.r13.2/compiler.37434383_0
"""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ANSWER, ("13.2", "13.2.51")),
        ("Cuda compilation tools, release 13.2, V13.2\n", ("13.2", "")),
        ("Cuda compilation tools, release 13.2\n", ("13.2", "")),
        ("release 99999.1, V1", ("", "")),
        ("", ("", "")),
    ],
)
def test_version_and_build(answer: str, told: tuple[str, str]) -> None:
    assert nvcc.told(answer) == told


def program(folder: Path, text: str) -> str:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_one_that_answers_is_believed(tmp_path: Path) -> None:
    path = program(tmp_path, f"cat <<'END'\n{ANSWER}END")
    assert nvcc.asked(path, os.environ) == ("13.2", "13.2.51")


@pytest.mark.parametrize("text", ["exit 1", f"cat <<'END'\n{ANSWER}END\nexit 3", "kill -9 $$"])
def test_one_that_fails_tells_nothing(tmp_path: Path, text: str) -> None:
    assert nvcc.asked(program(tmp_path, text), os.environ) == ("", "")
    assert nvcc.asked(str(tmp_path / "none"), os.environ) == ("", "")


def test_outside_the_zipapp_nothing_is_known_against_any() -> None:
    assert nvcc.miscompiles("13.2.78", "13.2", ["12.0"]) == ""
