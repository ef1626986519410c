"""Who installs whose wheel, what a wheel must be, and which CPUs a baseline is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.share import (
    MOST_BYTES,
    Offer,
    gives,
    maker_of,
    offer_of,
    sharing_lines,
    unsound,
    wheel_of,
)
from llamafleet.protocol.job import SharedWheel
from llamafleet.settings import Settings
from llamafleet.tables.cpu_baselines import BASELINES, NATIVE, OPTIONS, Baseline
from tests.plans.hosts import (
    CPU_HOST,
    GPU_HOST,
    LAYOUT,
    build_of,
    only_problem,
    plan,
    there,
    with_builds,
)

pytestmark = pytest.mark.usefixtures("frozen_tables")
Does = Literal["build", "attach", "has", "none"]


def offers(**does: Does) -> list[Offer]:
    """Of hosts of one fingerprint."""
    return [Offer(host, "k", what) for host, what in does.items()]


@pytest.mark.parametrize(
    ("does", "makers"),
    [
        ({"a": "build", "b": "build", "c": "build"}, {"a": "a", "b": "a", "c": "a"}),
        ({"a": "build", "b": "has"}, {"a": "b", "b": None}),
        ({"a": "build", "b": "attach", "c": "build"}, {"a": "b", "b": None, "c": "b"}),
        ({"a": "build", "b": "attach", "c": "has"}, {"a": "c", "b": None, "c": None}),
        # It was built without its wheel being kept.
        ({"a": "none", "b": "build", "c": "build"}, {"a": None, "b": "b", "c": "b"}),
        ({"a": "none", "b": "has"}, {"a": None, "b": None}),
    ],
)
def test_one_host_makes_the_wheel_of_a_fingerprint(
    does: dict[str, Does], makers: dict[str, str | None]
) -> None:
    assert {host: maker_of(host, offers(**does), (), ()) for host in does} == makers


def test_other_fingerprints_are_other_builds() -> None:
    told = [Offer("a", "k", "build"), Offer("b", "m", "build"), Offer("c", "m", "build")]
    assert [maker_of(host, told, (), ()) for host in "abc"] == ["a", "b", "b"]


def test_nobody_waits_where_the_controller_has_it() -> None:
    told = offers(a="build", b="build")
    assert maker_of("a", told, {"k"}, ()) is None
    # One that is to build anew waits for one that builds anew.
    anew = [replace(told[0], anew=True), told[1], Offer("c", "k", "build", anew=True)]
    assert [maker_of(host, anew, {"k"}, ()) for host in "abc"] == ["a", None, "a"]
    assert [maker_of(host, anew, {"k"}, {"k"}) for host in "abc"] == [None, None, None]
    first = [told[0], replace(told[1], anew=True)]
    assert maker_of("b", first, (), ()) == "b"
    assert maker_of("nobody", told, (), ()) is None


def test_a_wheel_is_asked_for_only_where_somebody_waits() -> None:
    assert gives("b", offers(a="build", b="has"), (), ())
    assert not gives("b", offers(a="build", b="has"), {"k"}, ())
    assert not gives("b", offers(b="has"), (), ())


def test_a_dry_run_says_who_builds_for_whom() -> None:
    key = "0123456789abcdef"
    told = [Offer(host, key, "build") for host in "abc"]
    assert sharing_lines(told, (), ()) == ["build 01234567: the wheel of a is for b, c"]
    assert sharing_lines(told[:1], (), ()) == []
    assert sharing_lines(told, {key}, ()) == [
        "build 01234567: the wheel of this controller is for a, b, c"
    ]


def wheel(**changes: Any) -> SharedWheel:
    good = SharedWheel(
        host="gpu-a",
        name="llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl",
        sha256="a" * 64,
        size=45_000_000,
        libraries={"llama_cpp/lib/libggml-cuda.so": "b" * 64},
        needs=("AVX2", "SSE4_1"),
    )
    return replace(good, **changes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": ""}, "name"),
        ({"name": "../llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"}, "name"),
        ({"name": "numpy-2.0.0-py3-none-linux_x86_64.whl"}, "name"),
        ({"name": "llama_cpp_python-0.3.36-cp311-cp311-linux_x86_64.whl"}, "name"),
        ({"name": "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl\n"}, "name"),
        ({"sha256": "a" * 63}, "sha256"),
        ({"size": 0}, "size"),
        ({"size": MOST_BYTES + 1}, "size"),
        ({"libraries": {}}, "libraries"),
        ({"libraries": {"llama_cpp/lib/../x": "b" * 64}}, "libraries"),
        ({"libraries": {"llama_cpp/lib/libllama.so": "b"}}, "libraries"),
        ({"needs": ("\x1b[31m",)}, "needs"),
    ],
)
def test_what_a_host_says_of_its_wheel_is_judged(changes: dict[str, Any], what: str) -> None:
    assert unsound(wheel()) == ""
    assert unsound(wheel(**changes)) == f"found no sound {what} in its stamp"


def test_a_release_after_the_release_has_a_wheel_too() -> None:
    assert unsound(wheel(name="llama_cpp_python-0.3.36.post1-py3-none-linux_aarch64.whl")) == ""


def shared(**settings: Any) -> Settings:
    return Settings(build_sharing="wheel", **settings)


def test_the_plan_takes_the_wheel_of_its_fingerprint_and_no_other() -> None:
    key = build_of().fingerprint
    for wheels, action in (({key: wheel()}, "take"), ({"0" * 16: wheel()}, "build")):
        made = make_plan("lab-1", shared(), GPU_HOST, LAYOUT, wheels=wheels)
        assert made.build is not None
        config, lines = made.build.config, explain(made)
        assert (config.wheel is not None) == (action == "take") != config.keep_wheel
        assert any(line.startswith(f"build: {action} {key} (") for line in lines), lines
    assert "  its wheel is for all hosts of this fingerprint: the first of them builds it" in lines
    made = make_plan("lab-1", shared(), GPU_HOST, LAYOUT, wheels={key: wheel()})
    assert made.build is not None
    assert made.build.reason == "wheel of gpu-a; nothing was built on this host yet"
    assert made.build.config.wheel_file == f"/opt/llamafleet/shared/{wheel().name}"


def test_without_the_setting_no_wheel_is_taken_or_kept() -> None:
    key = build_of().fingerprint
    made = make_plan("lab-1", Settings(), GPU_HOST, LAYOUT, wheels={key: wheel()})
    assert made.build is not None
    config = made.build.config
    assert (config.wheel, config.keep_wheel, config.wheel_file) == (None, False, "")


def test_sharing_changes_no_fingerprint() -> None:
    assert build_of(build_sharing="wheel").fingerprint == build_of().fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_flags": ("avx2",)},
        {"glibc": "2.41"},
        {"arch": "aarch64"},
        {"compilers": (replace(GPU_HOST.compilers[0], version="13.1.0", path="/usr/bin/g++-13"),)},
        {"gpus": (replace(GPU_HOST.gpus[0], compute_capability="9.0"),)},
    ],
)
def test_a_host_of_another_kind_takes_no_wheel(change: dict[str, Any]) -> None:
    """Another C library, compiler (and so its C++ library), CPU or GPU: it builds for itself."""
    wheels = {build_of().fingerprint: wheel()}
    made = make_plan("lab-1", shared(), replace(GPU_HOST, **change), LAYOUT, wheels=wheels)
    assert made.build is not None, made.problems
    assert made.build.config.wheel is None and made.build.action == "build"


def test_what_was_taken_says_so_when_it_is_there() -> None:
    made = there(build_of())
    assert made.product is not None
    taken = replace(made, product=replace(made.product, shared_from="gpu-a"))
    build = build_of(with_builds(GPU_HOST, taken), build_sharing="wheel")
    assert (build.action, build.reason) == ("none", "wheel of gpu-a; built and active")


def test_what_a_host_offers() -> None:
    build = build_of(build_sharing="wheel")
    assert offer_of("a", shared(), GPU_HOST, build).does == "build"
    made = there(build)
    assert made.product is not None
    kept = replace(made, product=replace(made.product, wheel=wheel().name))
    for one, does in ((made, "none"), (kept, "has")):
        host = with_builds(GPU_HOST, one)
        assert offer_of("a", shared(), host, build_of(host)).does == does


def test_a_stamp_becomes_a_wheel_less_the_python_of_its_host() -> None:
    made = there(build_of()).product
    assert made is not None
    told = replace(made, wheel=wheel().name, wheel_sha256="a" * 64, wheel_bytes=5, nvcc="13.0.88")
    found = wheel_of("gpu-a", told)
    assert isinstance(found, SharedWheel)
    assert list(found.libraries) == ["llama_cpp/lib/libllama.so"] and found.nvcc == "13.0.88"


# Baselines

V3 = tuple(sorted(BASELINES["x86-64-v3"].flags))
V4 = tuple(sorted(BASELINES["x86-64-v4"].flags))


def options(**settings: Any) -> dict[str, str]:
    build = build_of(replace(CPU_HOST, cpu_flags=(*V4, "amx_int8")), accelerator="cpu", **settings)
    return dict(option.split("=", 1) for option in build.inputs.cmake_options)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_takes_the_place_of_the_flags(name: Baseline) -> None:
    found = options(cpu_baseline=name)
    assert found[NATIVE] == "off"
    # Each is said: ggml's own defaults go by whether GGML_NATIVE is on.
    assert {option for option in OPTIONS if found[option] == "on"} == BASELINES[name].on
    assert {found[option] for option in OPTIONS} == {"on", "off"}
    assert "CMAKE_C_FLAGS" not in found


def test_hosts_of_one_baseline_share_whatever_else_their_cpus_have() -> None:
    hosts = [replace(GPU_HOST, cpu_flags=flags) for flags in (V3, V4, (*V4, "amx_int8"))]
    keys = {build_of(host, cpu_baseline="x86-64-v3").fingerprint for host in hosts}
    natives = {build_of(host).fingerprint for host in hosts}
    other = build_of(hosts[1], cpu_baseline="x86-64-v4").fingerprint
    assert len(keys) == 1 and len(natives) == 3 and other not in keys | natives


def test_a_cpu_that_lacks_a_flag_is_refused_by_the_flag_s_name() -> None:
    host = replace(GPU_HOST, cpu="AMD EPYC 7351", cpu_flags=V3)
    problem = only_problem(plan(host, cpu_baseline="x86-64-v4"))
    assert str(problem) == (
        "cpu_baseline: found a CPU that lacks avx512bw, avx512cd, avx512dq, avx512f, avx512vl "
        "(AMD EPYC 7351); expected all flags of cpu_baseline = 'x86-64-v4'; "
        "next: set cpu_baseline = 'x86-64-v3' for this host"
    )
    one = replace(host, cpu_flags=tuple(flag for flag in V3 if flag != "bmi2"))
    assert "that lacks bmi2 (" in str(only_problem(plan(one, cpu_baseline="x86-64-v3")))
    none = replace(host, cpu_flags=())
    assert only_problem(plan(none, cpu_baseline="x86-64-v2")).next == (
        "remove cpu_baseline for this host"
    )


def test_another_machine_has_none_of_these_baselines() -> None:
    problem = only_problem(plan(replace(GPU_HOST, arch="aarch64"), cpu_baseline="x86-64-v2"))
    assert problem.found == "machine aarch64"
    assert problem.next == "remove cpu_baseline for this host"


@pytest.mark.parametrize("name", BASELINES)
def test_a_cpu_that_has_all_is_no_problem(name: Baseline) -> None:
    assert plan(replace(GPU_HOST, cpu_flags=V4), cpu_baseline=name).problems == ()
