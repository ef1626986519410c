"""Every known failure is recognised by its own entry."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from llamafleet.protocol.diagnose import diagnose, error_lines, signatures_from
from llamafleet.tables import failures

STAGES = get_args(failures.Stage)
DATA = Path(__file__).parents[1] / "onhost" / "data"
ROWS = failures.rows()
SIGNATURES = signatures_from(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_sample_is_matched_by_its_own_entry_first(row: dict[str, str]) -> None:
    match = diagnose(SIGNATURES, f"a line before\n{row['sample']}\na line after\n")
    assert match is not None
    assert match.id == row["id"]


def test_ids_are_unique() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_an_ordinary_build_matches_nothing() -> None:
    log = (DATA / "build-cpu.log").read_text(encoding="utf-8")
    match = diagnose(SIGNATURES, log)
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
    match = diagnose(SIGNATURES, "\n".join(reversed(texts) if swap else texts))
    assert match is not None
    assert match.id == particular


REPORTED = {
    # With some 70 lines of `nvcc -v` between them.
    "glibc-241-math": """\
    Compiling the CUDA compiler identification source file
    "CMakeCUDACompilerId.cu" failed.
    /usr/include/x86_64-linux-gnu/bits/mathcalls.h(206): error: exception
    specification is incompatible with that of previous function "rsqrtf"
""",
    "glibcxx": "libstdc++.so.6: version `CXXABI_1.3.15' not found (required by libllama.so)\n",
    "no-generator": "FileNotFoundError: [Errno 2] No such file or directory: 'ninja'\n",
    "": """\
fatal: detected dubious ownership in repository at '/src/vendor/llama.cpp'
CMake Warning: LLAMA_CUDA is deprecated, use GGML_CUDA instead
CMake Warning: GGML_CUDA_FA_ALL_QUANTS is deprecated, use GGML_CUDA_FA_QUANTS=all instead
warning: variable 'x' set but not used [-Wunused-but-set-variable]
WARNING: Retrying (Retry(total=4, connect=None, read=None)) after connection broken
""",
}
"""What reports show, by what it is; "": harmless beside any cause."""


@pytest.mark.parametrize("id", REPORTED)
def test_words_of_reports_amid_a_real_log(id: str) -> None:
    lines = (DATA / "build-cpu.log").read_text(encoding="utf-8").splitlines(keepends=True)
    match = diagnose(SIGNATURES, "".join([*lines[:200], REPORTED[id], *lines[200:]]))
    assert (match.id if match else "") == id


def test_only_the_stages_that_are_asked_for() -> None:
    samples = {row["stage"]: row["sample"] for row in ROWS}
    for stage in STAGES:
        asked = [diagnose(SIGNATURES, text, stages=(stage,)) for text in samples.values()]
        assert {match.stage for match in asked if match} == {stage}


def test_the_narrow_text_is_asked_before_the_wide_but_a_cause_before_its_consequence() -> None:
    sample = {row["id"]: row["sample"] for row in ROWS}
    cause, other = sample["enospc"], sample["python-h"]
    for texts, id in [
        ((sample["wheel-build-failed"], cause), "enospc"),
        ((other, cause), "python-h"),
        (("nothing", cause), "enospc"),
    ]:
        match = diagnose(SIGNATURES, *texts)
        assert match and match.id == id
    assert diagnose(SIGNATURES) is None and diagnose(SIGNATURES, "nothing") is None


def test_a_match_says_what_it_is_in_a_sentence() -> None:
    match = diagnose(SIGNATURES, "Failed to initialize NVML: Driver/library version mismatch")
    assert str(match) == (
        "known as nvml-driver-library-mismatch: The driver's libraries were upgraded while the old "
        "kernel module stayed loaded"
    )


def test_a_shadowed_entry_is_seen() -> None:
    greedy = {"id": "greedy", "stage": "link", "pattern": ".", "cause": "", "fix": "", "source": ""}
    match = diagnose(signatures_from([greedy, *ROWS]), ROWS[0]["sample"])
    assert match is not None
    assert match.id == "greedy"


def test_malformed_row_is_refused() -> None:
    with pytest.raises(KeyError):
        signatures_from([{"id": "x"}])


def test_error_lines_begin_before_the_first_error() -> None:
    noise = [f"line {n}" for n in range(100)]
    log = "\n".join([*noise, "x.cu(3): error: no such type", *noise, "ERROR: no wheel"])
    lines = error_lines(log)
    assert lines[:3] == ["line 98", "line 99", "x.cu(3): error: no such type"]
    assert len(lines) == 20


def test_error_lines_of_a_log_without_errors_are_its_last() -> None:
    assert error_lines("a\nb\nc", limit=2) == ["b", "c"]
    assert error_lines("") == []
    assert error_lines("-Werror=x\nwarning: y\nc", limit=1) == ["c"]
