"""When a host must be verified again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Unit
from llamafleet.layout import AS_ACCOUNT, VERIFY_TIMER, VERIFY_UNIT
from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.plan import SwitchPlan, VerifyPlan
from llamafleet.protocol.result import Check, Verdict
from llamafleet.received import Unreadable
from llamafleet.settings import Settings
from llamafleet.tables import overlaid
from tests.frozen_tables import FROZEN
from tests.history import gpu as row
from tests.plans.hosts import (
    CPU_HOST,
    GPU_HOST,
    LAYOUT,
    build_of,
    driver,
    gpu,
    plan,
    proven,
    there,
    toolkit,
    with_builds,
)

BUILD = build_of(replace(GPU_HOST, toolkits=(toolkit("13.0"),)))
MACHINE = "0123456789abcdef0123456789abcdef"
UNBUILT = replace(GPU_HOST, machine_id=MACHINE, toolkits=(toolkit("13.0"),))
BUILT = with_builds(UNBUILT, there(BUILD))


def verify(host: HostSnapshot = BUILT, **settings: Any) -> VerifyPlan:
    made = plan(host, **settings)
    assert made.verify is not None, made.problems
    return made.verify


FIRST = verify()
RESULT = replace(proven(FIRST), machine_id=MACHINE, finished=1_000_000.0)
PROVEN = replace(BUILT, result=RESULT, time=1_000_100)


def test_a_host_never_verified() -> None:
    assert FIRST.needed and "never verified" in FIRST.reason
    assert len(FIRST.key) == 16


def test_a_proven_host_is_not_verified_again() -> None:
    again = verify(PROVEN)
    assert not again.needed and again.key == FIRST.key


@pytest.mark.parametrize("verdict", ["FAIL", "CPU ONLY", "NOT VERIFIED"])
def test_any_other_verdict_is(verdict: Verdict) -> None:
    again = verify(replace(BUILT, result=replace(proven(FIRST, verdict), machine_id=MACHINE)))
    assert again.needed and str(verdict) in again.reason


def test_a_verdict_beside_a_red_check_proves_nothing() -> None:
    red = Check("vram", "fail", "nothing", "more", "look")
    made = plan(replace(PROVEN, current="0" * 16, result=replace(RESULT, checks=(red,))))
    assert made.verify and made.verify.needed and made.switch and not made.switch.proven
    assert made.verify.reason == "the last verdict is PASS beside a red check: vram"


def test_a_result_that_can_t_be_understood_proves_nothing() -> None:
    again = verify(replace(BUILT, result=Unreadable("verdict: found nothing")))
    assert again.needed and "verdict: found nothing" in again.reason


def test_a_verdict_that_does_not_speak_of_each_gpu_proves_nothing() -> None:
    """As one of version 1, of several GPUs together."""
    whole = RESULT
    unproven = replace(row(), uuid="GPU-a", verdict="NOT VERIFIED")
    again = verify(replace(BUILT, result=replace(whole, gpus=(unproven,))))
    assert again.needed and again.reason == "not verified by themselves: GPU-a"
    assert verify(replace(BUILT, result=replace(whole, gpus=()))).needed


def test_rows_of_other_gpus_prove_nothing() -> None:
    """As many of them: a count alone is no proof of a GPU."""
    again = verify(replace(PROVEN, result=replace(RESULT, gpus=(replace(row(), uuid="GPU-z"),))))
    assert again.needed and again.reason == "not verified by themselves: GPU-a, GPU-z"


BUSY = replace(PROVEN, result=replace(proven(FIRST, "BUSY"), machine_id=MACHINE, finished=1e6))


def test_a_busy_gpu_is_measured_again_and_its_build_is_proven() -> None:
    made = plan(replace(BUSY, current=None))
    assert made.build and made.build.action == "none"
    assert made.verify and made.verify.needed and made.verify.proven
    assert made.verify.reason.startswith("the last verdict is BUSY")
    assert made.switch and made.switch.proven


def test_a_busy_gpu_is_good_where_the_settings_say_so() -> None:
    assert not verify(BUSY, allow_busy=True).needed
    assert verify(BUSY, allow_busy=True).config.allow_busy
    assert verify(busy_minutes=0).config.busy_minutes == 0


def test_it_is_told_whether_a_timer_verifies_again() -> None:
    assert verify().config.timer
    assert not verify(verify_schedule=None).config.timer
    served = {"chat": {"model": "/srv/a.gguf"}}
    assert not verify(serve=served).config.timer
    assert verify(serve=served, verify_pauses_serving=True).config.timer


def test_busy_is_no_verdict_of_a_cpu() -> None:
    build = build_of(CPU_HOST, accelerator="auto")
    host = with_builds(CPU_HOST, there(build))
    made = proven(verify(host, accelerator="auto"), "BUSY")
    again = verify(replace(host, result=made), accelerator="auto", allow_busy=True)
    assert again.needed and not again.proven


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
    assert config.stamp == f"{LAYOUT.version(build)}/build.json"
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
    again = verify(replace(PROVEN, builds={}))
    assert again.key == FIRST.key and again.needed and "build" in again.reason


def test_what_is_proven_and_not_current_is_switched_to_and_not_verified_again() -> None:
    made = plan(replace(PROVEN, current=None))
    assert made.verify and not made.verify.needed
    assert made.switch == SwitchPlan(BUILD.fingerprint, "current is not set", proven=True)
    assert plan(PROVEN).switch is None


def test_current_never_follows_a_build_that_is_not_proven() -> None:
    older = replace(PROVEN, current="0" * 16)
    for host in (
        replace(older, result=None),
        replace(older, result=replace(RESULT, verdict="FAIL")),
        replace(older, result=replace(RESULT, key="0" * 16)),
        replace(older, result=replace(RESULT, prefix=LAYOUT.version(f"{BUILD.fingerprint}-2"))),
    ):
        made = plan(host)
        assert made.build and made.build.action == "none"
        assert made.switch and not made.switch.proven and made.discard == ()
        assert f"switch: to {BUILD.fingerprint} once that is verified" in "\n".join(explain(made))


def test_a_result_proves_the_build_that_it_was_made_on_and_no_later_one() -> None:
    """A rebuild has the same key: nothing of a verification's inputs differs."""
    second = there(BUILD, f"{BUILD.fingerprint}-2", finished=200.0)
    host = with_builds(PROVEN, second, current=BUILD.fingerprint)
    made = plan(host)
    assert made.build and made.build.name == second.name
    assert made.verify and made.verify.needed and "on another build" in made.verify.reason
    # An older result does not say on which: there was one for each fingerprint.
    older = replace(RESULT, prefix="")
    assert verify(replace(host, result=older)).needed
    assert not verify(replace(PROVEN, result=older)).needed
    done = replace(host, result=replace(RESULT, prefix=made.build.config.prefix))
    made = plan(done)
    assert made.switch and made.switch.proven and made.discard == (BUILD.fingerprint,)
    assert f"  then remove {BUILD.fingerprint}" in explain(made)


