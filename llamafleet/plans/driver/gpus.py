"""Single GPUs: how a card is called, and which ones are gone, ill, refused or closed to CUDA.

A card counts where the bus, the driver or the kernel's log knows it and nobody else was given it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from llamafleet.facts.host import Gpu, HostSnapshot, PciGpu
from llamafleet.facts.smi import BUS_ID, COMPLAINT
from llamafleet.plans.driver.cure import Kind, too_old_branch
from llamafleet.plans.driver.facts import package_versions
from llamafleet.plans.driver.kernel import Log, Message, Reason, place_of, read_log
from llamafleet.tables import parse_version
from llamafleet.tables.gpus import Generation, generation_of, generations, gpu_by_pci

SickState = Literal[
    "GPU lost",
    "open module required",
    "GPU not supported",
    "vGPU guest driver needed",
    "GPU not started",
    "fabric not ready",
    "closed to CUDA",
]
PROPRIETARY = re.compile(
    r"nvidia-(?:driver|dkms)-\d{3}(?:-server)?|linux-modules-nvidia-\d{3}(?:-server)?-(?!open).+"
    r"|nvidia-kernel-dkms|kmod-nvidia-latest-dkms|nvidia-dkms|nvidia-lts"
)
"""Packages of the proprietary module: of Ubuntu, Debian, NVIDIA's RPMs and Arch. RPM Fusion's
akmod-nvidia builds either."""
FABRIC_READY = ("Completed, Success", "Completed, N/A", "Completed")
FOR_THE_DISPLAY = ("no GSP", "legacy", "not supported")
"""Reasons for which an old card may stay without a driver, beside GPUs that work."""
BY_CHOICE = (
    *("open module required", "no GSP", "legacy", "not supported", "guest driver"),
    "data centers only",
    *("no memory region", "no firmware"),
)
"""Reasons that are not the card's: they say more than an error that they led to."""
SXID = re.compile(r"SXid \([^)]{1,40}\): \d{1,6}, Fatal\b")
MOST_NOTES = 4
"""Of NVSwitches: one fault makes many."""
NO_MAPPING = "(0x22:0x56:"
"""RmInitAdapter's code where a Blackwell lacks the open module: open-gpu-kernel-modules#862."""
DRIVER_AT_REST = ("", "None")
"""Recovery actions that ask for nothing."""


@dataclass(frozen=True)
class Sick:
    """A card that can't be used, why, and what kind of cure it needs."""

    address: str
    """As 0000:01:00.0; "": the whole host."""
    state: SickState
    found: str
    expected: str
    cure: Kind
    about: str = ""
    """What the cure asks for: the card's address, a branch, ..."""


def describe(card: PciGpu) -> str:
    """As "GeForce RTX 4090 (10de:2684 at 0000:01:00.0)"."""
    row = gpu_by_pci(card.device_id)
    name = row.name if row else "NVIDIA GPU"
    id = f"10de:{card.device_id} " if card.device_id else ""
    return f"{name} ({id}at {card.address})"


def full_address(address: str) -> str:
    """As 0000:01:00.0, whatever number of digits the domain has."""
    return f"{place_of(address)}.{address.rpartition('.')[2]}"


def unseen_cards(snapshot: HostSnapshot) -> tuple[str, ...]:
    """Cards on the bus that the driver does not show: spared for others, or broken."""
    shown = _places(snapshot)
    return tuple(
        f"the driver does not show {describe(card)}, bound to {card.kernel_driver or 'nothing'}"
        for card in snapshot.pci_gpus
        if place_of(card.address) not in shown
    )


def old_xids(snapshot: HostSnapshot) -> tuple[str, ...]:
    """Errors that a reset or a new start of the driver has followed, and those of worn memory."""
    log = read_log(snapshot)
    notes = []
    for gpu in _whole_gpus(snapshot):
        place = place_of(gpu.pci_address)
        notes += [
            f"Xid {fatal.code} earlier in this boot, the GPU works now: {fatal.message.shown}"
            for fatal in (log.past(place) if not _ill(gpu, log) else ())
        ]
        notes += [f"GPU {gpu.pci_address}: {one.shown}" for one in log.watched(place)]
        notes += [f"GPU {gpu.pci_address}: {warning}" for warning in gpu.warnings]
    notes += [f"NVSwitch: {one.shown}" for one in log.messages if SXID.search(one.text)][
        :MOST_NOTES
    ]
    return tuple(dict.fromkeys(notes))


