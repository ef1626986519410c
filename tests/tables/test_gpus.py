"""GPUs and errors of GPUs: found by device id and by name."""

from __future__ import annotations

from llamafleet.plans.driver.gpus import OFF_THE_BUS
from llamafleet.tables.gpus import gpu_by_name, gpu_by_pci, gpus, xids


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
    assert OFF_THE_BUS in xids().fatal
