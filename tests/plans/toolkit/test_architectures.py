"""Compute capabilities -> CMAKE_CUDA_ARCHITECTURES."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.toolkit.architectures import capabilities_of, cuda_architectures
from llamafleet.settings import Settings
from tests.plans.hosts import GPU_HOST, build_of, gpu, only_problem, plan, toolkit


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


def silent(name: str = "NVIDIA GeForce RTX 4090") -> HostSnapshot:
    """Its driver tells no capability."""
    untold = replace(GPU_HOST, gpus=(replace(gpu(None), name=name),))
    return replace(untold, toolkits=(toolkit("13.0"),))


def test_a_driver_that_does_not_tell_is_a_problem_with_a_hint() -> None:
    problem = only_problem(plan(silent("NVIDIA GeForce RTX 5090")))
    assert problem.check == "compute_capabilities"
    assert "unverified table: 12.0" in problem.found and "compute_capabilities" in problem.next
    assert "unverified" not in only_problem(plan(silent("NVIDIA X"))).found


def test_where_it_does_not_tell_the_guide_s_list_is_built_and_that_is_said() -> None:
    """For a card that the table has among them; the verification then asks the GPU itself."""
    made = plan(silent())
    build = made.build
    assert build and "-DCMAKE_CUDA_ARCHITECTURES=75;80;86;89" in build.config.cmake_args
    (note,) = build.config.notes
    assert note in made.notes and "does not tell the compute capability" in note
    one = build_of(silent(), compute_capabilities=("8.9",))
    assert one.inputs.compute_capabilities == ("8.9",) and one.config.notes == ()
    told = build_of(replace(silent(), gpus=(gpu("8.9"),)))
    assert told.inputs.compute_capabilities == ("8.9",) and told.config.notes == ()


def test_a_malformed_one_from_the_driver_is_a_problem() -> None:
    problem = only_problem(plan(replace(GPU_HOST, gpus=(gpu("N/A"),))))
    assert problem.check == "compute_capabilities" and "'N/A'" in problem.found


@pytest.mark.parametrize("value", ["native", "NATIVE", "89;native"])
def test_never_native(value: str) -> None:
    problem = only_problem(plan(cmake_options={"CMAKE_CUDA_ARCHITECTURES": value}))
    assert problem.check == "cmake_options" and "native" in problem.found
