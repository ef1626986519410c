"""The kernel's log: messages joined whatever their prefix, of which card each is, what it means."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from llamafleet.facts.host import Driver, HostSnapshot
from llamafleet.plans.driver.kernel import Log, place_of, read_log
from tests.plans.hosts import GPU_HOST

FALLEN = (
    "NVRM: The NVIDIA GPU 0000:01:00.0",
    "NVRM: (PCI ID: 10de:139b) installed in this system has",
    "NVRM: fallen off the bus and is not responding to commands.",
)
"""In linux-surface/linux-surface#376."""
JOINED = (
    "NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:139b) installed in this system has "
    "fallen off the bus and is not responding to commands."
)


def log_of(*lines: str, uptime_s: int | None = None) -> Log:
    found: HostSnapshot = replace(GPU_HOST, uptime_s=uptime_s, driver=Driver(kernel_log=lines))
    return read_log(found)


PREFIXES = [
    "",
    "[    6.530000] ",
    "[Thu Nov 26 07:00:00 2026] ",
    "[  +0.000421] ",
    "<4>[    6.530000] ",
    "kernel: ",
    "Nov 26 07:00:00 host kernel: ",
    "Nov 26 07:00:00 host kernel: [    6.530000] ",
    "2026-11-26T07:00:00.123456+00:00 host kernel: ",
    "[    6.530000] host kernel: ",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_on_each_line(prefix: str) -> None:
    lines = (*FALLEN, "nvidia: probe of 0000:01:00.0 failed with error -1")
    messages = log_of(*(prefix + line for line in lines)).messages
    assert messages[0].text == JOINED and len(messages) == 2
    assert [one.place for one in messages] == ["0000:01:00", "0000:01:00"]
    assert messages[0].reason == "fallen off the bus"


@pytest.mark.parametrize("prefix", PREFIXES[1:])
def test_a_prefix_on_the_first_line(prefix: str) -> None:
    indented = (" " * 15 + line for line in FALLEN[1:])
    messages = log_of(prefix + FALLEN[0], *indented, prefix + "NVRM: No NVIDIA GPU found.").messages
    assert [one.text for one in messages] == [JOINED, "NVRM: No NVIDIA GPU found."]


def test_messages_of_two_cards_stay_apart() -> None:
    other = tuple(line.replace("01:00", "41:00") for line in FALLEN)
    messages = log_of(*FALLEN, *other).messages
    assert [one.place for one in messages] == ["0000:01:00", "0000:41:00"]


def test_a_message_without_its_end_takes_no_other_in() -> None:
    """The windows of the script may cut one."""
    xid = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    messages = log_of(FALLEN[0], FALLEN[1], xid).messages
    assert messages[-1].code == 79 and len(messages) == 2


@pytest.mark.parametrize(
    ("line", "place", "code"),
    [
        ("NVRM: Xid (PCI:0000:01:00): 79, pid=1", "0000:01:00", 79),
        ("NVRM: Xid (0000:01:00): 79, pid=1", "0000:01:00", 79),
        ("NVRM: Xid (PCI:0008:01:00): 154, GPU", "0008:01:00", 154),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:07): 43, pid=1", "0000:01:00", 43),
        ("NVRM: GPU at 0000:01:00.0 has fallen off the bus.", "0000:01:00", 0),
        ("NVRM: BAR1 is 0M @ 0x0 (PCI:0000:0a:00.0)", "0000:0a:00", 0),
        ("NVRM: RmInitAdapter failed! (0x26:0xffff:1375)", "", 0),
        ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal", "0000:c1:00", 0),
    ],
)
def test_which_card_and_which_xid(line: str, place: str, code: int) -> None:
    message = log_of(line).messages[0]
    assert (message.place, message.code) == (place, code)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("0000:01:00.0", "0000:01:00"),
        ("00000000:C1:00.0", "0000:c1:00"),
        ("0000000F:01:00.0", "000f:01:00"),
        ("10000:01:00.0", "10000:01:00"),
        ("01:00.0", "0000:01:00"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_the_address_of_a_card(address: str, place: str) -> None:
    assert place_of(address) == place


def test_the_kind_of_the_module_that_was_loaded_last() -> None:
    closed = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.105.08"
    opened = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.105.08"
    assert log_of(closed, opened).open_module is True
    assert log_of(opened, closed).open_module is False
    assert log_of(FALLEN[0]).open_module is None


def test_a_long_log_takes_no_time() -> None:
    lines = tuple(f"[ {n}.0] NVRM: The NVIDIA GPU 0000:{n % 255:02x}:00.0 x" for n in range(5000))
    begin = time.process_time()
    log = log_of(*lines)
    assert not any(log.fatal(place) or log.why_not_started(place, False) for place in log.places)
    assert time.process_time() - begin < 2
