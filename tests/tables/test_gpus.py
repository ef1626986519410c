"""GPUs and errors of GPUs: found by device id and by name."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llamafleet.plans.driver.kernel import OFF_THE_BUS
from llamafleet.tables.gpus import (
    RECOVERY,
    generation_of,
    generations,
    gpu_by_name,
    gpu_by_pci,
    gpus,
    telling_xids,
    xid,
    xids,
)


def test_gpus_by_device_id_and_by_name() -> None:
    by_id = gpu_by_pci("2684")
    assert by_id is not None and by_id.name == "GeForce RTX 4090" and by_id.capability == "8.9"
    assert gpu_by_name("NVIDIA GeForce RTX 4090") == by_id
    assert gpu_by_pci("2B85") == gpu_by_name("NVIDIA GeForce RTX 5090")
    assert gpu_by_pci("ffff") is None
    assert gpu_by_name("NVIDIA Quantum 1") is None


def test_no_device_id_names_two_gpus() -> None:
    ids = [device for row in gpus() for device in row.pci]
    assert len(ids) == len(set(ids))


def test_a_gpu_off_the_bus_is_fatal() -> None:
    row = xid(OFF_THE_BUS)
    assert row and row.action == "reboot"


def test_no_xid_is_in_two_rows() -> None:
    codes = [code for row in xids() for code in row.codes]
    assert len(codes) == len(set(codes)) and RECOVERY not in codes
    assert telling_xids() == {RECOVERY, *codes}


@pytest.mark.parametrize("code", [13, 31, 32, 43, 45, 68, 69])
def test_an_error_of_a_program_says_nothing_of_the_card(code: int) -> None:
    assert xid(code) is None


@pytest.mark.parametrize("code", [48, 62, 64, 74, 79, 95, 109, 119, 120, 140, 143])
def test_what_the_catalogue_resets_or_reboots_counts(code: int) -> None:
    row = xid(code)
    assert row and row.action in ("reset", "reboot")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("1c81", "Pascal"),
        ("1DB1", "Volta"),
        ("1eb8", "Turing"),
        ("20b2", "Ampere"),
        ("2236", "Ampere"),
        ("2330", "Hopper"),
        ("2684", "Ada"),
        ("2901", "Blackwell"),
        ("2b85", "Blackwell"),
    ],
)
def test_generation_by_device_id(device: str, name: str) -> None:
    found = generation_of(device)
    assert found and found.name == name


@pytest.mark.parametrize("device", ["", "0", "ffff", "zzzz", "0020"])
def test_a_device_id_of_no_generation(device: str) -> None:
    assert generation_of(device) is None


def test_no_range_lies_in_another() -> None:
    ranges = sorted(one.split("-") for row in generations() for one in row.pci)
    assert all(first <= last for first, last in ranges)
    assert all(a[1] < b[0] for a, b in pairwise(ranges))


def test_every_gpu_of_the_other_table_has_its_generation() -> None:
    assert all(generation_of(device) for row in gpus() for device in row.pci)


def test_a_generation_ends_after_it_has_begun() -> None:
    for row in generations():
        assert row.last is None or row.first <= row.last
        assert (row.open == "never") is (row.last is not None)