def _cards(snapshot: HostSnapshot, log: Log) -> Iterator[PciGpu]:
    """Those on the bus, and those of which only the kernel's log still knows."""
    yield from snapshot.pci_gpus
    # The log is the whole machine's: a container sees the errors of GPUs that are not its own.
    if snapshot.container and snapshot.gpus:
        return
    known = _places(snapshot) | {place_of(card.address) for card in snapshot.pci_gpus}
    for place in log.places:
        told = log.fatal(place) or log.why_not_started(place, alone=False)
        if place not in known and told and not log.passed_on(place):
            yield PciGpu(f"{place}.0", log.device_id(place), None)


def sick_cards(snapshot: HostSnapshot) -> tuple[Sick, ...]:
    """Every card that is not well, one entry each, the worst kind first."""
    log = read_log(snapshot)
    found = [*_fabric(snapshot), *_unnamed(snapshot, log)]
    for gpu in _whole_gpus(snapshot):
        found += [sick] if (sick := _listed(gpu, log)) else []
    shown = _places(snapshot)
    lacking = [card for card in _cards(snapshot, log) if place_of(card.address) not in shown]
    for card in lacking:
        if _ours(snapshot, card):
            found += [sick] if (sick := _missing(snapshot, card, log, len(lacking) == 1)) else []
    found += _nameless(snapshot) if not found else []
    order = get_args(SickState)
    return tuple(sorted(found, key=lambda sick: order.index(sick.state)))


def _whole_gpus(snapshot: HostSnapshot) -> Iterator[Gpu]:
    """One for each card: the instances of a divided GPU are one card."""
    for gpu in {gpu.pci_address: gpu for gpu in snapshot.gpus}.values():
        yield replace(gpu, pci_address=full_address(gpu.pci_address))


def _places(snapshot: HostSnapshot) -> frozenset[str]:
    """Of the GPUs that nvidia-smi lists."""
    return frozenset(place_of(gpu.pci_address) for gpu in snapshot.gpus)


def _ours(snapshot: HostSnapshot, card: PciGpu) -> bool:
    """Nobody else has it: no virtual machine, no other driver, no container beside this one."""
    if card.kernel_driver not in (None, "nvidia") or card.excluded:
        return False
    # A container sees the whole machine's bus. Which cards were given to it its nodes tell.
    return not snapshot.container or card.given is True or not snapshot.gpus


def _listed(gpu: Gpu, log: Log) -> Sick | None:
    """A GPU in nvidia-smi's list that is not to be trusted, or that CUDA can't use."""
    ill = _ill(gpu, log)
    if ill:
        return ill
    if gpu.compute_mode == "Prohibited":
        return Sick(
            gpu.pci_address,
            "closed to CUDA",
            f"GPU {gpu.pci_address} is in compute mode Prohibited",
            "compute mode Default, in which programs can use the GPU",
            "compute-mode",
            gpu.pci_address,
        )
    if gpu.divided:
        return Sick(
            gpu.pci_address,
            "closed to CUDA",
            f"GPU {gpu.pci_address} is divided (MIG) and has no instance",
            "at least one compute instance, or MIG off (sudo nvidia-smi -mig 0)",
            "divide-gpu",
            gpu.pci_address,
        )
    return None


_ALL_LISTED = "every GPU on the bus listed by nvidia-smi"
_WELL = "figures in every field, and no error that asks for a reset"


