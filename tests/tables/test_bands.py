"""The expected bands as data."""

from __future__ import annotations

from itertools import groupby

from llamafleet.tables.bands import bands


def test_each_gpu_once_for_a_test_and_both_tests() -> None:
    rows = [(row.gpu, row.gib, row.test) for row in bands().references]
    assert len(rows) == len(set(rows))
    for _, tests in groupby(sorted(rows, key=str), key=lambda row: row[:2]):
        assert sorted(test for *_, test in tests) == ["pp512", "tg128"]
    of_memory = [(row.gpu, row.gib) for row in bands().bandwidths]
    assert len(of_memory) == len(set(of_memory))


def test_names_are_as_nvml_has_them_without_the_maker() -> None:
    names = {row.gpu for row in bands().references} | {row.gpu for row in bands().bandwidths}
    for name in names:
        assert not name.startswith(("NVIDIA", "Tesla"))
        assert name == name.strip()


def test_no_generation_is_faster_than_the_memory() -> None:
    """What the model of the references takes: 3.83 GB."""
    table = bands()
    speed = {row.gpu: row.gb_s for row in table.bandwidths}
    shares = {
        row.gpu: row.ts * 3.826 / speed[row.gpu]
        for row in table.references
        if row.test == "tg128" and row.gpu in speed
    }
    assert len(shares) == 19
    assert min(shares.values()) > table.roofline_low
    assert max(shares.values()) < 0.85


def test_the_figures_that_were_looked_up() -> None:
    told = {(row.gpu, row.test): (row.ts, row.spread) for row in bands().references}
    assert told["GeForce RTX 4090", "pp512"] == (11992.7, 107.99)
    assert told["GeForce RTX 4090", "tg128"] == (186.21, 0.13)
    assert told["L40", "tg128"] == (152.01, 0.28)
    assert all(
        row.flash_attention is False
        for row in bands().references
        if not row.source.startswith("measured")
    )
