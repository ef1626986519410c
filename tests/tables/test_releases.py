"""The releases that may be built: rows as their archives are."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet import tables
from llamafleet.plans.build import CPU_OPTIONS, MAY_LACK
from llamafleet.protocol.options import OWN
from llamafleet.settings import LLAMA_VERSION
from llamafleet.tables import parse_version
from llamafleet.tables.releases import (
    MOST,
    common_options,
    having,
    outdated,
    release,
    releases,
)


def test_the_last_ten_newest_first() -> None:
    found = releases()
    orders = [parse_version(one.version) for one in found]
    assert len(found) == MOST == 10 and orders == sorted(set(orders), reverse=True)
    dates = [one.uploaded for one in found]
    assert dates == sorted(dates, reverse=True)
    assert len({one.sha256 for one in found}) == MOST
    assert found[0] == release(LLAMA_VERSION) and release("0.3.99") is None


def test_versions_are_compared_as_numbers() -> None:
    oldest = releases()[-1].version
    assert not outdated(oldest) and outdated("0.3.9") and not outdated("0.3.100")
    assert not outdated(f"{oldest}.post1")


def test_every_release_has_what_the_plan_sets() -> None:
    """So that nothing of ours is dropped today, and a row that lacks something is seen here."""
    ours = {name for name in (*CPU_OPTIONS, "GGML_CUDA_NCCL") if OWN.fullmatch(name)}
    assert set(MAY_LACK) < ours
    for one in releases():
        assert ours <= one.options, one.version
        assert all(OWN.fullmatch(name) for name in one.options)


def test_the_versions_of_an_option() -> None:
    assert having("LLAMA_BUILD_MTMD") == ("0.3.36", "0.3.35", "0.3.34", "0.3.33", "0.3.32")
    assert having("GGML_CUDA") == tuple(one.version for one in releases())
    assert having("GGML_CUBLAS") == ()


def test_a_row_says_what_it_lacks_of_the_common_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tables.text("releases.yaml").replace(
        "    source: *pypi\n", "    lacks: [LLAVA_BUILD]\n    source: *pypi\n", 1
    )
    (tmp_path / "releases.yaml").write_text(text)
    with tables.overlaid(tmp_path):
        first, second = releases()[:2]
        assert "LLAVA_BUILD" in common_options() & second.options - first.options
        assert second.version in having("LLAVA_BUILD") and first.version not in having(
            "LLAVA_BUILD"
        )
