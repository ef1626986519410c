"""Times of a timer: what systemd takes is taken, and nothing else, by systemd's own word."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafleet.oncalendar import LONGEST, is_calendar

GOOD = (
    *("weekly", "Daily", "semi-annually", "anually", "daily UTC", "weekly Europe/Berlin"),
    *("Mon", "mon,TUE,", "Mon..Fri 03:00", "Mon-Wed,Sun *-*-* 04:05:06.789", "Sun..Sun", "Mon "),
    *("03:00", "*:0/10", "*:*:*", "*:*:0..59.5/7.25", "12-31", "*-2-3", "2027-1,4..6/2-1 00:00"),
    *("*-*~1", "*-02~03", "*-*~7/1 12:00", "70-1-1", "99-12-31", "*-*-1..1/31", "1..5/20:00"),
    *("@0", "Tue @86400", "@7258118399", "*-*-* 00:00:00 UTC", "1..4/2-1"),
)
BAD = (
    *("sometimes", "", " ", "daily ", " daily", "week", "UTC", "Europe/Berlin", "daily Europe"),
    *("daily Berlin/Europe", "Fri..Mon", "Mon..", "Mond", "Mon.Tue", "Mon Sun", "Mon..Tue..Wed"),
    *("24:00", "03", "03:00 ", "03:60", "*:*:60", "0:0:1.", "0:0:0/0", "*/2:00", "5..3:00"),
    *("*-2-*~1", "*-13-1", "*-0-1", "*-1-32", "*-*~29", "*-*~1/2", "1969-1-1", "2200-1-1"),
    *("1-1-1-1", "@", "@-1", "@7258118400", "@1 00:00", "7..7/4294967296:0"),
    *("*-*-* *-*-*", "1,:00", "99999999999:00"),
    *("Mon\n", "١:٠", "daily\0", "*:*:59.9999999", "weekly\tUTC"),
)


@pytest.mark.parametrize("text", GOOD)
def test_what_is_a_time(text: str) -> None:
    assert is_calendar(text)


@pytest.mark.parametrize("text", BAD)
def test_what_is_none(text: str) -> None:
    assert not is_calendar(text)


def test_one_of_absurd_length_ends_at_once() -> None:
    assert not is_calendar("1," * 100_000 + "1:00")
    assert not is_calendar("9" * LONGEST + ":00")


def taken(texts: list[str]) -> dict[str, bool]:
    """By systemd itself, of those that a command line can hold."""
    argv = ["systemd-analyze", "calendar", "--", *texts]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"TZ": "UTC", "LC_ALL": "C.UTF-8"}
    )
    refused = [line for line in done.stderr.splitlines() if line.startswith("Failed to parse")]
    return {text: not any(f"'{text}'" in line for line in refused) for text in texts}


NUMBER = st.one_of(
    st.integers(0, 70).map(str),
    st.integers(0, 3000).map(str),
    st.sampled_from(["00", "007", "1970", "2199", "2200", "4294967296", "18446744073709551616"]),
)
FRACTION = st.one_of(NUMBER, st.tuples(NUMBER, NUMBER).map(".".join))


def chain(number: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    ends = st.one_of(number, st.tuples(number, number).map("..".join))
    member = st.one_of(ends, st.tuples(ends, number).map("/".join))
    return st.one_of(st.just("*"), st.lists(member, min_size=1, max_size=3).map(",".join))


DAYS = ("Mon", "tuesday", "WED", "Thu", "Friday", "sat", "Sunday")
DAY = st.sampled_from(DAYS)
DAY_RANGE = st.one_of(
    DAY,
    st.tuples(DAY, st.sampled_from(("..", "-")), DAY).map("".join),
    st.tuples(st.integers(0, 3), st.integers(3, 6)).map(lambda n: f"{DAYS[n[0]]}..{DAYS[n[1]]}"),
)
WEEKDAYS = st.lists(DAY_RANGE, min_size=1, max_size=3).map(",".join)
DATE = st.one_of(
    st.tuples(chain(NUMBER), st.sampled_from("-~"), chain(NUMBER)).map("".join),
    st.tuples(chain(NUMBER), st.just("-"), chain(NUMBER), st.sampled_from("-~"), chain(NUMBER)).map(
        "".join
    ),
    NUMBER.map("@{}".format),
)
TIME = st.one_of(
    st.tuples(chain(NUMBER), chain(NUMBER)).map(":".join),
    st.tuples(chain(NUMBER), chain(NUMBER), chain(FRACTION)).map(":".join),
)
ZONE = st.sampled_from(("UTC", "utc", "Europe/Berlin", "America/New_York", "CET", "Nowhere/Land"))
EVENT = st.lists(st.one_of(WEEKDAYS, DATE, TIME, ZONE), min_size=1, max_size=4).map(" ".join)
ORDERED = st.tuples(
    st.one_of(st.just(""), WEEKDAYS), st.one_of(st.just(""), DATE), st.one_of(st.just(""), TIME)
).map(lambda parts: " ".join(filter(None, parts)))
NEAR = st.one_of(
    ORDERED,
    EVENT,
    st.tuples(st.sampled_from(GOOD + BAD), st.text("0123456789.,-/~:*@ MonW", max_size=3)).map(
        "".join
    ),
    st.text("0123456789.,-/~:* ", min_size=1, max_size=12),
).filter(lambda text: text.isprintable() and text.isascii() and 0 < len(text) <= LONGEST)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(NEAR, min_size=40, max_size=60, unique=True))
def test_systemd_says_the_same(texts: list[str]) -> None:
    assert {text: is_calendar(text) for text in texts} == taken(texts)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_says_the_same_of_the_examples() -> None:
    texts = [text for text in GOOD + BAD if text.isprintable() and text]
    assert {text: is_calendar(text) for text in texts} == taken(texts)
