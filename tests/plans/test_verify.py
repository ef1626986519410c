"""When a host must be verified again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.plan import VerifyPlan
from llamafleet.protocol.result import Verdict
from llamafleet.received import Unreadable
from tests.history import gpu as row
from tests.plans.hosts import (
    CPU_HOST,
    GPU_HOST,
    LAYOUT,
    build_of,
    built,
    driver,
    gpu,
    plan,
    proven,
    toolkit,
)

BUILD = build_of(replace(GPU_HOST, toolkits=(toolkit("13.0"),)))
BUILT = replace(
    GPU_HOST,
    toolkits=(toolkit("13.0"),),
    jobs=(built(BUILD),),
    versions=(BUILD.fingerprint,),
    current=BUILD.fingerprint,
)


def verify(host: HostSnapshot = BUILT, **settings: Any) -> VerifyPlan:
    made = plan(host, **settings)
    assert made.verify is not None, made.problems
    return made.verify


FIRST = verify()
PROVEN = replace(BUILT, result=proven(FIRST))


def test_a_host_never_verified() -> None:
    assert FIRST.needed and "never verified" in FIRST.reason
    assert len(FIRST.key) == 16


def test_a_proven_host_is_not_verified_again() -> None:
    again = verify(PROVEN)
    assert not again.needed and again.key == FIRST.key


@pytest.mark.parametrize("verdict", ["FAIL", "CPU ONLY", "NOT VERIFIED"])
def test_any_other_verdict_is(verdict: Verdict) -> None:
    again = verify(replace(BUILT, result=proven(FIRST, verdict)))
    assert again.needed and str(verdict) in again.reason


def test_a_result_that_can_t_be_understood_proves_nothing() -> None:
    again = verify(replace(BUILT, result=Unreadable("verdict: found nothing")))
    assert again.needed and "verdict: found nothing" in again.reason


def test_a_verdict_that_does_not_speak_of_each_gpu_proves_nothing() -> None:
    """As one of version 1, of several GPUs together."""
    whole = proven(FIRST)
    unproven = replace(row(), uuid="GPU-a", verdict="NOT VERIFIED")
    again = verify(replace(BUILT, result=replace(whole, gpus=(unproven,))))
    assert again.needed and again.reason == "not verified by themselves: GPU-a"
    assert verify(replace(BUILT, result=replace(whole, gpus=()))).needed


CHANGES: dict[str, tuple[HostSnapshot, dict[str, Any], str]] = {
    "driver": (
        replace(PROVEN, driver=driver("590")),
        {},
        "driver 580.159.04 -> 590.54.03",
    ),
    "another card": (
        replace(PROVEN, gpus=(replace(gpu("8.9"), uuid="GPU-z"),)),
        {},
        "gpus -NVIDIA GeForce RTX 4090 GPU-a +NVIDIA GeForce RTX 4090 GPU-z",
    ),
    "model": (PROVEN, {"model": "/srv/m.gguf"}, "model synthetic:7b-q4_0 -> /srv/m.gguf"),
    "benchmark": (PROVEN, {"bench_gen": 64}, "bench "),
    "context": (PROVEN, {"context": 8192}, "context 4096 -> 8192"),
    "build": (PROVEN, {"cmake_options": {"LLAVA_BUILD": "ON"}}, "fingerprint "),
}


@pytest.mark.parametrize("what", CHANGES)
def test_it_is_verified_again_after_a_change_of(what: str) -> None:
    host, settings, reason = CHANGES[what]
    again = verify(host, **settings)
    assert again.needed and again.key != FIRST.key and reason in again.reason


def test_its_settings_lie_where_the_layout_says() -> None:
    config, build = FIRST.config, FIRST.config.inputs.fingerprint
    assert config.prefix == LAYOUT.version(build)
    assert config.stamp == f"{LAYOUT.job('build', build)}/stamp.json"
    assert (config.results, config.models) == (LAYOUT.results, LAYOUT.models)
    assert config.job == LAYOUT.job("verify", "run")
    assert (config.host, config.backend, config.toolkit) == ("lab-1", "cuda", "13.0")


def test_cpu_only_is_allowed_as_the_settings_say() -> None:
    assert not FIRST.config.allow_cpu_only
    assert verify(accelerator="auto").config.allow_cpu_only


def test_a_driver_update_rebuilds_nothing() -> None:
    made = plan(replace(PROVEN, driver=driver("590")))
    assert made.build is not None and made.build.action == "none"
    assert made.verify is not None and made.verify.needed


def test_a_library_that_is_built_again_is_verified_again() -> None:
    again = verify(replace(PROVEN, jobs=()))
    assert again.key == FIRST.key and again.needed and "build" in again.reason
    assert verify(replace(PROVEN, current=None)).needed


@pytest.mark.parametrize(
    ("vram", "model"),
    [
        ((24564,), "synthetic:7b-q4_0"),
        ((8000,), "synthetic:7b-q4_0"),
        ((7999,), "synthetic:1b-q4_0"),
        ((24564, 6144), "synthetic:1b-q4_0"),
    ],
)
def test_the_model_fits_the_smallest_gpu(vram: tuple[int, ...], model: str) -> None:
    gpus = tuple(gpu("8.9", vram_mib=v, index=i) for i, v in enumerate(vram))
    assert verify(replace(BUILT, gpus=gpus)).config.inputs.model == model


@pytest.mark.parametrize(("memory", "model"), [(128_000, "7b"), (4000, "1b")])
def test_a_gpu_that_does_not_tell_its_memory_shares_the_hosts(memory: int, model: str) -> None:
    host = replace(BUILT, gpus=(gpu("12.1", vram_mib=0),), memory_mib=memory)
    assert verify(host).config.inputs.model == f"synthetic:{model}-q4_0"


def test_an_instance_of_a_divided_gpu_gets_the_small_model() -> None:
    host = replace(BUILT, driver=replace(BUILT.driver, mig=True))
    assert verify(host).config.inputs.model == "synthetic:1b-q4_0"
    assert any("MIG is on" in note for note in plan(host).notes)
    assert not any("MIG" in note for note in plan(BUILT).notes)


def test_on_the_cpu_only_the_verdict_cpu_only_counts() -> None:
    build = build_of(CPU_HOST, accelerator="auto")
    host = replace(
        CPU_HOST,
        jobs=(built(build),),
        versions=(build.fingerprint,),
        current=build.fingerprint,
    )
    first = verify(host, accelerator="auto")
    assert first.config.inputs.model == "synthetic:160m-q4_0"
    assert first.config.inputs.driver is None and first.config.inputs.gpus == ()
    as_cpu_only = replace(host, result=proven(first, "CPU ONLY"))
    assert not verify(as_cpu_only, accelerator="auto").needed
    assert verify(replace(host, result=proven(first, "PASS")), accelerator="auto").needed


@pytest.mark.parametrize(
    ("found", "version"),
    [
        ({"smi": "580.1", "module": "580.2", "library": "580.2"}, "580.1"),
        ({"smi": None, "module": "580.2", "library": None}, "580.2"),
        ({"smi": None, "module": None, "library": "580.3"}, "580.3"),
    ],
)
def test_the_drivers_version_by_the_first_source_that_has_one(
    found: dict[str, Any], version: str
) -> None:
    assert (
        verify(replace(BUILT, driver=driver(module_on_disk=None, **found))).config.inputs.driver
        == version
    )
