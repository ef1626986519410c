"""The catalogue of synthetic models: names and sizes. That sizes fit real files: test_synth.py."""

from __future__ import annotations

import pytest

from llamafleet.protocol import models


@pytest.mark.parametrize("shape", models.SHAPES)
@pytest.mark.parametrize("type_", models.TYPES)
def test_a_name_is_read_as_it_is_made(shape: str, type_: str) -> None:
    assert models.parse(models.name(shape, type_)) == (shape, type_)


@pytest.mark.parametrize("name", ["synthetic:7b-q9_9", "synthetic:9b-q4_0", "7b-q4_0", "/m.gguf"])
def test_another_name_is_none(name: str) -> None:
    assert models.parse(name) is None
    assert models.estimate_mib(name) == 0


@pytest.mark.parametrize(
    ("name", "mib"),
    # Measured: the file of 7b in Q4_0 has 3,653 million bytes less its vocabulary's padding.
    [("synthetic:7b-q4_0", 3650), ("synthetic:160m-q4_0", 80), ("synthetic:7b-f16", 12855)],
)
def test_sizes_are_rounded_up(name: str, mib: int) -> None:
    assert models.estimate_mib(name) == mib
