"""Each target, on as many inputs as the profile says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.fuzz import PROFILE, Target
from tests.fuzz.bounds import TooSlow, faults, processor_time
from tests.fuzz.registry import OPEN, TARGETS

PHASES = (Phase.reuse, Phase.generate, Phase.shrink)
PROFILES: dict[str, dict[str, Any]] = {
    # The same inputs each time: what is red is so because of a change.
    "short": {"derandomize": True, "database": None},
    "long": {"database": DirectoryBasedExampleDatabase(".hypothesis")},
}
LONGEST_ERROR = 100_000


def judge(target: Target, data: Any, folder: Path) -> None:
    """Raises AssertionError, TooSlow, or what the reader must not raise."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with processor_time(target.limit_s):
            value = target.read(data, folder)
    except target.errors as error:
        text = str(error)
        assert text and len(text) < LONGEST_ERROR
        assert all(line.isprintable() for line in text.split("\n")), f"an error says {text!r:.300}"
        return
    unclean = list(faults(value, printable=target.printable))
    assert not unclean, unclean[:5]


def verdict(target: Target, data: Any, folder: Path) -> str:
    """What is wrong with one input; "": nothing."""
    try:
        judge(target, data, folder)
    except (Exception, TooSlow) as error:
        return f"{data!r:.120}: {type(error).__name__}: {error!s:.300}"
    return ""


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(
            target,
            id=target.name,
            marks=[pytest.mark.xfail(reason=OPEN[target.name])] if target.name in OPEN else [],
        )
        for target in TARGETS
    ],
)
def test_reader(
    target: Target, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, count = tmp_path / "own", len(target.known)
    unclean = [found for data in target.known if (found := verdict(target, data, folder))]
    assert not unclean, "\n".join(unclean)

    @settings(
        max_examples=target.examples,
        deadline=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
        **PROFILES[PROFILE],
    )
    @given(target.inputs)
    def fuzz(data: Any) -> None:
        nonlocal count
        count += 1
        judge(target, data, folder)

    try:
        fuzz()
    finally:
        record_property("inputs", count)