def _ill(gpu: Gpu, log: Log) -> Sick | None:
    fatal = log.fatal(place_of(gpu.pci_address))
    at_rest = gpu.recovery in DRIVER_AT_REST
    if gpu.recovery == "None" and log.asked(place_of(gpu.pci_address)):
        # The driver has asked for something and asks for it no longer.
        fatal = None
    if not (fatal or gpu.faults or not at_rest):
        return None
    said = [*gpu.faults[:3]]
    if not at_rest:
        said.append(f"the driver's recovery action: {gpu.recovery}")
    if fatal:
        said.append(
            f"Xid {fatal.code} in the kernel log, after which the GPU needs a {fatal.action}: "
            f"{fatal.message.shown}"
        )
    lost = any("is lost" in fault for fault in gpu.faults) or bool(fatal and fatal.code == 79)
    reboot = gpu.recovery == "Reboot" or bool(fatal and fatal.action == "reboot")
    kind: Kind = "power-cycle" if lost else "reboot" if reboot else "reset-gpu"
    found = f"GPU {gpu.pci_address} is listed and not well: {'; '.join(said)}"
    return Sick(gpu.pci_address, "GPU lost", found, _WELL, kind, gpu.pci_address)


def _missing(snapshot: HostSnapshot, card: PciGpu, log: Log, alone: bool) -> Sick | None:
    """A card of this host that nvidia-smi does not list."""
    others = bool(snapshot.gpus)
    name = describe(card)
    if card.unreadable:
        found = f"the configuration space of {name} reads ff: it does not answer on the bus"
        return _lost(card, found)
    fatal = log.fatal(place_of(card.address))
    why = log.why_not_started(place_of(card.address), alone)
    if why and why[0] == "legacy" and not _meant(card, why[1]):
        why = None
    if fatal and not (why and why[0] in BY_CHOICE):
        said = f"Xid {fatal.code} in the kernel log: {fatal.message.shown}"
        kind: Kind = "reset-gpu" if fatal.action == "reset" else "power-cycle"
        where = "is not listed by nvidia-smi"
        if card not in snapshot.pci_gpus:
            where = "is no longer on the bus"
        return _lost(card, f"{name} {where}; {said}", kind)
    # A card for the display alone may stay without a driver, beside GPUs that work.
    spared = others and not card.kernel_driver and not _current(card)
    if why and not (spared and why[0] in FOR_THE_DISPLAY):
        return _refused(snapshot, card, *why)
    said = next((one for one in _complaints(snapshot) if place_of(card.address) in one.lower()), "")
    if said:
        reset: Kind = "reset-gpu" if "requires reset" in said else "power-cycle"
        return _lost(card, f"nvidia-smi: {said}", reset)
    if not others:
        return _misfit(snapshot, card)
    if _otherwise_numbered(snapshot):
        return None
    if card.kernel_driver == "nvidia":
        return _lost(card, f"{name} is bound to nvidia and nvidia-smi does not list it")
    return _misfit(snapshot, card) or _not_taken(card) if _current(card) else None


def _current(card: PciGpu) -> bool:
    """Of a generation that the newest drivers know: nobody has one for the display alone."""
    generation = generation_of(card.device_id)
    return generation is not None and generation.last is None


def _not_taken(card: PciGpu) -> Sick:
    found = f"{describe(card)} is bound to nothing, beside GPUs that the driver has"
    expected = "every GPU bound to nvidia, or to the driver of a virtual machine"
    return Sick(card.address, "GPU not started", found, expected, "bind-card", card.address)


def _otherwise_numbered(snapshot: HostSnapshot) -> bool:
    """The driver shows GPUs at addresses that the bus does not have: the two can't be compared."""
    places = {place_of(card.address) for card in snapshot.pci_gpus}
    return not _places(snapshot) <= places


def _complaints(snapshot: HostSnapshot) -> tuple[str, ...]:
    driver = snapshot.driver
    said = driver.complaints or (driver.smi_error,)
    return tuple(one for one in said if COMPLAINT.search(one))


def _nameless(snapshot: HostSnapshot) -> list[Sick]:
    """nvidia-smi speaks of a card that is lost, and the bus has none at that address."""
    found = next(iter(_complaints(snapshot)), "")
    if not found:
        return []
    address = BUS_ID.search(found)
    place = f"{place_of(address[0])}.0" if address else ""
    if place and any(place_of(gpu.pci_address) == place_of(place) for gpu in snapshot.gpus):
        return []
    return [Sick(place, "GPU lost", f"nvidia-smi: {found}", _ALL_LISTED, "power-cycle", place)]


def _lost(card: PciGpu, found: str, kind: Kind = "power-cycle") -> Sick:
    return Sick(card.address, "GPU lost", found, _ALL_LISTED, kind, card.address)


