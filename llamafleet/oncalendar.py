"""Is a text a time that systemd's OnCalendar= takes: systemd.time(7), CALENDAR EVENTS.

By calendar_spec_from_string() of src/shared/calendarspec.c, systemd 252. Left out are the host's
own abbreviations of its time zone: what they are, only the host knows.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable
from pathlib import Path

LONGEST = 240
"""Characters; systemd takes chains of as many members."""

WORDS = (
    *("minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly", "annually"),
    *("anually", "biannually", "bi-annually", "semiannually", "semi-annually"),
)

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAY = "|".join(f"{day}|{day[:3]}" for day in _DAYS)
_RANGE = rf"(?:{_DAY})(?:(?:\.\.|-)(?:{_DAY}))?"


def _chain(number: str) -> str:
    """Pattern of * or of values, ranges and repetitions in a list."""
    member = rf"{number}(?:\.\.{number})?(?:/{number})?"
    return rf"(?:\*|{member}(?:,{member})*)"


_WHOLE = _chain("[0-9]+")
# One dot begins a fraction, two are a range.
_SECONDS = _chain(r"[0-9]+(?:\.[0-9]+)?")

_EVENT = re.compile(
    rf"(?:(?P<days>{_RANGE}(?:,{_RANGE})*,?)(?: +|$))?"
    rf"(?:@(?P<epoch>[0-9]+)"
    rf"|(?:(?:(?P<year>{_WHOLE})-)?(?P<month>{_WHOLE})(?P<from>[-~])(?P<day>{_WHOLE})(?: +|$))?"
    rf"(?:(?P<hour>{_WHOLE}):(?P<minute>{_WHOLE})(?::(?P<second>{_SECONDS}))?)?)",
    re.IGNORECASE | re.ASCII,
)

_YEARS = (1970, 2199)
_LAST_SECOND = 7_258_118_399
"""Of the year 2199, since 1970."""
_MICRO = 1_000_000
_INT_MAX = 2**31 - 1


def is_calendar(text: str) -> bool:
    """Whether systemd would take it on a host that knows the same time zones as this machine."""
    if not text or len(text) > LONGEST:
        return False
    event = _without_zone(text)
    if event.lower() in WORDS:
        return True
    found = _EVENT.fullmatch(event) if event else None
    if found is None:
        return False
    part = found.groupdict()
    if part["epoch"] is not None:
        return _days_in_order(part["days"]) and int(part["epoch"]) <= _LAST_SECOND
    return (
        _days_in_order(part["days"])
        and _fits(_full_years(part["year"]), *_YEARS)
        and _fits(part["month"], 1, 12)
        and _fits(part["day"], 1, 31, backwards=part["from"] == "~")
        and _fits(part["hour"], 0, 23)
        and _fits(part["minute"], 0, 59)
        and _fits(part["second"], 0, 60 * _MICRO - 1, _micros, _MICRO)
    )


def _without_zone(text: str) -> str:
    if text.lower().endswith(" utc"):
        return text[:-4]
    event, blank, zone = text.rpartition(" ")
    return event if blank and _is_zone(zone) else text


def _is_zone(name: str) -> bool:
    """A name of the time zone database; on a machine without one, whatever looks like it."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", name):
        return False
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return not any(Path(folder).is_dir() for folder in zoneinfo.TZPATH) and "/" in name
    return True


def _days_in_order(days: str | None) -> bool:
    """A range of weekdays does not go round the end of the week."""
    number = {day[:3].lower(): index for index, day in enumerate(_DAYS)}
    for one in filter(None, (days or "").lower().split(",")):
        ends = [number[day[:3]] for day in re.split(r"\.\.|-", one)]
        if ends != sorted(ends):
            return False
    return True


def _fits(
    chain: str | None,
    low: int,
    high: int,
    number: Callable[[str], int] = int,
    step: int = 1,
    *,
    backwards: bool = False,
) -> bool:
    """Whether each member lies in its bounds and, if it repeats, does so within them.

    `step`: of a range that names none. `backwards`: days are counted from the end of a month,
    which may have 28 days.
    """
    if chain is None or chain == "*":
        return True
    high -= 3 if backwards else 0
    for member in chain.split(","):
        span, slash, told = member.partition("/")
        begins, _, ends = span.partition("..")
        start, stop = number(begins), number(ends) if ends else None
        repeat = number(told) if slash else step if ends else 0
        if (slash and repeat == 0) or max(start, stop or 0, repeat) > _INT_MAX:
            return False
        if stop is not None and stop > start:  # As systemd does, to the last value reached.
            stop -= (stop - start) % repeat
        if stop == start:
            stop, repeat = None, 0
        last = start - repeat if backwards and stop is None else start + repeat
        bounds = (start, last, high if stop is None else stop)
        if not all(low <= one <= high for one in bounds) or repeat > high - low:
            return False
        if stop is not None and last > stop:
            return False
    return True


def _full_years(chain: str | None) -> str | None:
    """12 is 2012 and 89 is 1989; an interval of 12 years stays one."""

    def full(found: re.Match[str]) -> str:
        year = int(found[0])
        return str(year + (2000 if year < 70 else 1900) if year < 100 else year)

    return chain and re.sub("(?<![0-9/])[0-9]+", full, chain)


def _micros(text: str) -> int:
    """Seconds in microseconds, rounded half up."""
    whole, _, fraction = text.partition(".")
    digits = fraction.ljust(7, "0")
    return int(whole) * _MICRO + int(digits[:6]) + (digits[6] >= "5")
