"""The rank test within blocks, against scipy where scipy has the same."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from statistics import median

import pytest
from scipy import stats

from llamafleet.history import ranks
from llamafleet.history.ranks import Block, Differences, shift, smallest_p

ALPHA = 0.05


def blocks(seed: int, *sizes: tuple[int, int], effect: float = 0.0) -> list[Block]:
    """Blocks with levels of their own."""
    chance = random.Random(seed)
    found: list[Block] = []
    for a, b in sizes:
        level = chance.gauss(0, 10)
        found.append(
            (
                [level + chance.gauss(0, 1) for _ in range(a)],
                [level + effect + chance.gauss(0, 1) for _ in range(b)],
            )
        )
    return found


@pytest.mark.parametrize("sizes", [(4, 4), (3, 9), (12, 7), (30, 25)])
@pytest.mark.parametrize("effect", [0.0, 0.8, -2.0])
def test_one_block_is_mann_whitney(sizes: tuple[int, int], effect: float) -> None:
    for seed in range(5):
        [(a, b)] = some = blocks(seed, sizes, effect=effect)
        found = shift(some, ALPHA)
        assert found is not None
        expected = stats.mannwhitneyu(b, a, alternative="two-sided", method="exact").pvalue
        assert found.p == pytest.approx(expected)


@pytest.mark.parametrize("effect", [0.0, 1.0, -3.0])
def test_a_run_on_each_side_is_the_sign_test(effect: float) -> None:
    some = blocks(7, *[(1, 1)] * 11, effect=effect)
    found = shift(some, ALPHA)
    assert found is not None
    above = sum(b[0] > a[0] for a, b in some)
    assert found.p == pytest.approx(stats.binomtest(above, 11, 0.5).pvalue)


def test_other_blocks_levels_do_not_matter() -> None:
    """10 apart from GPU to GPU, and the 2 between A and B of each is found."""
    some = blocks(5, *[(3, 3)] * 5, effect=2.0)
    found = shift(some, ALPHA)
    assert found is not None
    assert found.p < 0.001
    assert 1.0 < found.low < found.estimate < found.high < 3.0
    pooled = [[x for block in some for x in block[side]] for side in (0, 1)]
    assert stats.mannwhitneyu(*pooled).pvalue > 0.05


def test_the_interval_leaves_zero_out_exactly_where_p_is_below() -> None:
    told = set()
    for seed in range(100):
        found = shift(blocks(seed, (4, 5), (2, 3), effect=0.9), ALPHA)
        assert found is not None
        outside = found.low > 0 or found.high < 0
        assert outside == (found.p <= ALPHA)
        told.add(outside)
    assert told == {True, False}


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """95 of 100 or a little more, as the ranks of few runs have no finer steps."""
    held = 0
    for seed in range(1000):
        found = shift(blocks(seed, (3, 4), (4, 3), effect=0.5), ALPHA)
        assert found is not None
        held += found.low <= 0.5 <= found.high
    assert 940 <= held <= 985


@pytest.mark.parametrize(
    ("sizes", "enough"),
    [
        ([(3, 3)], False),
        ([(4, 4)], True),
        ([(1, 38)], False),
        ([(1, 39)], True),
        ([(1, 1)] * 5, False),
        ([(1, 1)] * 6, True),
        ([], False),
    ],
)
def test_too_few_runs_have_no_interval(sizes: list[tuple[int, int]], enough: bool) -> None:
    some = blocks(1, *sizes, effect=100.0)
    assert (smallest_p(some) <= ALPHA) == enough
    assert (shift(some, ALPHA) is not None) == enough


def test_figures_that_are_all_the_same_show_nothing() -> None:
    found = shift([([5.0] * 4, [5.0] * 4)], ALPHA)
    assert found is not None
    assert (found.estimate, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("effect", [0.0, 0.4])
def test_the_normal_distribution_goes_on_where_counting_ends(
    effect: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = blocks(5, (30, 30), (30, 30), (35, 30), effect=effect)
    exact = shift(some, ALPHA)
    monkeypatch.setattr(ranks, "EXACT", 100)
    normal = shift(some, ALPHA)
    assert exact is not None
    assert normal is not None
    assert normal.p == pytest.approx(exact.p, rel=0.02)
    assert (normal.low, normal.high) == pytest.approx((exact.low, exact.high), abs=0.01)


@pytest.mark.parametrize("seed", range(40))
def test_differences_are_those_of_a_sorted_list(seed: int) -> None:
    """Also where many are equal, or none is but for the last digit."""
    chance = random.Random(seed)
    some = blocks(seed, *[(chance.randrange(5), chance.randrange(1, 5)) for _ in range(5)])
    digits = chance.choice((0, 1, 17))
    some = [([round(x, digits) for x in a], [round(y, digits) for y in b]) for a, b in some]
    expected = sorted(y - x for a, b in some for x in a for y in b)
    found = Differences(some)
    assert [found[rank] for rank in range(len(found))] == expected
    for value in (0.0, *expected):
        assert found.count(value, bisect_left) == sum(one < value for one in expected)
        assert found.count(value, bisect_right) == sum(one <= value for one in expected)
    if expected:
        assert found.median == median(expected)
