"""Where a loaded model lies, by llama.cpp's log and by NVML."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.onhost.serve import proof

LOGS = Path(__file__).parents[1] / "data" / "logs"


def judged(name: str, layers: int, held: float | None = None, backend: str = "cuda") -> str:
    log = (LOGS / f"{name}.log").read_text(encoding="utf-8")
    return proof.judge(log, "cuda" if backend == "cuda" else "cpu", layers, lambda: held)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        *(("cuda-full", -1), ("cuda-full", 13), ("cuda-full", 99), ("cuda-two-gpus", -1)),
        *(("cuda-colon", -1), ("cuda-half", 6), ("cuda-half", 3), ("cuda-zero", 0)),
    ],
)
def test_a_model_that_lies_where_it_should_is_proven(name: str, layers: int) -> None:
    assert judged(name, layers) == ""


@pytest.mark.parametrize(
    ("name", "layers", "found"),
    [
        ("cuda-half", -1, "found layers on CPU 7, CUDA0 6; expected 13 on CUDA devices"),
        ("cuda-half", 7, "found layers on CPU 7, CUDA0 6; expected 7 on CUDA devices"),
        ("cuda-zero", -1, "found layers on CPU 13; expected 13"),
        ("cpu-160m", -1, "found layers on CPU 13; expected 13"),
        ("cuda-init-error", -1, "found no CUDA (no CUDA-capable device is detected)"),
    ],
)
def test_one_that_is_on_the_cpu_is_not_though_it_answers(
    name: str, layers: int, found: str
) -> None:
    problem = judged(name, layers)
    assert problem.startswith(found)
    assert "next: " in problem


def test_a_log_that_tells_nothing_proves_nothing() -> None:
    assert "expected all on CUDA devices" in proof.judge("", "cuda", -1, lambda: None)


def test_on_a_build_for_the_cpu_nothing_is_expected_of_a_gpu() -> None:
    assert judged("cpu-160m", -1, backend="cpu") == ""


def test_nvml_is_believed_where_it_sees_the_process() -> None:
    assert judged("cuda-full", -1, held=400.0) == ""
    assert "by NVML" in judged("cuda-full", -1, held=3.0)
