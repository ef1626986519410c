"""The compiler cache of a build: which one, how large, shared with whom."""

from __future__ import annotations

from collections.abc import Iterator

from llamafleet.layout import Layout
from llamafleet.plans.requirements import cache_requirements
from llamafleet.protocol.job import CacheConfig
from llamafleet.settings import Settings
from llamafleet.wheelhouse.manifest import Manifest

NO_OTHER_CACHE = {"GGML_CCACHE": "OFF"}
"""ON by default, it takes what lies on the host's PATH under the name of ccache, else of sccache,
and sets it for nvcc too, whatever its version (ggml/src/CMakeLists.txt, RULE_LAUNCH_COMPILE)."""


def plan_cache(settings: Settings, layout: Layout, house: Manifest | None) -> CacheConfig | None:
    """None: all is compiled. `house`: of the wheelhouse that takes the registries' place."""
    if settings.compiler_cache == "off":
        return None
    return CacheConfig(
        requirements=cache_requirements(house),
        folder=layout.compiler_cache,
        limit_gb=settings.compiler_cache_gb,
        url=settings.compiler_cache_url,
    )


def cache_lines(cache: CacheConfig | None) -> Iterator[str]:
    """What a plan says of it."""
    if cache and not cache.requirements:
        yield (
            "without a compiler cache: the wheelhouse has none; "
            "next: llamafleet wheelhouse build, again"
        )
    elif cache:
        shared = f", shared through {cache.url}" if cache.url else ""
        yield f"compiler cache in {cache.folder}, {cache.limit_gb} GB at most{shared}"
