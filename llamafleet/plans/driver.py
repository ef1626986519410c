"""Is there a GPU and a driver that works: which backend, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot, PciGpu
from llamafleet.plans.model import Backend, Problem
from llamafleet.settings import Settings
from llamafleet.tables import gpu_by_pci


@dataclass(frozen=True)
class Acceleration:
    """The backend to build, with what was found on the way."""

    backend: Backend
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def plan_acceleration(settings: Settings, snapshot: HostSnapshot) -> Acceleration:
    """CUDA wherever there is a sign of a GPU; the CPU only if asked, or in auto without any sign.

    A card with a broken driver is a problem in auto too: a build for the CPU would hide it.
    """
    if settings.accelerator == "cpu":
        there = [describe(card) for card in snapshot.pci_gpus]
        notes = (f"accelerator = 'cpu': {', '.join(there)} stays unused",) if there else ()
        return Acceleration("cpu", notes=notes)
    if not any_sign(snapshot):
        if settings.accelerator == "auto":
            return Acceleration("cpu", notes=("NO NVIDIA GPU FOUND: built for the CPU alone",))
        problem = Problem(
            "gpu",
            found="no NVIDIA GPU on the PCI bus and none from the driver",
            expected="an NVIDIA GPU (accelerator = 'cuda')",
            next="lspci -d 10de: ; a host without one needs accelerator = 'auto' or 'cpu'",
        )
        return Acceleration("cuda", problems=(problem,))
    problem_or_none = driver_problem(snapshot)
    if problem_or_none:
        return Acceleration("cuda", problems=(problem_or_none,))
    return Acceleration("cuda", notes=_unseen_cards(snapshot))


def any_sign(snapshot: HostSnapshot) -> bool:
    """A card, a GPU, a loaded driver, or an nvidia-smi whose answer does not rule one out."""
    driver = snapshot.driver
    silent = driver.smi_state in ("timeout", "garbage")
    return bool(snapshot.pci_gpus or snapshot.gpus or driver.module or silent)


def describe(card: PciGpu) -> str:
    """As "GeForce RTX 4090 (10de:2684 at 0000:01:00.0)"."""
    row = gpu_by_pci(card.device_id)
    name = row.name if row else "NVIDIA GPU"
    return f"{name} (10de:{card.device_id} at {card.address})"


def driver_problem(snapshot: HostSnapshot) -> Problem | None:
    """The most specific thing that is wrong with the driver; None: it works."""
    driver = snapshot.driver
    if driver.module and driver.library and driver.module != driver.library:
        return Problem(
            "driver",
            found=f"loaded kernel module {driver.module}, library {driver.library}",
            expected="the same version of both; a driver update takes effect at the next boot",
            next="sudo reboot",
        )
    if driver.smi_state == "ok" and snapshot.gpus:
        return None
    return _wrongly_bound(snapshot) or _smi_problem(snapshot)


def _wrongly_bound(snapshot: HostSnapshot) -> Problem | None:
    """Cards are there, and the nvidia module has none of them."""
    cards = snapshot.pci_gpus
    if not cards or any(card.kernel_driver == "nvidia" for card in cards):
        return None
    bound = {card.kernel_driver for card in cards}
    found = "; ".join(f"{describe(c)} bound to {c.kernel_driver or 'nothing'}" for c in cards)
    on_disk = snapshot.driver.module_on_disk
    if "nouveau" in bound:
        fix = "install NVIDIA's driver, which blocks nouveau, then: sudo reboot"
    elif bound != {None}:
        fix = "unbind the card from that driver, or set accelerator = 'cpu'"
    elif on_disk:
        fix = f"sudo modprobe nvidia (version {on_disk} is on disk); sudo dmesg | grep -i nvidia"
    else:
        fix = "install NVIDIA's driver for this kernel; dkms status"
    return Problem("driver", found=found, expected="the kernel module nvidia", next=fix)


def _smi_problem(snapshot: HostSnapshot) -> Problem:
    driver = snapshot.driver
    said = f": {driver.smi_error}" if driver.smi_error else ""
    if "version mismatch" in driver.smi_error:
        found = f"nvidia-smi{said}"
        fix = "sudo reboot (the driver was updated under the running kernel module)"
    elif driver.smi_state == "timeout":
        found = "nvidia-smi does not answer within its time limit"
        fix = "sudo dmesg | grep -iE 'nvrm|xid', then sudo reboot"
    elif driver.smi_state == "garbage":
        found = f"nvidia-smi ends well, but its answer is not understood{said}"
        fix = "run nvidia-smi on the host; reinstall the driver's utilities"
    elif driver.smi_state == "failed":
        found = f"nvidia-smi failed{said}"
        fix = "run nvidia-smi on the host; sudo dmesg | grep -iE 'nvrm|xid'"
    elif driver.smi_state == "ok":
        found = "nvidia-smi answers and shows no GPU"
        fix = "nvidia-smi -L; sudo dmesg | grep -iE 'nvrm|xid'"
    elif snapshot.container:
        found = f"no nvidia-smi in this container ({snapshot.container})"
        fix = "start the container with its GPUs, as docker run --gpus all"
    else:
        found = f"kernel module {driver.module or 'of unknown version'}, but no nvidia-smi"
        fix = "install the driver's utilities (nvidia-utils, nvidia-smi) of the module's version"
    cards = ", ".join(describe(card) for card in snapshot.pci_gpus)
    return Problem(
        "driver",
        found=f"{found}{f' ({cards} is there)' if cards else ''}",
        expected="nvidia-smi that lists the GPUs",
        next=fix,
    )


def _unseen_cards(snapshot: HostSnapshot) -> tuple[str, ...]:
    """Cards on the bus that the driver does not show: spared for others, or broken."""
    shown = {gpu.pci_address.lower()[-12:] for gpu in snapshot.gpus}
    return tuple(
        f"the driver does not show {describe(card)}, bound to {card.kernel_driver or 'nothing'}"
        for card in snapshot.pci_gpus
        if card.address.lower()[-12:] not in shown
    )
