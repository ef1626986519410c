"""The words that a pattern can't do without: what is not searched for would not be found either."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from llamafleet.protocol import needed
from llamafleet.protocol.diagnose import causes, family_of, signatures_from
from llamafleet.protocol.log_text import LogText
from llamafleet.protocol.needed import Needs, Words, needs_of
from llamafleet.tables import failures
from tests.protocol.test_causes import reports

BUILD = Path(__file__).parents[1] / "onhost" / "data" / "build-cpu.log"
SIGNATURES = signatures_from(failures.rows())
UNFILTERED = tuple(replace(each, needs=((),)) for each in SIGNATURES)


@pytest.mark.parametrize(
    ("pattern", "needs"),
    [
        ("No space left", (("no ", " space ", " left"),)),
        ("one|two", (("one",), ("two",))),
        (r"died (?:by|of) signal \d+\b", ((((("by",), ("of",))), "died ", " signal "),)),
        ("colou?rs?", (("colo", "r"),)),
        ("ab+c[de]f{2}g{0,3}h", (("ab", "c", "f", "h"),)),
        (r"(?:a b)? (?!no)(?<!never )x(?=y)", (("x",),)),
        (r"(?:|a)b", (("b",),)),
        (r"^.{0,9}\[errno 28\]$", ((" errno ", " 28 "),)),
        (r"[^\]]x", (("x",),)),
    ],
)
def test_what_a_pattern_needs(pattern: str, needs: Needs) -> None:
    assert needs_of(family_of(pattern)) == needs


def test_every_sample_holds_what_its_pattern_needs() -> None:
    for signature, row in zip(SIGNATURES, failures.rows(), strict=True):
        assert LogText.of(row["sample"]).words.anywhere(signature.needs), row["id"]


@pytest.mark.parametrize(
    ("needed", "within"),
    [
        (" two ", 0b0011),
        (" tw", 0b1111),
        ("wo ", 0b0011),
        ("w", 0b1111),  # too short to be looked for
        (" wo", 0),
        (" four ", 0b1100),
        ("our", 0b1100),
    ],
)
def test_a_part_holds_the_words_of_the_next_one_too(needed: str, within: int) -> None:
    words = Words(["one", "two", "three", "four twin"])
    assert words.within(((needed,),)) == within
    assert words.anywhere(((needed,),)) == bool(within)


@pytest.mark.parametrize("needed", [" 0x1f ", "x1f", " 0x1", "0x1f", "1f2", " fade ", "fad"])
def test_a_number_is_a_word_too(needed: str) -> None:
    assert Words(["at 0x1f2", "0x1f fade"]).anywhere(((needed,),))


def test_all_that_is_needed_stands_in_one_part_or_the_next() -> None:
    words = Words(["one", "two", "three"])
    assert words.within(((" one ", " two "), (" three ",))) == 0b111
    assert words.within(((" one ", " three "),)) == 0
    assert words.anywhere(((" one ", " three "),))
    assert words.within(((),)) == 0b111


def test_no_cause_is_lost_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Taken apart once, not for each of the logs: without the words all patterns are asked.
    monkeypatch.setattr(needed, "alternatives_of", cache(needed.alternatives_of))
    for report in reports():
        assert causes(SIGNATURES, report["log"]) == causes(UNFILTERED, report["log"])


def test_few_patterns_are_searched_for_in_a_log_that_went_well() -> None:
    words = LogText.of(BUILD.read_text(encoding="utf-8")).words
    asked = [each.id for each in SIGNATURES if words.anywhere(each.needs)]
    assert len(asked) <= len(SIGNATURES) / 8, asked
