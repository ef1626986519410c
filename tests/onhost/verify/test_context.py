"""The search for the largest context that fits."""

from __future__ import annotations

import pytest

from llamafleet.onhost.verify.checks.context import CONTEXT_STEP, CONTEXT_TRIES, largest_context


@pytest.mark.parametrize("guess_error", [0.9, 0.97, 1.0, 1.05, 1.2])
@pytest.mark.parametrize("true", [3_000, 40_000, 150_000])
@pytest.mark.parametrize("limit", [200_000, 10_000_000])
def test_the_answer_fits_and_is_near_the_largest(true: int, guess_error: float, limit: int) -> None:
    tried: list[int] = []

    def fits(n: int) -> bool:
        tried.append(n)
        return n <= true

    found = largest_context(fits, limit, int(true * guess_error))
    assert found in tried and found % CONTEXT_STEP == 0
    assert len(tried) == len(set(tried)) <= CONTEXT_TRIES
    assert true * 0.9 - CONTEXT_STEP <= found <= true
    assert all(0 < n < limit for n in tried)


def test_nothing_fits() -> None:
    assert largest_context(lambda n: False, 4096, 1024) == 0
    assert largest_context(lambda n: False, 4096, 0) == 0


def test_a_wrong_guess_still_gives_what_fits() -> None:
    assert largest_context(lambda n: True, 4096, 10**9) == 4096 - CONTEXT_STEP
    assert largest_context(lambda n: n <= 512, 4096, 0) == 512


def test_a_limit_below_one_step_is_not_tried() -> None:
    assert largest_context(lambda n: True, CONTEXT_STEP, 5000) == 0


@pytest.mark.parametrize(
    ("true", "guess", "tried"),
    [
        # Up by an eighth until one does not fit, then half the gap.
        (40_000, 36_000, [35_840, 40_192, 37_888, 38_912, 39_424, 39_680]),
        (90_000, 60_000, [59_904, 67_328, 75_520, 84_736, 95_232, 89_856]),
        # Down by an eighth until one fits.
        (30_000, 50_000, [49_920, 43_520, 37_888, 33_024, 28_672, 30_720]),
    ],
)
def test_the_search_goes_in_eighths_and_then_in_halves(
    true: int, guess: int, tried: list[int]
) -> None:
    seen: list[int] = []

    def fits(n: int) -> bool:
        seen.append(n)
        return n <= true

    assert largest_context(fits, 200_000, guess) == max(n for n in tried if n <= true)
    assert seen == tried
