"""The guide's table of models, as data."""

from __future__ import annotations

import pytest

from llamafleet.protocol.serve import Placement
from llamafleet.tables.profiles import profile, profile_of, profiles


def test_the_guides_rows() -> None:
    told = {row.name: (row.n_gpu_layers, row.n_ctx) for row in profiles()}
    assert told == {"l32-8x3b": (50, 16384), "l32-8x4b": (45, 8192), "other": (60, 32768)}
    assert all(row.mmap and not row.mlock for row in profiles())
    assert all(Placement(row.n_gpu_layers, row.n_ctx) for row in profiles())


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("L3.2-8X3B-MOE-Dark-Champion",), "l32-8x3b"),
        (("", "l3.2-8x4b-v2.Q4_K_M.gguf"), "l32-8x4b"),
        (("Llama 3.1 8B", "llama.gguf"), "other"),
        (("L3X2-8X3B",), "other"),
        ((), "other"),
    ],
)
def test_a_model_is_matched_by_its_names(names: tuple[str, ...], found: str) -> None:
    assert profile_of(*names).name == found


def test_a_profile_by_name() -> None:
    assert profile("l32-8x3b") == profiles()[0]
    assert profile("none") is None
