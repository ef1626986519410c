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
