"""The cards that the kernel's NVIDIA module has, and their device files: what the bus shows,
whatever NVML and CUDA say."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llamafleet.onhost.driver import root

VENDOR = "0x10de"
CLASSES = ("0x0300", "0x0302")
"""VGA and 3D controllers, as snapshot.sh looks for them."""
MAJOR = 195
"""Of the cards' device files: Documentation/admin-guide/devices.txt of Linux."""


@dataclass(frozen=True)
class Card:
    """One card that is bound to the module nvidia."""

    bus_id: str
    """As 0000:01:00.0."""
    name: str = ""
    """As the module calls it; "": it has not started the card."""
    uuid: str = ""
    minor: int | None = None
    """The N of its /dev/nvidiaN."""
    excluded: bool = False
    """The module was told to leave it alone (NVreg_ExcludedGpus)."""


def cards() -> tuple[Card, ...]:
    """Those that this host, or this container, has for its own.

    /sys shows all of the machine: in a container only a card counts whose device file is there, and
    likewise wherever it is not sure that this is the machine itself.
    """
    found = [
        _card(device.name)
        for device in sorted((root() / "sys/bus/pci/devices").glob("*"))
        if _bound(device)
    ]
    if _is_machine():
        return tuple(found)
    return tuple(card for card in found if card.minor is not None and node(card.minor).exists())


def node(minor: int) -> Path:
    return root() / f"dev/nvidia{minor}"


UNIT = "systemctl show -p DevicePolicy -p DeviceAllow llamafleet-verify.service"


def closed(card: Card) -> tuple[str, str] | None:
    """Why this process can't use the card's device file, and what to do; None: it can, as far as
    that is known."""
    if card.minor is None or not (problem := node_problem(card.minor)):
        return None
    file, make = f"/dev/{node(card.minor).name}", f"sudo nvidia-modprobe -c {card.minor}"
    # "Operation not permitted" is a cgroup's word, "Permission denied" that of owner and mode.
    advice = {
        "Operation not permitted": f"{UNIT}; a container: start it with that GPU",
        "No such file or directory": make,
    }
    return problem, advice.get(problem.rpartition(": ")[2], f"ls -l {file}; sudo rm {file}; {make}")


def node_problem(minor: int) -> str:
    """Why this process can't open the card's device file; "": it can.

    Mode, owner and cgroup (DeviceAllow= of a unit) all show here and nowhere else.
    """
    path = node(minor)
    problem, found = _opened(path)
    if not problem and found != os.makedev(MAJOR, minor):
        return f"/dev/{path.name} is the device {os.major(found)}:{os.minor(found)}"
    return problem


def memory_problem() -> str:
    """Why this process can't open what CUDA manages memory by; "": it can.

    That is nvidia-uvm, whose number the kernel chooses at each load, or the GPU of WSL.
    """
    shared = root() / "dev/dxg"
    return _opened(shared if shared.exists() else root() / "dev/nvidia-uvm")[0]


def _opened(path: Path) -> tuple[str, int]:
    """(why it can't be opened, or "", and the number of its device)."""
    try:
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return "", os.fstat(opened).st_rdev
        finally:
            os.close(opened)
    except OSError as error:
        return f"/dev/{path.name} can't be opened: {error.strerror}", 0


def _bound(device: Path) -> bool:
    """A display controller of NVIDIA that the module has; no function of one that is handed out to
    a virtual machine."""
    virtual = (device / "physfn").is_symlink()
    ours = _first(device / "vendor") == VENDOR and _first(device / "class")[:6] in CLASSES
    try:
        driver = (device / "driver").readlink()
    except OSError:
        return False
    return ours and not virtual and driver.name == "nvidia"


def _card(address: str) -> Card:
    told = _information(root() / "proc/driver/nvidia/gpus" / address / "information")
    uuid, minor = told.get("GPU UUID", ""), told.get("Device Minor", "")
    return Card(
        bus_id=address.lower(),
        name=told.get("Model", ""),
        # Question marks in place of digits: the card has not been started.
        uuid=uuid if re.fullmatch(r"GPU-[0-9a-f-]{8,40}", uuid) else "",
        minor=int(minor) if re.fullmatch(r"[0-9]{1,3}", minor) else None,
        excluded=told.get("GPU Excluded", "") == "Yes",
    )


def _information(path: Path) -> dict[str, str]:
    """What the module tells of a card, by the words before each colon."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _is_machine() -> bool:
    """Its own systemd runs, and nothing speaks of a container."""
    marks = ("run/systemd/container", ".dockerenv", "run/.containerenv")
    return (root() / "run/systemd/system").is_dir() and not any(
        (root() / mark).exists() for mark in marks
    )


def _first(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
