"""Lines of text about comparisons."""

from __future__ import annotations

import pytest

from llamafleet.history.comparison import Comparison
from llamafleet.history.words import difference


@pytest.mark.parametrize(
    ("ratio", "ends", "said"),
    [
        (0.961, (0.959, 0.963), "-3.9 % (-4.1 to -3.7)"),
        (1.2, (None, None), "+20.0 %"),
        (0.9999, (0.9996, 1.0004), "+0.0 % (+0.0 to +0.0)"),
        (None, (None, None), ""),
    ],
)
def test_a_difference_is_told_with_its_interval_and_never_as_minus_nothing(
    ratio: float | None, ends: tuple[float | None, float | None], said: str
) -> None:
    found = Comparison("tg128", "tg", "H100", "m", "slower", None, None, ratio, *ends)
    assert difference(found) == said
