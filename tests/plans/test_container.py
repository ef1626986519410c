"""The image is planned by the rules and pins of the hosts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.container import ImagePlan, capabilities_of, plan_image
from llamafleet.plans.plan import Problem
from llamafleet.plans.requirements import host_requirements, toolkit_requirements
from llamafleet.protocol.container import ContainerConfig
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import WheelsConfig
from llamafleet.settings import Settings
from llamafleet.tables import overlaid
from llamafleet.tables.releases import release
from tests.frozen_tables import FROZEN
from tests.plans.hosts import CPU_HOST, GPU_HOST, LAYOUT, gcc, plan

ARGUMENTS: dict[str, Any] = {
    "accelerator": "cuda",
    "toolkit_method": "wheels",
    "toolkit_version": "13.0",
    "compute_capabilities": ["8.9"],
    "cpu_baseline": "x86-64-v3",
}
"""As `llamafleet image` makes them of the defaults of Dockerfile.rtx4090."""


@overlaid(FROZEN)
def image_of(
    snapshot: HostSnapshot = CPU_HOST, without: str = "", **settings: Any
) -> ImagePlan | Problem:
    data = {name: value for name, value in ARGUMENTS.items() if name != without} | settings
    return plan_image(Settings(**data), snapshot, LAYOUT)


def made(*args: Any, **settings: Any) -> ImagePlan:
    image = image_of(*args, **settings)
    assert isinstance(image, ImagePlan), image
    return image


def test_the_image_is_the_build_of_a_4090_host() -> None:
    """Where image and host are of one distribution their machine code is the same."""
    host = plan(replace(GPU_HOST, cpu_flags=V3), **ARGUMENTS)
    image = made()
    assert host.build and host.toolkit and image.toolkit
    assert image.build.inputs == host.build.inputs
    assert image.build.fingerprint == host.build.fingerprint
    assert image.build.config == host.build.config
    assert image.toolkit.config == host.toolkit.config


V3 = (
    *("pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm", "avx", "avx2", "bmi1"),
    *("bmi2", "f16c", "fma", "abm", "movbe", "xsave"),
)
"""What an x86-64-v3 has in /proc/cpuinfo."""


def test_its_pins_are_those_of_the_tables() -> None:
    image = made()
    config, row = image.build.config, release(Settings().llama_version)
    assert row and image.toolkit and isinstance(image.toolkit.config, WheelsConfig)
    assert config.llama_requirement.endswith(row.sha256)
    assert config.requirements == host_requirements()
    assert image.toolkit.config.requirements == toolkit_requirements("13.0")
    assert "-DCMAKE_CUDA_ARCHITECTURES=89" in config.cmake_args
    assert "-DGGML_CUDA=on" in config.cmake_args and "-DGGML_NATIVE=off" in config.cmake_args


def test_the_machine_that_builds_it_leaves_no_trace() -> None:
    """Neither its CPU nor its driver: an image is for others."""
    here = made()
    there = made(replace(GPU_HOST, cpu_flags=("sse4_2",)))
    assert here.build.inputs == there.build.inputs
    assert here.container == there.container


def test_an_image_for_the_cpu() -> None:
    image = made(without="compute_capabilities", accelerator="cpu")
    assert image.toolkit is None and image.build.inputs.backend == "cpu"
    assert image.container.verify.allow_cpu_only


def test_an_image_with_cuda_never_allows_the_cpu_alone() -> None:
    verify = made().container.verify
    assert not verify.allow_cpu_only and verify.backend == "cuda"
    assert verify.inputs.driver is None and verify.inputs.gpus == ()


def test_what_the_entry_reads_is_what_was_planned() -> None:
    container = made().container
    assert decode(ContainerConfig, json.loads(json.dumps(asdict(container)))) == container
    assert container.serve.key, "another address than loopback, and no key"


@pytest.mark.parametrize(
    ("missing", "word"),
    [("toolkit_version", "CUDA_VERSION not set"), ("compute_capabilities", "ARCHITECTURES not")],
)
def test_what_no_gpu_can_tell_must_be_said(missing: str, word: str) -> None:
    problem = image_of(without=missing)
    assert isinstance(problem, Problem) and word in problem.found
    assert "--build-arg" in problem.next


@pytest.mark.parametrize(
    ("host", "settings", "word"),
    [
        (CPU_HOST, {"compute_capabilities": ["5.0"]}, "compute capability 5.0"),
        (replace(CPU_HOST, compilers=gcc(99)), {}, "gcc up to"),
        (replace(CPU_HOST, pythons=()), {}, "no Python"),
        (CPU_HOST, {"toolkit_version": "12.4"}, "12.4"),
    ],
)
def test_what_can_not_be_built_is_said_before_it_is_tried(
    host: HostSnapshot, settings: dict[str, Any], word: str
) -> None:
    problem = image_of(host, **settings)
    assert isinstance(problem, Problem)
    assert word in f"{problem}", problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("89", ("8.9",)),
        ("89;86", ("8.6", "8.9")),
        ("86, 89 120", ("8.6", "8.9", "12.0")),
        ("", ()),
    ],
)
def test_architectures_as_cmake_writes_them(text: str, expected: tuple[str, ...]) -> None:
    assert capabilities_of(text) == expected


@pytest.mark.parametrize("text", ["native", "8.9", "89-real", "9", "all", "89;;x", "0089"])
def test_other_architectures_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected numbers as 89"):
        capabilities_of(text)
