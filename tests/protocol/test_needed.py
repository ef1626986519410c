"""The words that a pattern can't do without: what is not searched for would not be found either."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from llamafleet.protocol import diagnose, needed
from llamafleet.protocol.diagnose import causes, family_of, signatures_from
from llamafleet.protocol.log_text import LogText
from llamafleet.protocol.needed import Needs, holds, needs_of, vocabulary
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
        assert holds(signature.needs, vocabulary(LogText.of(row["sample"]).joined)), row["id"]


def test_no_cause_is_lost_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Taken apart once, not for each of the logs: without the words all patterns are asked.
    monkeypatch.setattr(diagnose, "alternatives_of", cache(needed.alternatives_of))
    for report in reports():
        assert causes(SIGNATURES, report["log"]) == causes(UNFILTERED, report["log"])


def test_few_patterns_are_searched_for_in_a_log_that_went_well() -> None:
    words = vocabulary(LogText.of(BUILD.read_text(encoding="utf-8")).joined)
    asked = [each.id for each in SIGNATURES if holds(each.needs, words)]
    assert len(asked) <= len(SIGNATURES) / 8, asked
