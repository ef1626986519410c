"""The tables: complete, every figure with its source, every pin with its hash."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from llamafleet import tables

SOURCES = ("measured: ", "looked up: ", "UNVERIFIED")


def test_toolkits_are_newest_first_and_known_once() -> None:
    orders = [row.order for row in tables.toolkits()]
    assert orders == sorted(set(orders), reverse=True)
    assert {"11.8", "12.8", "13.0", "13.5"} <= {row.version for row in tables.toolkits()}


def test_every_figure_says_where_it_is_from() -> None:
    said = [s for r in tables.toolkits() for s in (r.compilers_source, r.glibc_source, r.sm_source)]
    said += [floor.source for floor in tables.driver_floors()]
    said += [wheel.source for wheel in tables.wheel_toolkits()]
    said += [tables.xids().fatal_source, tables.xids().recent_source]
    assert all(s.startswith(SOURCES) for s in said)
    assert all(g.source.startswith(("looked up", "UNVERIFIED")) for g in tables.gpus())


def test_what_allows_a_toolkit_is_never_recalled() -> None:
    for row in tables.toolkits():
        assert row.compilers_source.startswith("measured: ")
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
    row = tables.toolkit(version)
    assert row is not None
    assert (row.gcc, row.clang, row.glibc_below) == (gcc, clang, glibc_below)


def test_architectures() -> None:
    knows = {row.version: row.sm for row in tables.toolkits()}
    assert all(89 in sm for sm in knows.values())
    assert 61 in knows["12.9"] and 61 not in knows["13.0"]
    assert 120 in knows["12.8"] and 120 not in knows["12.6"]


def test_an_unknown_toolkit_has_no_row() -> None:
    assert tables.toolkit("12.7") is None


def test_driver_floors_are_newest_first() -> None:
    versions = [tables.parse_version(f.driver) for f in tables.driver_floors()]
    assert versions == sorted(versions, reverse=True)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("580.65.06", (580, 65, 6)),
        ("13.0", (13, 0)),
        ("3.14.0rc1", (3, 14, 0)),
        ("N/A", ()),
        ("", ()),
    ],
)
def test_parse_version(text: str, version: tuple[int, ...]) -> None:
    assert tables.parse_version(text) == version


def test_gpus_by_device_id_and_by_name() -> None:
    by_id = tables.gpu_by_pci("2684")
    assert by_id is not None and by_id.name == "GeForce RTX 4090" and by_id.capability == "8.9"
    assert tables.gpu_by_name("NVIDIA GeForce RTX 4090") == by_id
    assert tables.gpu_by_pci("2B85") == tables.gpu_by_name("NVIDIA GeForce RTX 5090")
    assert tables.gpu_by_pci("ffff") is None
    assert tables.gpu_by_name("NVIDIA Quantum 1") is None


def test_no_device_id_names_two_gpus() -> None:
    ids = [device for row in tables.gpus() for device in row.pci]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[0-9a-f]{4}", device) for device in ids)


PINNED = (
    "host-requirements.txt",
    *{f"toolkit-wheels-{w.cuda}.txt" for w in tables.wheel_toolkits()},
)


@pytest.mark.parametrize("name", sorted(PINNED))
def test_every_pin_is_exact_and_has_hashes_and_no_other_index(name: str) -> None:
    lines = [line for line in tables.text(name).splitlines() if line and line[0] != "#"]
    pins = [line for line in lines if line[0] != " "]
    assert all(re.match(r"[a-z0-9-]+==\S+ (; .+ )?\\$", pin) for pin in pins)
    hashes = [line for line in lines if line[0] == " "]
    assert all(re.match(r"    --hash=sha256:[0-9a-f]{64}( \\)?$", h) for h in hashes)
    for pin in pins:
        assert lines[lines.index(pin) + 1].startswith("    --hash=")


def test_the_build_backend_and_the_run_time_packages_are_pinned() -> None:
    pinned = re.findall(r"^([a-z0-9-]+)==", tables.text("host-requirements.txt"), re.M)
    assert {"scikit-build-core", "cmake", "ninja", "numpy", "gguf", "nvidia-ml-py"} <= set(pinned)
    assert {"jinja2", "diskcache", "typing-extensions", "pathspec"} <= set(pinned)


@pytest.mark.parametrize("wheel", tables.wheel_toolkits(), ids=lambda w: f"{w.cuda}-{w.machine}")
def test_a_toolkit_of_wheels_has_its_pins(wheel: tables.WheelToolkit) -> None:
    text = tables.text(f"toolkit-wheels-{wheel.cuda}.txt")
    pins = [Requirement(line) for line in re.findall(r"^([a-z].*?) \\$", text, re.M)]
    host = {"sys_platform": "linux", "platform_machine": wheel.machine}
    # pip passes over a pin that its marker excludes, without a word.
    assert all(pin.marker is None or pin.marker.evaluate(host) for pin in pins)
    versions = {pin.name: str(pin.specifier) for pin in pins}
    # cuBLAS counts by itself, and so does CCCL.
    apart = {"nvidia-cublas", "nvidia-cuda-cccl"}
    same = {
        "cuda-toolkit",
        "nvidia-nvvm",
        *(f"nvidia-cuda-{p}" for p in ("nvcc", "crt", "runtime")),
    }
    assert versions.keys() == apart | same
    assert all(versions[name].startswith(f"=={wheel.cuda}.") for name in same)


def test_wheels_are_listed_newest_first_and_once() -> None:
    rows = [(tables.parse_version(w.cuda), w.machine) for w in tables.wheel_toolkits()]
    assert len(set(rows)) == len(rows)
    assert [version for version, _ in rows] == sorted((v for v, _ in rows), reverse=True)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        tables.text("toolkit-wheels-12.8.txt")
