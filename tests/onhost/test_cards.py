"""What the PCI bus and the kernel's module tell of cards, and what opening a device file says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafleet.onhost.cards import Card, cards, node_problem

# /proc/driver/nvidia/gpus/0000:00:06.0/information of an H200, driver 580.159.04.
INFORMATION = """\
Model: \t\t NVIDIA H200
IRQ:   \t\t 24
GPU UUID: \t GPU-{uuid}
Video BIOS: \t ??.??.??.??.??
Bus Type: \t PCIe
DMA Size: \t 52 bits
DMA Mask: \t 0xfffffffffffff
Bus Location: \t {address}
Device Minor: \t {minor}
GPU Firmware: \t 580.159.04
GPU Excluded:\t {excluded}
"""


class Bus:
    """The files of a host below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/bus/pci/devices").mkdir(parents=True)

    def machine(self) -> None:
        (self.root / "run/systemd/system").mkdir(parents=True)

    def container(self, mark: str = ".dockerenv") -> None:
        file = self.root / mark
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def card(
        self,
        address: str,
        minor: int | None = None,
        uuid: str = "aaaa0000-0000",
        *,
        driver: str = "nvidia",
        vendor: str = "0x10de",
        kind: str = "0x030200",
        excluded: str = "No",
    ) -> Path:
        device = self.root / "sys/bus/pci/devices" / address
        device.mkdir()
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
        if driver:
            (device / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
        if minor is not None:
            told = self.root / "proc/driver/nvidia/gpus" / address / "information"
            told.parent.mkdir(parents=True)
            text = INFORMATION.format(address=address, minor=minor, uuid=uuid, excluded=excluded)
            told.write_text(text)
        return device

    def node(self, minor: int) -> Path:
        file = self.root / f"dev/nvidia{minor}"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        return file


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bus:
    monkeypatch.setenv("LLAMAFLEET_ROOT", str(tmp_path))
    return Bus(tmp_path)


def found() -> list[str]:
    return [card.bus_id for card in cards()]


def test_a_card_is_told_by_bus_and_module(bus: Bus) -> None:
    bus.machine()
    bus.card("0000:00:06.0", 0)
    assert cards() == (Card("0000:00:06.0", "NVIDIA H200", "GPU-aaaa0000-0000", 0),)


def test_only_display_controllers_of_the_module_count(bus: Bus) -> None:
    bus.machine()
    bus.card("0000:01:00.0", kind="0x030000")
    bus.card("0000:01:00.1", kind="0x040300")
    bus.card("0000:02:00.0", driver="vfio-pci")
    bus.card("0000:03:00.0", driver="")
    bus.card("0000:04:00.0", vendor="0x1002", driver="amdgpu")
    handed_out = bus.card("0000:05:00.4")
    (handed_out / "physfn").symlink_to("../0000:05:00.0")
    assert found() == ["0000:01:00.0"]


def test_a_card_that_the_module_did_not_start_has_no_uuid(bus: Bus) -> None:
    bus.machine()
    bus.card("0000:01:00.0", 1, "????????-????-????-????-????????????")
    bus.card("0000:02:00.0", 2, excluded="Yes")
    first, second = cards()
    assert (first.uuid, first.minor, first.excluded, second.excluded) == ("", 1, False, True)


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv", "run/systemd/container", ""])
def test_in_a_container_only_cards_with_a_device_file_count(bus: Bus, mark: str) -> None:
    """/sys is the whole machine's. Without any mark: no systemd of its own, as under Kubernetes."""
    if mark:
        bus.machine()
        bus.container(mark)
    bus.card("0000:01:00.0", 0)
    bus.card("0000:02:00.0", 1)
    bus.card("0000:03:00.0")
    bus.node(1)
    assert found() == ["0000:02:00.0"]


def test_on_the_machine_itself_a_card_without_a_device_file_counts(bus: Bus) -> None:
    bus.machine()
    bus.card("0000:01:00.0", 0)
    assert found() == ["0000:01:00.0"]


def test_no_bus_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFLEET_ROOT", str(tmp_path / "none"))
    assert cards() == ()


def test_a_device_file_is_opened_to_know(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_problem(0) == "/dev/nvidia0 can't be opened: No such file or directory"
    bus.node(0)
    assert node_problem(0) == "/dev/nvidia0 is the device 0:0"
    null = bus.root / "dev/nvidia1"
    null.symlink_to("/dev/null")
    assert node_problem(1) == "/dev/nvidia1 is the device 1:3", "as one that was bound over it"
    own = os.stat_result((0o20666, 1, 1, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(195, 0)})
    monkeypatch.setattr(os, "fstat", lambda _: own)
    assert node_problem(0) == ""


def test_what_a_cgroup_forbids_is_not_permitted(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.node(0)

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    assert node_problem(0) == "/dev/nvidia0 can't be opened: Operation not permitted"
