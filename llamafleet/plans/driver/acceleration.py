"""Is there a GPU and a driver that works: which backend, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.cure import WINDOWS
from llamafleet.plans.driver.gpus import describe
from llamafleet.plans.driver.platform import tegra
from llamafleet.plans.driver.reboot import Barred, plan_reboot
from llamafleet.plans.driver.verdict import driver_verdict
from llamafleet.plans.plan import Problem, RebootPlan
from llamafleet.protocol.result import Backend
from llamafleet.settings import Settings


@dataclass(frozen=True)
class Acceleration:
    """The backend to build, with what was found on the way."""

    backend: Backend
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    reboot: RebootPlan | None = None


def plan_acceleration(
    settings: Settings, snapshot: HostSnapshot, barred: Barred | None = None
) -> Acceleration:
    """CUDA wherever there is a sign of a GPU; the CPU only if asked, or in auto without any sign.

    A card with a broken driver is a problem in auto too: a build for the CPU would hide it.
    """
    if settings.accelerator == "cpu":
        there = [describe(card) for card in snapshot.pci_gpus]
        notes = (f"accelerator = 'cpu': {', '.join(there)} stays unused",) if there else ()
        return Acceleration("cpu", notes=notes)
    board = tegra(snapshot)
    if board:
        problem = Problem(
            "gpu",
            found=f"a Tegra board, as a Jetson ({board}), which is not supported: its GPU is on no "
            "PCI bus, and its driver comes with NVIDIA's Linux for Tegra",
            expected="an NVIDIA GPU on the PCI bus (or accelerator = 'cpu')",
            next="on this board build llama-cpp-python by hand with JetPack's CUDA, or take a "
            "container of dusty-nv/jetson-containers; leave the host out of the inventory",
        )
        return Acceleration("cuda", problems=(problem,))
    if not any_sign(snapshot):
        if settings.accelerator == "auto":
            return Acceleration("cpu", notes=("NO NVIDIA GPU FOUND: built for the CPU alone",))
        where = WINDOWS if snapshot.container == "wsl" else "lspci -d 10de: "
        problem = Problem(
            "gpu",
            found="no NVIDIA GPU on the PCI bus and none from the driver",
            expected="an NVIDIA GPU (accelerator = 'cuda')",
            next=f"{where}; a host without one needs accelerator = 'auto' or 'cpu'",
        )
        return Acceleration("cuda", problems=(problem,))
    verdict = driver_verdict(snapshot, settings.gpus)
    state = f"driver verdict: {verdict.state}"
    if verdict.problem:
        said = (state, *verdict.evidence)
        pending: Problem | RebootPlan = verdict.problem
        if verdict.state == "reboot needed":
            pending = plan_reboot(settings, snapshot, verdict.problem, barred)
        if isinstance(pending, RebootPlan):
            return Acceleration("cuda", notes=said, reboot=pending)
        return Acceleration("cuda", problems=(pending,), notes=said)
    return Acceleration("cuda", notes=(state, *verdict.notes, *_divided(snapshot)))


def _divided(snapshot: HostSnapshot) -> tuple[str, ...]:
    if not snapshot.driver.mig or any(gpu.parent for gpu in snapshot.gpus):
        return ()
    note = (
        "MIG is on: CUDA uses a divided GPU by its first instance alone, and its memory here is "
        "that of the whole; next: nvidia-smi -L, or turn it off: sudo nvidia-smi -mig 0"
    )
    return (note,)


def any_sign(snapshot: HostSnapshot) -> bool:
    """A card, a GPU, a loaded driver, or an nvidia-smi whose answer does not rule one out."""
    driver = snapshot.driver
    silent = driver.smi_state in ("timeout", "garbage")
    # Windows gives it to its WSL only where it has NVIDIA's driver.
    through = snapshot.container == "wsl" and driver.smi_state != "absent"
    return bool(snapshot.pci_gpus or snapshot.gpus or driver.module or silent or through)
