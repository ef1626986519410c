"""A window of time as people type it: now-7d:now, 2026-11-01:, :2026-11-01T12:30Z."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

GRAMMAR = (
    "FROM:TO or FROM, each of them now, now-7d (m, h, d, w), a date, or a date and time as "
    "2026-11-01T12:30, in UTC; an empty one is open"
)

LONGEST = 60
"""Characters; two moments and a colon have 41."""

_SINCE = re.compile(rf"now(?:-([0-9]{{1,9}})([{''.join(UNITS)}]))?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}(:[0-9]{2}(:[0-9]{2})?)?Z?)?")


class WindowError(ValueError):
    """One line: what was found, what is expected."""


def parse(text: str, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Beginning and end, both in UTC; None: open. The beginning is in, the end is not.

    A moment alone is a beginning. Raises WindowError.
    """
    if len(text) > LONGEST:
        raise WindowError(f"found {len(text)} characters; expected {GRAMMAR}")
    found = {(begin, end) for begin, end in _sides(text) if _is(begin) and _is(end)}
    if len(found) != 1:
        raise WindowError(f"found {text!r}; expected {GRAMMAR}")
    begin, end = ((_moment(side, now) if side else None) for side in found.pop())
    if begin and end and begin >= end:
        raise WindowError(f"found {text!r}, whose end is not after its beginning; expected FROM:TO")
    return begin, end


def _sides(text: str) -> list[tuple[str, str]]:
    """Of a text, whose times have colons of their own, each way to read it."""
    ways = [(text[:at], text[at + 1 :]) for at, sign in enumerate(text) if sign == ":"]
    # A whole moment is no window, though 2026-11-01T12:30 has a colon.
    return [(text, "")] if text and _is(text) else ways


def _is(side: str) -> bool:
    return not side or bool(_SINCE.fullmatch(side) or _DATE.fullmatch(side))


def _moment(text: str, now: datetime) -> datetime:
    """Raises WindowError."""
    try:
        if since := _SINCE.fullmatch(text):
            number, unit = since.groups()
            return now - timedelta(**{UNITS[unit]: int(number)}) if unit else now
        date, _, time = text.rstrip("Z").partition("T")
        # fromisoformat of Python 3.10 wants minutes.
        whole = f"{date}T{time}:00" if len(time) == 2 else text.rstrip("Z")
        return datetime.fromisoformat(whole).replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError) as error:
        raise WindowError(f"found {text!r} ({error}); expected {GRAMMAR}") from error
