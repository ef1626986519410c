"""Every known failure is recognised by its own entry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamafleet import zipapps
from llamafleet.onhost import diagnose

ROWS = zipapps.failures()
SIGNATURES = zipapps.signatures()


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_sample_is_matched_by_its_own_entry_first(row: dict[str, str]) -> None:
    match = diagnose.diagnose(f"a line before\n{row['sample']}\na line after\n", SIGNATURES)
    assert match is not None
    assert match.id == row["id"]


def test_ids_are_unique() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_an_ordinary_build_matches_nothing() -> None:
    log = (Path(__file__).parent / "data" / "build-cpu.log").read_text(encoding="utf-8")
    match = diagnose.diagnose(log, SIGNATURES)
    assert match is None


@pytest.mark.parametrize(
    ("particular", "general"),
    [
        ("unsupported-gnu-version", "cuda-compiler-id-failed"),
        ("glibc-241-math", "cuda-compiler-id-failed"),
        ("arch-89-needs-11-8", "no-default-arch"),
        ("enospc", "wheel-build-failed"),
        ("compile-killed", "wheel-build-failed"),
        ("no-cuda-device", "cuda-init-failed"),
        ("model-truncated", "model-load-generic"),
        ("pip-hash-mismatch", "pip-network"),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_the_particular_wins_over_the_general(particular: str, general: str, swap: bool) -> None:
    sample = {row["id"]: row["sample"] for row in ROWS}
    texts = [sample[particular], sample[general]]
    match = diagnose.diagnose("\n".join(reversed(texts) if swap else texts), SIGNATURES)
    assert match is not None
    assert match.id == particular


def test_a_shadowed_entry_is_seen() -> None:
    greedy = {"id": "greedy", "stage": "link", "pattern": ".", "cause": "", "fix": "", "source": ""}
    match = diagnose.diagnose(ROWS[0]["sample"], diagnose.signatures_from([greedy, *ROWS]))
    assert match is not None
    assert match.id == "greedy"


def test_malformed_row_is_refused() -> None:
    with pytest.raises(KeyError):
        diagnose.signatures_from([{"id": "x"}])
    with pytest.raises(re.error):
        diagnose.signatures_from([ROWS[0] | {"pattern": "("}])


def test_error_lines_begin_before_the_first_error() -> None:
    noise = [f"line {n}" for n in range(100)]
    log = "\n".join([*noise, "x.cu(3): error: no such type", *noise, "ERROR: no wheel"])
    lines = diagnose.error_lines(log)
    assert lines[:3] == ["line 98", "line 99", "x.cu(3): error: no such type"]
    assert len(lines) == 20


def test_error_lines_of_a_log_without_errors_are_its_last() -> None:
    assert diagnose.error_lines("a\nb\nc", limit=2) == ["b", "c"]
    assert diagnose.error_lines("") == []
    assert diagnose.error_lines("-Werror=x\nwarning: y\nc", limit=1) == ["c"]
