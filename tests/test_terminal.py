"""What a terminal gets of text that is not ours."""

from __future__ import annotations

import pytest

from llamafleet.terminal import columns, cut, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gpu-a: 0.98 ± 0.1, 測試 é", "gpu-a: 0.98 ± 0.1, 測試 é"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nb\tc\rd\0", r"a\nb\tc\rd\x00"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("\u202egnp.exe\u200b\u2028", r"\u202egnp.exe\u200b\u2028"),
        ("\ud800\U000e0001", r"\ud800\U000e0001"),
    ],
)
def test_what_can_t_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert shown.encode()


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("", 0),
        ("gpu-a", 5),
        ("測試", 4),
        ("e\u0301", 1),
        ("…±", 2),
        ("１", 2),
        ("🎉", 2),
        ("a\u20dd", 1),
        # Of combining class 0, and over the one before all the same: wcwidth(3) says 0.
        ("สวัสดี", 4),
        ("a\ufe0f", 1),
    ],
)
def test_columns_are_those_of_a_terminal(text: str, wide: int) -> None:
    assert columns(text) == wide


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("gpu-a", 5, "gpu-a"),
        ("gpu-a", 4, "gpu…"),
        ("測試機", 5, "測試…"),
        ("測試機", 4, "測…"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
        ("gpu", 1, "…"),
    ],
)
def test_what_is_cut_says_so_and_fits(text: str, most: int, shown: str) -> None:
    assert cut(text, most) == shown and columns(shown) <= most
