"""Which of a host's GPUs the settings choose: to be built for, proven and used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llamafleet.facts.host import Gpu, HostSnapshot, PciGpu
from llamafleet.plans.driver.gpus import describe, full_address
from llamafleet.plans.plan import Problem
from llamafleet.settings import Settings


@dataclass(frozen=True)
class Chosen:
    """The GPUs that the settings choose."""

    gpus: tuple[Gpu, ...]
    """As the driver shows them, MIG instances in place of a divided GPU."""
    addresses: frozenset[str] | None = None
    """Of the cards that must work, shown or not; None: all. With a name that fits nothing all must:
    it may be that of a card which the driver does not show."""
    left_out: tuple[str, ...] = ()
    """The others, named: name and UUID, or the card."""
    problem: Problem | None = None
    """A name that fits nothing or several, or two that name one."""


def identity(gpu: Gpu) -> str:
    """As a verification's inputs name it."""
    return f"{gpu.name} {gpu.uuid}"


def chosen(settings: Settings, snapshot: HostSnapshot) -> Chosen:
    """What the setting `gpus` chooses on this host."""
    return choose(settings.gpus, snapshot)


def choose(names: tuple[str, ...] | None, snapshot: HostSnapshot) -> Chosen:
    """What these names choose; None: all there is."""
    if names is None:
        return Chosen(snapshot.gpus)
    there = {full_address(card.address) for card in snapshot.pci_gpus}
    by_name = {name: tuple(g for g in snapshot.gpus if _is(name, g)) for name in names}
    unknown = [n for n, gpus in by_name.items() if not gpus and _place(n) not in there]
    taken = {gpu.uuid for gpus in by_name.values() for gpu in gpus}
    gpus = tuple(gpu for gpu in snapshot.gpus if gpu.uuid in taken)
    addresses = {_place(name) for name in names} | {full_address(g.pci_address) for g in gpus}
    out = [identity(gpu) for gpu in snapshot.gpus if gpu.uuid not in taken]
    out += [describe(c) for c in _unshown(snapshot) if full_address(c.address) not in addresses]
    return Chosen(
        gpus,
        None if unknown else frozenset(addresses - {""}),
        () if unknown else tuple(out),
        _problem(by_name, snapshot),
    )


def _place(name: str) -> str:
    """The address that a name is; "": it is none."""
    return full_address(name) if ":" in name else ""


def _unshown(snapshot: HostSnapshot) -> list[PciGpu]:
    """Cards of the bus that the driver does not show."""
    shown = {full_address(gpu.pci_address) for gpu in snapshot.gpus}
    return [card for card in snapshot.pci_gpus if full_address(card.address) not in shown]


def _is(name: str, gpu: Gpu) -> bool:
    if name.isdigit():
        return gpu.index == int(name)
    if place := _place(name):
        return full_address(gpu.pci_address) == place
    # The beginning of a UUID is enough, as for CUDA_VISIBLE_DEVICES. That of a divided GPU names
    # all its instances.
    return gpu.uuid.startswith(name) or gpu.parent.startswith(name)


def _problem(by_name: dict[str, tuple[Gpu, ...]], snapshot: HostSnapshot) -> Problem | None:
    """The first thing that is wrong with the names."""
    bare = [name for name, gpus in by_name.items() if not gpus]
    if bare:
        found = f"{_listed(bare)}, which no GPU of this host has for a UUID, bus id or index"
        return _of_gpus(found, snapshot)
    several = [name for name, gpus in by_name.items() if len(_whole(gpus)) > 1]
    if several:
        return _of_gpus(f"{_listed(several)}, with which more than one GPU begins", snapshot)
    counted = Counter(gpu.uuid for gpus in by_name.values() for gpu in gpus)
    uuid, count = next(iter(counted.most_common(1)), ("", 0))
    if count > 1:
        pair = [name for name, gpus in by_name.items() if uuid in {g.uuid for g in gpus}]
        return _of_gpus(f"{_listed(pair)}, names of one GPU", snapshot)
    return None


def _whole(gpus: tuple[Gpu, ...]) -> set[str]:
    """Their cards: a divided GPU is one."""
    return {full_address(gpu.pci_address) for gpu in gpus}


def _of_gpus(found: str, snapshot: HostSnapshot) -> Problem:
    there = [
        f"{gpu.index}: {identity(gpu)} at {full_address(gpu.pci_address)}" for gpu in snapshot.gpus
    ]
    there += [f"{describe(c)}, which the driver does not show" for c in _unshown(snapshot)]
    return Problem(
        "gpus",
        f"{found}; there: {'; '.join(there) or 'none'}",
        "a name of each GPU to use, once",
        "nvidia-smi -L; then change the setting gpus",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names)
