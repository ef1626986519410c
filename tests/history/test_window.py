"""Windows of time as people type them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from llamafleet.history.window import WindowError, parse

NOW = datetime(2026, 11, 26, 12, 30, 15, tzinfo=timezone.utc)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("text", "since", "until"),
    [
        ("now-7d:now", NOW - timedelta(days=7), NOW),
        ("now-90m:", NOW - timedelta(minutes=90), None),
        (":now-2w", None, NOW - timedelta(weeks=2)),
        (":", None, None),
        ("now-1h", NOW - timedelta(hours=1), None),
        ("2026-11-01:2026-11-02", utc(2026, 11, 1), utc(2026, 11, 2)),
        ("2026-11-01T12:30", utc(2026, 11, 1, 12, 30), None),
        ("2026-11-01T12:30:2026-11-01T12:31:05Z", utc(2026, 11, 1, 12, 30),
         utc(2026, 11, 1, 12, 31, 5)),
        ("2026-11-01T12:2026-11-01T13", utc(2026, 11, 1, 12), utc(2026, 11, 1, 13)),
        ("2026-11-01T12:30:", utc(2026, 11, 1, 12, 30), None),
        (":2026-11-01T12:30Z", None, utc(2026, 11, 1, 12, 30)),
        ("2026-11-01:now", utc(2026, 11, 1), NOW),
    ],
)  # fmt: skip
def test_a_window(text: str, since: datetime | None, until: datetime | None) -> None:
    assert parse(text, NOW) == (since, until)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found ''"),
        (":" * 61, "found 61 characters; expected FROM:TO"),
        ("yesterday", "found 'yesterday'; expected FROM:TO"),
        ("now-7", "found 'now-7'"),
        ("now-7y:now", "found 'now-7y:now'"),
        ("now+1d", "found"),
        ("2026-13-01:", "month must be in 1..12"),
        ("2026-11-01T25:00:", "hour must be in 0..23"),
        ("now-999999w:", "date value out of range"),
        ("now-999999999w:", "too large"),
        ("now:now-1d", "whose end is not after its beginning"),
        ("now:now", "whose end is not after its beginning"),
        ("2026-11-01:2026-11-02:2026-11-03", "expected FROM:TO"),
        ("\x1b[2J", r"found '\\x1b\[2J'"),
        ("now-٧d", "found"),
    ],
)
def test_what_is_no_window(text: str, said: str) -> None:
    with pytest.raises(WindowError, match=said):
        parse(text, NOW)