@overlaid(FROZEN)
@pytest.mark.parametrize("scope", ["system", "user"])
def test_a_result_of_another_machine_is_none(scope: str) -> None:
    """A home may be shared by several."""
    layout = replace(LAYOUT, scope=scope)
    host, settings = replace(BUILT, uid=0 if scope == "system" else 1000), Settings(scope=scope)  # type: ignore[arg-type]
    made = make_plan("lab-1", settings, host, layout).verify
    assert made is not None
    for told, needed in ((MACHINE, False), ("f" * 32, True), ("", scope == "user")):
        result = replace(proven(made), machine_id=told)
        again = make_plan("lab-1", settings, replace(host, result=result), layout).verify
        assert again is not None and again.needed is needed, (told, again)
        assert ("of another machine" in again.reason) is needed


def unit(**changes: Any) -> Unit:
    return replace(Unit("loaded", "inactive", "dead", "static", result="success"), **changes)


DOUBTS: dict[str, tuple[HostSnapshot, str]] = {
    "its unit failed": (
        replace(PROVEN, units={VERIFY_UNIT: unit(active="failed", result="exit-code", status=2)}),
        "llamafleet-verify.service failed (exit-code, status 2)",
    ),
    "the timer's run left nothing": (
        replace(PROVEN, units={VERIFY_TIMER: unit(active="active", triggered=1_000_050)}),
        "llamafleet-verify.timer started a verification that left no result",
    ),
    "it is too old": (
        replace(PROVEN, time=1_000_000 + 15 * 86_400),
        "the last one is 15 days old (weekly)",
    ),
    "it is from the future": (replace(PROVEN, time=900_000), "the last result is from the future"),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_result_that_may_be_out_of_date_is_made_again(doubt: str) -> None:
    host, reason = DOUBTS[doubt]
    again = verify(host)
    assert again.needed and reason in again.reason, again.reason
    assert again.proven, "it says nothing against the build"


def test_no_doubt_where_all_is_well_or_one_runs() -> None:
    timer = unit(active="active", triggered=999_000)
    well = replace(PROVEN, units={VERIFY_UNIT: unit(), VERIFY_TIMER: timer})
    assert not verify(well).needed
    late = replace(timer, triggered=1_000_050)
    runs = replace(well, units={VERIFY_UNIT: unit(active="activating"), VERIFY_TIMER: late})
    assert not verify(runs).needed
    old = replace(PROVEN, time=1_000_000 + 15 * 86_400)
    assert not verify(old, verify_schedule="monthly").needed
    assert not verify(old, verify_schedule=None).needed
    assert verify(old, verify_schedule="Daily").needed


def test_llama_cpp_gets_what_the_plan_says_and_the_account_is_named() -> None:
    config = FIRST.config
    assert config.environment == {
        "CUDA_CACHE_PATH": "/var/lib/llamafleet/cuda-cache",
        "LD_LIBRARY_PATH": "/usr/local/cuda-13.0/lib64",
    }
    assert config.as_account == AS_ACCOUNT


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
    host = with_builds(CPU_HOST, there(build))
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