def _meant(card: PciGpu, message: Message) -> bool:
    """The message names a kind of card, and no address."""
    generation = generation_of(card.device_id)
    return generation is None or (
        generation.last is not None and f"NVIDIA {generation.last}." in message.text
    )


def _refused(snapshot: HostSnapshot, card: PciGpu, reason: Reason, message: Message) -> Sick:
    """The kernel's own reason, and what follows from it for this card."""
    found = f"{describe(card)}: the kernel says: {message.shown}"
    if reason == "open module required":
        return _needs_open(card, found)
    if reason in ("no GSP", "legacy", "not supported", "guest driver", "data centers only"):
        return _unsupported(snapshot, card, reason, found)
    if reason in ("fallen off the bus", "asleep", "no power cable"):
        return _lost(card, found)
    generation = generation_of(card.device_id)
    if generation and generation.open == "must" and is_open(snapshot) is not True:
        # A card that is gone has the same code, after this word.
        gone = any("osInitNvMapping" in one.text for one in read_log(snapshot).messages)
        if is_open(snapshot) is False or (NO_MAPPING in message.text and not gone):
            return _needs_open(card, found)
    kind: Kind = "power-cycle"
    if reason == "no memory region":
        kind = "firmware-settings"
    elif reason == "no firmware":
        kind = "reinstall-driver"
    expected = "a card that the driver can start"
    return Sick(card.address, "GPU not started", found, expected, kind)


def _needs_open(card: PciGpu, found: str) -> Sick:
    expected = "the open kernel modules: from Blackwell on the others start no card"
    return Sick(card.address, "open module required", found, expected, "open-module")


def _unsupported(snapshot: HostSnapshot, card: PciGpu, reason: str, found: str) -> Sick:
    generation, branch = generation_of(card.device_id), _branch(snapshot)
    kind: Kind = "newer-branch"
    about = ""
    if reason == "guest driver" or (reason == "not supported" and _virtual(snapshot, card, branch)):
        expected = "the guest driver of the vGPU software that the host runs"
        return Sick(
            card.address, "vGPU guest driver needed", found, expected, "guest-driver", card.address
        )
    last = generation.last if generation else None
    if last and branch and branch > last:
        kind, about = "older-branch", str(last)
    elif reason == "legacy":
        kind, about = "older-branch", _legacy_branch(found)
    elif reason in ("no GSP", "data centers only"):
        kind = "proprietary-module"
    elif generation and branch and branch < generation.first:
        about = str(max(generation.first, _still_made()))
    else:
        # The generation is known to this branch and the card is not: its newest release may.
        kind = "install-driver"
    expected = "a driver that supports this card" + _range(generation)
    return Sick(card.address, "GPU not supported", found, expected, kind, about)


def too_old_cards(snapshot: HostSnapshot) -> str:
    """Names of the cards where the last driver that knows one is this old; "": there is hope."""
    rows = [(card, generation_of(card.device_id)) for card in snapshot.pci_gpus]
    ended = [card for card, row in rows if row and row.last and too_old_branch(row.last)]
    return ", ".join(map(describe, ended)) if ended and len(ended) == len(rows) else ""


def branch_for(snapshot: HostSnapshot) -> tuple[Kind, HostSnapshot, str]:
    """What `cure` takes for the newest driver that knows all the cards."""
    rows = (generation_of(card.device_id) for card in snapshot.pci_gpus)
    ends = [row.last for row in rows if row and row.last]
    if ends:
        return "older-branch", snapshot, str(min(ends))
    return "newer-branch", snapshot, str(_still_made())


def _still_made() -> int:
    """The newest branch that old cards keep: it is maintained, and package repositories have it."""
    return max(row.last for row in generations() if row.last)


def _legacy_branch(said: str) -> str:
    """As 580, of "supported through the NVIDIA 580.xx Legacy drivers"."""
    _, _, rest = said.partition("through the NVIDIA ")
    return rest.partition(".")[0]


def _range(generation: Generation | None) -> str:
    if generation is None:
        return ""
    until = f" to {generation.last}" if generation.last else " or newer"
    return f": {generation.name}, branch {generation.first}{until}"


