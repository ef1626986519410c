"""Compute capabilities -> CMAKE_CUDA_ARCHITECTURES."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.plans.toolkit.architectures import capabilities_of, cuda_architectures
from llamafleet.settings import Settings
from tests.plans.hosts import GPU_HOST, build_of, gpu, only_problem, plan


@pytest.mark.parametrize(
    ("capabilities", "architectures"),
    [
        (["8.9"], "89"),
        (["12.0", "8.6", "8.9", "8.6"], "86;89;120"),
        (["10.0", "9.0", "7.5"], "75;90;100"),
    ],
)
def test_numbers(capabilities: list[str], architectures: str) -> None:
    assert cuda_architectures(capabilities) == architectures


@pytest.mark.parametrize("bad", ["native", "89", "8", "8.9.1", "", "8.x", "all", " 8.9"])
def test_malformed(bad: str) -> None:
    with pytest.raises(ValueError, match="expected major"):
        cuda_architectures([bad])


def test_none_at_all() -> None:
    with pytest.raises(ValueError, match="no compute capability"):
        cuda_architectures([])


def test_a_mixed_host_gets_all_of_its_gpus() -> None:
    host = replace(GPU_HOST, gpus=(gpu("12.0"), gpu("8.9", index=1), gpu("8.9", index=2)))
    assert capabilities_of(host, Settings()) == ("8.9", "12.0")
    assert "-DCMAKE_CUDA_ARCHITECTURES=89;120" in build_of(host).config.cmake_args


def test_the_settings_win() -> None:
    assert capabilities_of(GPU_HOST, Settings(compute_capabilities=("9.0", "8.0"))) == (
        "8.0",
        "9.0",
    )


def test_a_driver_that_does_not_tell_is_a_problem_with_a_hint() -> None:
    silent = replace(GPU_HOST, gpus=(gpu(None),))
    problem = only_problem(plan(silent))
    assert problem.check == "compute_capabilities"
    assert "unverified table: 8.9" in problem.found and "8.9" in problem.next
    unknown = replace(silent, gpus=(replace(gpu(None), name="NVIDIA X"),))
    assert "unverified" not in only_problem(plan(unknown)).found
    assert build_of(silent, compute_capabilities=("8.9",)).inputs.compute_capabilities == ("8.9",)


def test_a_malformed_one_from_the_driver_is_a_problem() -> None:
    problem = only_problem(plan(replace(GPU_HOST, gpus=(gpu("N/A"),))))
    assert problem.check == "compute_capabilities" and "'N/A'" in problem.found


@pytest.mark.parametrize("value", ["native", "NATIVE", "89;native"])
def test_never_native(value: str) -> None:
    problem = only_problem(plan(cmake_options={"CMAKE_CUDA_ARCHITECTURES": value}))
    assert problem.check == "cmake_options" and "native" in problem.found
