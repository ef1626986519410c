"""The figures of `python -m tests.mutants`, and a mutant of each outcome's kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOMS, wilson
from tests.mutants.make import ROOT, Mutant, mutate


def test_the_interval_of_a_share() -> None:
    """Known: 90 of 100."""
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    low, high = wilson(100, 100)
    assert 0.96 < low < 0.97 and high == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "text_alone"),
    [
        ('-    return "a word"\n+    return "XXa wordXX"', True),
        ('-    return "a word"\n+    return "A WORD"', True),
        ('-    return "a word"\n+    return None', False),
        ("-    return size > 1\n+    return size > 2", False),
    ],
)
def test_a_change_of_letters_is_told_from_others(change: str, text_alone: bool) -> None:
    assert Mutant("m", change).text_alone is text_alone


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_and_its_tests_are_there(room: str) -> None:
    assert list((ROOT / ROOMS[room].folder).glob("*.py"))
    assert all((ROOT / test.removeprefix("--ignore=")).exists() for test in ROOMS[room].tests)


def test_a_mutant_is_one_change_of_one_function(tmp_path: Path) -> None:
    folder = "llamafleet/protocol"
    (tmp_path / folder).mkdir(parents=True)
    made = mutate(tmp_path, folder)
    assert len({mutant.name for mutant in made}) == len(made) > 100
    name = "llamafleet.protocol.fingerprint.x__text__mutmut_1"
    (one,) = (mutant.change for mutant in made if mutant.name == name)
    assert one == "-    if value is None:\n+    if value is not None:"
    assert "is not None" in (tmp_path / folder / "fingerprint.py").read_text()
