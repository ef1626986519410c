"""What a terminal gets of text that is not ours."""

from __future__ import annotations

import pytest

from llamafleet.terminal import printable


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
