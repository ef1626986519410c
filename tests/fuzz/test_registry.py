"""Every reader has a target, every target a reader; and the bounds are bounds."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import llamafleet
from tests.fuzz.bounds import TooSlow, faults, processor_time
from tests.fuzz.registry import ELSEWHERE, OPEN, READ, TARGETS

PACKAGE = Path(llamafleet.__file__).parent


def modules() -> dict[str, str]:
    """Text of each module of the package, by its name below it."""
    named = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts).removesuffix(".__init__")] = path.read_text("utf-8")
    return named


def test_every_module_that_reads_has_a_target_or_a_reason() -> None:
    reading = {name for name, text in modules().items() if re.search(READ, text)}
    covered = {reader.split(":")[0] for target in TARGETS for reader in target.readers}
    assert reading - covered - set(ELSEWHERE) == set(), "give its readers a target in tests/fuzz"
    assert set(ELSEWHERE) <= reading - covered, "a reason for nothing"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_readers_of_a_target_are_there(target: object) -> None:
    for reader in target.readers:  # type: ignore[attr-defined]
        module, name = reader.split(":")
        assert hasattr(import_module(f"llamafleet.{module}"), name), reader


def test_names_are_told_apart() -> None:
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names)
    assert set(OPEN) <= set(names)


def test_a_reader_that_does_not_end_is_ended_wherever_it_is() -> None:
    begun = time.process_time()
    with pytest.raises(TooSlow), processor_time(0.1):
        re.search(r"(a+)+b", "a" * 64)
    assert time.process_time() - begun < 5


@dataclass
class Told:
    name: str
    sizes: tuple[int, ...]
    note: str | None = None


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (Told("a", (1, 2)), ""),
        (Told("a\x1b[2J", ()), "it.name: holds '\\x1b'"),
        (Told("a", (1, 2), "\ud800"), "it.note: holds"),
        (Told(5, ()), "it.name: 5 is no"),  # type: ignore[arg-type]
        (Told("a", [1]), "it.sizes: [1] is no"),  # type: ignore[arg-type]
        (Told("a", (1, True)), "it.sizes: (1, True) is no"),
        ({"a": [float("nan")]}, "it[0][0]: nan"),
        ({"a\n": 1}, "it's keys[0]: holds '\\n'"),
        ([2**63], "it[0]: a number of 64 bits"),
        ("a" * 2**21, "it: a text of"),
    ],
)
def test_what_is_wrong_with_a_value_is_found(value: object, fault: str) -> None:
    found = list(faults(value))
    assert bool(found) == bool(fault)
    assert not fault or found[0].startswith(fault), found
