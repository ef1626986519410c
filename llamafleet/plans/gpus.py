"""Which of a host's GPUs the settings choose: to be built for, proven and used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llamafleet.facts.host import Gpu, HostSnapshot, PciGpu
from llamafleet.plans.plan import Problem
from llamafleet.settings import Settings
from llamafleet.tables.gpus import gpu_by_pci


@dataclass(frozen=True)
class Chosen:
    """The GPUs that the settings choose. Those that the driver shows, and cards of the PCI bus."""

    gpus: tuple[Gpu, ...]
    """As the driver shows them, MIG instances in place of a divided GPU."""
    cards: tuple[PciGpu, ...]
    """Cards that must work. One that the driver does not show is among them unless every name of
    the settings is another one's."""
    left_out: tuple[str, ...] = ()
    """The others, named: name and UUID, or the card."""
    problem: Problem | None = None
    """A name that fits nothing or several, or two that name one."""


def describe(card: PciGpu) -> str:
    """As "GeForce RTX 4090 (10de:2684 at 0000:01:00.0)"."""
    row = gpu_by_pci(card.device_id)
    name = row.name if row else "NVIDIA GPU"
    return f"{name} (10de:{card.device_id} at {card.address})"


def identity(gpu: Gpu) -> str:
    """As a verification's inputs name it."""
    return f"{gpu.name} {gpu.uuid}"


def address(text: str) -> str:
    """A PCI address as 0000:01:00.0, however it was written: with eight digits, in capitals, or
    without a domain."""
    text = text.lower()[-12:]
    return text if text.count(":") > 1 else f"0000:{text}"


def chosen(settings: Settings, snapshot: HostSnapshot) -> Chosen:
    """What `gpus` of the settings chooses on this host; all there is where it names nothing."""
    names = settings.gpus
    if names is None:
        return Chosen(snapshot.gpus, snapshot.pci_gpus)
    by_name = {name: _found(name, snapshot) for name in dict.fromkeys(names)}
    taken = {gpu.uuid for gpus, _ in by_name.values() for gpu in gpus}
    places = {card.address for _, cards in by_name.values() for card in cards}
    unknown = [name for name, found in by_name.items() if found == ((), ())]
    shown = {address(gpu.pci_address) for gpu in snapshot.gpus}
    if unknown:
        # An unknown UUID or index may be that of a card which the driver does not show.
        unseen = (card for card in snapshot.pci_gpus if address(card.address) not in shown)
        places |= {card.address for card in unseen}
    gpus = tuple(gpu for gpu in snapshot.gpus if gpu.uuid in taken)
    cards = tuple(card for card in snapshot.pci_gpus if card.address in places)
    out = [identity(gpu) for gpu in snapshot.gpus if gpu.uuid not in taken]
    out += [
        describe(card)
        for card in snapshot.pci_gpus
        if card.address not in places and address(card.address) not in shown
    ]
    return Chosen(gpus, cards, tuple(out), _problem(by_name, unknown, snapshot))


Found = tuple[tuple[Gpu, ...], tuple[PciGpu, ...]]


def _found(name: str, snapshot: HostSnapshot) -> Found:
    """The GPUs and the cards of one name; the instances of a divided GPU are all of that name."""
    gpus = tuple(gpu for gpu in snapshot.gpus if _is(name, gpu))
    named = {address(name)} if ":" in name else {address(gpu.pci_address) for gpu in gpus}
    return gpus, tuple(card for card in snapshot.pci_gpus if address(card.address) in named)


def _is(name: str, gpu: Gpu) -> bool:
    if name.isdigit():
        return gpu.index == int(name)
    if ":" in name:
        return address(gpu.pci_address) == address(name)
    # The beginning of a UUID is enough, as for CUDA_VISIBLE_DEVICES.
    return gpu.uuid.startswith(name)


def _problem(
    by_name: dict[str, Found], unknown: list[str], snapshot: HostSnapshot
) -> Problem | None:
    """The first thing that is wrong with the names."""
    if unknown:
        found = f"{_listed(unknown)}, which no GPU of this host has for a UUID, bus id or index"
        return _of_gpus(found, snapshot)
    several = [name for name, (gpus, _) in by_name.items() if len(_whole(gpus)) > 1]
    if several:
        return _of_gpus(f"{_listed(several)}, with which more than one GPU begins", snapshot)
    counted = Counter(gpu.uuid for gpus, _ in by_name.values() for gpu in gpus)
    uuid, count = next(iter(counted.most_common(1)), ("", 0))
    if count > 1:
        pair = [name for name, (gpus, _) in by_name.items() if uuid in {g.uuid for g in gpus}]
        return _of_gpus(f"{_listed(pair)}, names of one GPU", snapshot)
    return None


def _whole(gpus: tuple[Gpu, ...]) -> set[str]:
    """Their cards: a divided GPU is one."""
    return {address(gpu.pci_address) for gpu in gpus}


def _of_gpus(found: str, snapshot: HostSnapshot) -> Problem:
    there = [f"{gpu.index}: {identity(gpu)} at {address(gpu.pci_address)}" for gpu in snapshot.gpus]
    shown = {address(gpu.pci_address) for gpu in snapshot.gpus}
    there += [
        f"{describe(card)}, which the driver does not show"
        for card in snapshot.pci_gpus
        if address(card.address) not in shown
    ]
    return Problem(
        "gpus",
        f"{found}; there: {'; '.join(there) or 'none'}",
        "a name of each GPU to use, once",
        "nvidia-smi -L; then change the setting gpus",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names)