def _virtual(snapshot: HostSnapshot, card: PciGpu, branch: int | None) -> bool:
    """The card's branch is right, so what is refused is the part of it that a vGPU is."""
    generation = generation_of(card.device_id)
    if generation is None or branch is None:
        return "hypervisor" in snapshot.cpu_flags
    if branch < generation.first or (generation.last and branch > generation.last):
        return False
    row = gpu_by_pci(card.device_id)
    return "hypervisor" in snapshot.cpu_flags or bool(row and not row.name.startswith("GeForce"))


def _misfit(snapshot: HostSnapshot, card: PciGpu) -> Sick | None:
    """By the table alone: the branch, or the kind of module, that this card can't have."""
    generation, branch = generation_of(card.device_id), _branch(snapshot)
    if generation is None or branch is None:
        return None
    version = snapshot.driver.module or snapshot.driver.module_on_disk or branch
    found = f"{describe(card)} is of the generation {generation.name}, and the driver is {version}"
    if branch < generation.first or (generation.last and branch > generation.last):
        return _unsupported(snapshot, card, "by branch", found)
    opened = is_open(snapshot)
    if opened is False and generation.open == "must":
        return _needs_open(card, f"{found} with the proprietary kernel modules")
    if opened and generation.open == "never":
        return _unsupported(snapshot, card, "no GSP", f"{found} with the open kernel modules")
    return None


def _branch(snapshot: HostSnapshot) -> int | None:
    """As 580: of the module that is loaded, on disk, or in the packages."""
    driver = snapshot.driver
    newest = next(iter(package_versions(snapshot)), None)
    version = parse_version(driver.module or driver.module_on_disk or newest or "")
    return version[0] if version else None


def is_open(snapshot: HostSnapshot) -> bool | None:
    """The kernel module is the open one: by its own word, the log's, or a package's name."""
    known = snapshot.driver.open_module
    if known is None:
        known = read_log(snapshot).open_module
    names = [package.name for package in snapshot.driver.packages]
    if known is None and any("open" in name for name in names):
        return True
    if known is None and any(PROPRIETARY.fullmatch(name) for name in names):
        return False
    return known


def _unnamed(snapshot: HostSnapshot, log: Log) -> Iterator[Sick]:
    """What the driver says of a GPU without its address."""
    fatal = log.fatal("")
    if fatal and not _at_rest(snapshot):
        kind: Kind = "reboot" if fatal.action == "reboot" else "reset-gpu"
        found = f"the kernel says of one of the GPUs: {fatal.message.shown}"
        yield Sick("", "GPU lost", found, _WELL, kind)


def _at_rest(snapshot: HostSnapshot) -> bool:
    """The driver tells of every GPU what it needs, and that is nothing."""
    return bool(snapshot.gpus) and all(gpu.recovery == "None" for gpu in snapshot.gpus)


def _fabric(snapshot: HostSnapshot) -> Iterator[Sick]:
    """NVSwitch: until its manager has set it up, every call of CUDA ends with error 802."""
    waiting = [gpu for gpu in _whole_gpus(snapshot) if gpu.fabric not in ("", *FABRIC_READY)]
    told = any(gpu.fabric for gpu in snapshot.gpus)
    driver = snapshot.driver
    idle = driver.fabric_manager not in (None, "active", "activating")
    manager = f"nvidia-fabricmanager is {driver.fabric_manager}" if driver.fabric_manager else ""
    if waiting:
        found = "; ".join(f"GPU {gpu.pci_address}: fabric {gpu.fabric}" for gpu in waiting[:3])
    elif driver.switches and idle and not told and snapshot.gpus and not snapshot.container:
        found = f"{driver.switches} NVSwitches on the bus"
    else:
        return
    expected = "fabric state Completed: before that CUDA ends with error 802"
    found = f"{found}; {manager}" if manager else found
    yield Sick("", "fabric not ready", found, expected, "fabric-manager")


def notes_of_use(snapshot: HostSnapshot) -> tuple[str, ...]:
    """Modes in which a GPU works for one program at a time."""
    return tuple(
        f"GPU {gpu.pci_address} is in compute mode {gpu.compute_mode}: one process at a time"
        for gpu in _whole_gpus(snapshot)
        if gpu.compute_mode.startswith("Exclusive")
    )
