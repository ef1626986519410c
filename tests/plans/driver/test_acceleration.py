"""GPU or not, driver or not: the backend, and the sad paths of a driver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import Driver, HostSnapshot, PciGpu
from tests.plans.hosts import CARD_4090, CPU_HOST, GPU_HOST, driver, only_problem, plan

BARE = PciGpu("0000:01:00.0", "2684", None)
NOUVEAU = PciGpu("0000:01:00.0", "2684", "nouveau")
VFIO = PciGpu("0000:01:00.0", "2684", "vfio-pci")


def broken(card: PciGpu = CARD_4090, **found: Any) -> HostSnapshot:
    return replace(GPU_HOST, gpus=(), pci_gpus=(card,), driver=Driver(**found))


BROKEN = {
    "nouveau": (broken(NOUVEAU), "bound to nouveau", "blocks nouveau"),
    "no driver": (broken(BARE), "bound to nothing", "install NVIDIA's driver"),
    "not loaded": (broken(BARE, module_on_disk="580.1"), "bound to nothing", "modprobe nvidia"),
    "passed on": (broken(VFIO), "bound to vfio-pci", "unbind"),
    "timeout": (broken(module="580.1", smi_state="timeout"), "does not answer", "nvidia-smi -pm 1"),
    "garbage": (
        broken(module="580.1", smi_state="garbage", smi_error="<html>"),
        "not understood: <html>",
        "run nvidia-smi",
    ),
    "failed": (
        broken(module="580.1", smi_state="failed", smi_error="Unable to determine the handle"),
        "nvidia-smi failed: Unable to determine the handle",
        "dmesg",
    ),
    "mismatch by its words": (
        broken(
            module="580.1",
            smi_state="failed",
            smi_error="Failed to initialize NVML: Driver/library version mismatch",
        ),
        "version mismatch",
        "sudo reboot",
    ),
    "mismatch by versions": (
        broken(module="580.1", library="580.2", smi_state="failed"),
        "loaded kernel module 580.1, library 580.2",
        "sudo reboot",
    ),
    "no nvidia-smi": (broken(module="580.1"), "but no nvidia-smi", "nvidia-utils"),
    "container": (
        replace(broken(module="580.1"), container="docker"),
        "in this container (docker)",
        "--gpus all",
    ),
    "fell off the bus": (
        replace(broken(module="580.1", smi_state="failed", smi_error="No devices"), pci_gpus=()),
        "No devices",
        "dmesg",
    ),
    "no GPU shown": (broken(module="580.1", smi_state="ok", cuda="13.0"), "shows no GPU", "dmesg"),
    "a hanging nvidia-smi alone": (
        replace(CPU_HOST, driver=Driver(smi_state="timeout")),
        "does not answer",
        "dmesg",
    ),
    "an odd nvidia-smi alone": (
        replace(CPU_HOST, driver=Driver(smi_state="garbage", smi_error="42")),
        "not understood: 42",
        "run nvidia-smi",
    ),
}


@pytest.mark.parametrize("accelerator", ["cuda", "auto"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_driver_is_a_problem_and_never_a_build_for_the_cpu(
    case: str, accelerator: str
) -> None:
    host, found, fix = BROKEN[case]
    made = plan(host, accelerator=accelerator)
    problem = only_problem(made)
    assert made.backend == "cuda" and problem.check == "driver"
    assert found in problem.found and fix in problem.next


def test_the_card_is_named_without_a_driver() -> None:
    problem = only_problem(plan(broken(NOUVEAU)))
    assert "GeForce RTX 4090 (10de:2684 at 0000:01:00.0)" in problem.found
    unknown = only_problem(plan(broken(PciGpu("0000:01:00.0", "ffff", None))))
    assert "NVIDIA GPU (10de:ffff" in unknown.found


def test_versions_that_differ_are_a_problem_even_while_nvidia_smi_answers() -> None:
    new = "590.44.01"
    problem = only_problem(plan(replace(GPU_HOST, driver=driver(library=new, module_on_disk=new))))
    assert problem.next == "sudo reboot"


def test_the_plan_of_a_broken_driver_shows_verdict_and_evidence() -> None:
    made = plan(replace(GPU_HOST, driver=driver(library="590.44.01")))
    assert made.notes[0] == "driver verdict: packages split"
    assert "library: 590.44.01" in made.notes and "loaded module: 580.159.04" in made.notes


def test_no_gpu_where_one_is_asked_for() -> None:
    problem = only_problem(plan(CPU_HOST, accelerator="cuda"))
    assert problem.check == "gpu" and "auto" in problem.next


@pytest.mark.parametrize("state", ["absent", "failed"])
def test_no_gpu_in_auto_is_a_loud_build_for_the_cpu(state: str) -> None:
    host = replace(CPU_HOST, driver=Driver(library="580.1", smi_state=state, smi_error="none"))
    made = plan(host, accelerator="auto")
    assert made.backend == "cpu" and made.build is not None and not made.problems
    assert any("NO NVIDIA GPU" in note for note in made.notes)


@pytest.mark.parametrize("accelerator", ["cuda", "auto"])
def test_a_working_gpu(accelerator: str) -> None:
    made = plan(accelerator=accelerator)
    assert made.backend == "cuda" and not made.problems
    assert made.notes == ("driver verdict: ok",)


def test_a_gpu_without_a_pci_bus_as_under_wsl() -> None:
    host = replace(GPU_HOST, pci_gpus=(), driver=driver(module=None), container="wsl")
    assert plan(host, accelerator="auto").backend == "cuda"


def test_the_cpu_on_request_notes_the_unused_card() -> None:
    made = plan(accelerator="cpu")
    assert made.backend == "cpu" and made.toolkit is None and not made.problems
    assert "GeForce RTX 4090" in made.notes[0] and "unused" in made.notes[0]
    assert plan(CPU_HOST, accelerator="cpu").notes == ()


def test_a_second_card_that_the_driver_does_not_show_is_noted() -> None:
    second = PciGpu("0000:02:00.0", "2204", "nouveau")
    made = plan(replace(GPU_HOST, pci_gpus=(CARD_4090, second)))
    assert not made.problems and made.notes[0] == "driver verdict: ok"
    (note,) = made.notes[1:]
    assert "GeForce RTX 3090" in note and "nouveau" in note
