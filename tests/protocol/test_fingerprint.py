"""The key of a build: it changes for what changes the code, and for nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Tool
from llamafleet.protocol.fingerprint import explain_difference, fingerprint
from tests.plans.hosts import CPU_HOST, GPU_HOST, build_of, driver, gcc, gpu, toolkit

BOTH = replace(GPU_HOST, toolkits=(toolkit("12.8"), toolkit("13.0")), compilers=gcc(12, 13))
BASE = build_of(BOTH)


def test_the_key_is_stable_and_does_not_depend_on_order() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})
    assert len(BASE.fingerprint) == 16 and int(BASE.fingerprint, 16)
    assert build_of(BOTH).fingerprint == BASE.fingerprint
    # A change of this value rebuilds every host of every fleet.
    assert fingerprint({"backend": "cpu"}) == "0f70f9a96d7c3179"


CODE: dict[str, tuple[HostSnapshot, dict[str, Any], str]] = {
    "llama_version": (BOTH, {"llama_version": "0.3.35"}, "llama_version"),
    "llama_sha256": (BOTH, {"llama_sha256": "0" * 64}, "llama_sha256"),
    "cmake option": (BOTH, {"cmake_options": {"LLAVA_BUILD": "ON"}}, "cmake_options"),
    "forced": (BOTH, {"compiler_forced": True}, "cmake_options"),
    "toolkit": (BOTH, {"toolkit_version": "12.8"}, "toolkit"),
    "toolkit's place": (
        replace(BOTH, toolkits=(toolkit("13.0", "/opt/cuda"),)),
        {},
        "cmake_options",
    ),
    "capability": (replace(BOTH, gpus=(gpu("9.0"),)), {}, "compute_capabilities"),
    "another capability": (
        replace(BOTH, gpus=(gpu("8.9"), gpu("9.0", index=1))),
        {},
        "compute_capabilities",
    ),
    "compiler": (replace(BOTH, compilers=gcc(12)), {}, "compiler"),
    "unsupported compiler": (BOTH, {"allow_unsupported_compiler": True}, "nvcc_append_flags"),
    "machine": (replace(BOTH, arch="aarch64"), {}, "arch"),
    "cpu": (replace(BOTH, cpu_flags=("avx2", "avx512f")), {}, "cpu_flags"),
    "glibc": (replace(BOTH, glibc="2.39"), {}, "glibc"),
    "backend": (BOTH, {"accelerator": "cpu"}, "backend"),
}


@pytest.mark.parametrize("what", CODE)
def test_it_changes_with(what: str) -> None:
    host, settings, name = CODE[what]
    changed = build_of(host, **settings)
    assert changed.fingerprint != BASE.fingerprint
    assert f"{name} " in explain_difference(asdict(BASE.inputs), asdict(changed.inputs))


SAME: dict[str, tuple[HostSnapshot, dict[str, Any]]] = {
    "driver": (replace(BOTH, driver=driver(smi="580.200.01", module=None)), {}),
    "newer driver, same toolkits": (replace(BOTH, driver=driver("590")), {}),
    "GPUs of the same kind": (replace(BOTH, gpus=(gpu("8.9"), gpu("8.9", index=1))), {}),
    "VRAM": (replace(BOTH, gpus=(gpu("8.9", vram_mib=6000),)), {}),
    "memory": (replace(BOTH, memory_available_mib=1), {}),
    "jobs": (BOTH, {"jobs": 1}),
    "benchmark": (BOTH, {"bench_gen": 64, "context": 512}),
    "order of cpu flags": (replace(BOTH, cpu_flags=("fma", "avx2")), {}),
    "minor version of gcc": (
        replace(BOTH, compilers=(replace(gcc(13)[0], version="13.3.1"),)),
        {},
    ),
    "path of gcc": (replace(BOTH, compilers=(replace(gcc(13)[0], path="/usr/bin/g++"),)), {}),
    "python": (replace(BOTH, pythons=(Tool("/usr/bin/python3.12", "3.12.1"),)), {}),
    "kernel": (replace(BOTH, kernel="6.12"), {}),
}


@pytest.mark.parametrize("what", SAME)
def test_it_does_not_change_with(what: str) -> None:
    host, settings = SAME[what]
    assert build_of(host, **settings).inputs == BASE.inputs


def test_without_native_the_cpu_flags_do_not_count() -> None:
    off = {"cmake_options": {"GGML_NATIVE": "OFF"}}
    other = replace(BOTH, cpu_flags=("sse2",))
    assert build_of(BOTH, **off).fingerprint == build_of(other, **off).fingerprint
    assert build_of(BOTH, **off).inputs.cpu_flags is None


def test_the_cpu_build_knows_nothing_of_cuda() -> None:
    inputs = build_of(CPU_HOST, accelerator="auto").inputs
    assert inputs.backend == "cpu" and inputs.toolkit is None
    assert inputs.compute_capabilities == () and inputs.nvcc_append_flags is None
    assert not any("CUDA_" in option for option in inputs.cmake_options)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ({"v": "1"}, {"v": "1"}, ""),
        ({"v": "0.3.35"}, {"v": "0.3.36"}, "v 0.3.35 -> 0.3.36"),
        ({"v": None}, {"v": "13.0"}, "v none -> 13.0"),
        ({}, {"v": "1"}, "v none -> 1"),
        ({"v": "1"}, {}, "v 1 -> none"),
        ({"c": ["8.9"]}, {"c": ["8.9", "12.0"]}, "c +12.0"),
        ({"c": ["A=1", "B=1"]}, {"c": ["A=2", "B=1"]}, "c -A=1 +A=2"),
        ({"c": None}, {"c": ["8.9"]}, 'c none -> ["8.9"]'),
        ({"c": [1, 2]}, {"c": [2, 1]}, "c in another order"),
        # One side read from JSON, the other not.
        ({"c": ["8.9"]}, {"c": ("8.9",)}, ""),
        ({"c": ("8.9",)}, {"c": ["8.9", "12.0"]}, "c +12.0"),
        ({"a": 1, "b": {"x": 1}}, {"a": 2, "b": {"x": 2}}, 'a 1 -> 2; b {"x": 1} -> {"x": 2}'),
    ],
)
def test_the_difference_in_words(old: dict[str, Any], new: dict[str, Any], text: str) -> None:
    assert explain_difference(old, new) == text


def test_inputs_of_every_kind_have_their_key() -> None:
    """By sha256sum of {"gpus":["8.9","9.0"],"name":"\\u00e4","toolkit":null,"version":"0.3.36"}."""
    inputs = {"version": "0.3.36", "gpus": ["8.9", "9.0"], "toolkit": None, "name": "ä"}
    assert fingerprint(inputs) == "960cce38e98352f9"


def test_a_difference_is_told_in_one_order() -> None:
    old, new = {"options": {"b": 1, "a": 2}}, {"options": {"c": 3, "a": 2}}
    assert explain_difference(old, new) == 'options {"a": 2, "b": 1} -> {"a": 2, "c": 3}'
