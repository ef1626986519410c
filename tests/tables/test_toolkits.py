"""CUDA Toolkits, driver floors, wheels and runfiles: each once, in order, with their figures."""

from __future__ import annotations

import re

import pytest

from llamafleet.tables import NVIDIA_URL, UNVERIFIED, parse_version
from llamafleet.tables.toolkits import (
    Runfile,
    driver_floors,
    runfile,
    runfiles,
    toolkit,
    toolkits,
    wheel_toolkits,
)


def test_toolkits_are_newest_first_and_known_once() -> None:
    orders = [row.order for row in toolkits()]
    assert orders == sorted(set(orders), reverse=True)


def test_what_allows_a_toolkit_is_never_recalled() -> None:
    for row in toolkits():
        assert row.compilers_source.startswith("measured: ")
        assert row.glibc_source.startswith("measured: ")
        assert row.sm_source.startswith("measured: ")


@pytest.mark.parametrize(
    ("version", "gcc", "clang", "glibc_below"),
    [
        ("11.8", 11, 14, "2.41"),
        ("12.0", 12, 14, "2.41"),
        ("12.4", 13, 17, "2.41"),
        ("12.8", 14, 19, "2.41"),
        ("13.0", 15, 20, "2.42"),
        ("13.1", 15, 21, "2.42"),
        ("13.2", 15, 21, None),
        ("13.5", 16, 22, None),
    ],
)
def test_figures(version: str, gcc: int, clang: int, glibc_below: str | None) -> None:
    row = toolkit(version)
    assert row is not None
    assert (row.gcc, row.clang, row.glibc_below) == (gcc, clang, glibc_below)


def test_architectures() -> None:
    knows = {row.version: row.sm for row in toolkits()}
    assert all(89 in sm for sm in knows.values())
    assert 61 in knows["12.9"] and 61 not in knows["13.0"]
    assert 120 in knows["12.8"] and 120 not in knows["12.6"]


def test_an_unknown_toolkit_has_no_row() -> None:
    assert toolkit("12.7") is None


def test_driver_floors_are_newest_first() -> None:
    for versions in (
        [parse_version(floor.driver) for floor in driver_floors()],
        [parse_version(floor.cuda) for floor in driver_floors()],
    ):
        assert versions == sorted(set(versions), reverse=True)


def test_wheels_are_listed_newest_first_and_once() -> None:
    rows = [(parse_version(w.cuda), w.machine) for w in wheel_toolkits()]
    assert len(set(rows)) == len(rows)
    assert [version for version, _ in rows] == sorted((v for v, _ in rows), reverse=True)


def test_what_is_installed_is_in_the_table_of_toolkits() -> None:
    named = [row.cuda for row in (*wheel_toolkits(), *runfiles())]
    assert [cuda for cuda in named if toolkit(cuda) is None] == []


def test_no_runfile_has_the_hash_of_another_or_a_recalled_one() -> None:
    hashes = [row.sha256 for row in runfiles()]
    assert len(hashes) == len(set(hashes))
    assert [row for row in runfiles() if row.source.startswith(UNVERIFIED)] == []


@pytest.mark.parametrize("row", runfiles(), ids=lambda r: f"{r.cuda}-{r.machine}")
def test_a_runfile_is_named_as_its_row(row: Runfile) -> None:
    end = {"x86_64": "_linux.run", "aarch64": "_linux_sbsa.run"}[row.machine]
    assert row.version.rpartition(".")[0] == row.cuda
    assert re.fullmatch(rf"cuda_{re.escape(row.version)}(_[0-9.]+)?{end}", row.file)
    assert runfile(row.cuda, row.machine) == row


def test_where_a_runfile_lies() -> None:
    found = runfile("12.8", "x86_64")
    assert found is not None
    assert f"{NVIDIA_URL}/{found.path}" == (
        "https://developer.download.nvidia.com/compute/cuda/12.8.1/local_installers/"
        "cuda_12.8.1_570.124.06_linux.run"
    )
    assert found.sha256.startswith("228f6bcaf5b7618d")


def test_runfiles_that_are_not_known() -> None:
    assert runfile("12.7", "x86_64") is None
    assert runfile("12.8", "ppc64le") is None
