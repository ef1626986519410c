"""Every verdict of the table to the letter: what was found, what to type, what each source says.

LLAMAFLEET_UPDATE_GOLDEN=1 rewrites the file; read the diff: does each line help who reads it?
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.repair import repair
from llamafleet.plans.driver.verdict import Verdict, driver_verdict
from tests.plans.driver.test_verdict import (
    BARE,
    CASES,
    HALF_INSTALLED,
    NEW,
    OLD,
    REJECTED,
    failing,
    host,
    ubuntu,
    unbound,
)

GOLDEN = Path(__file__).with_name("verdicts.txt")

MORE: dict[str, HostSnapshot] = {
    "nothing is known": replace(
        host(**dict.fromkeys(("module", "library", "module_on_disk", "next_kernel"))), kernel=None
    ),
    "no card and no answer": replace(failing(smi_error=""), pci_gpus=()),
    "a container without a version": replace(failing(module=None, library=None), container="lxc"),
    "all that a source can say": host(
        nouveau=True,
        secure_boot=True,
        module_signer="",
        dkms=("nvidia/580, installed", "nvidia/570, built"),
        kernel_log=("line one", "line two"),
        packages=HALF_INSTALLED,
    ),
    "signed, secure boot off": host(secure_boot=False, module_signer="Canonical", kernel_log=None),
    "two packages unfinished": failing(
        library=NEW, packages=tuple(replace(one, state="unpacked") for one in ubuntu())
    ),
    "two packages late": failing(
        library=NEW, packages=(ubuntu(NEW, NEW)[0], *ubuntu(OLD, OLD)[1:])
    ),
    "packages of two other versions": host(
        packages=(ubuntu(NEW)[0], *ubuntu("570.195.03", "570.195.03")[1:])
    ),
    "refused, secure boot not told": unbound(
        BARE, module_on_disk=NEW, kernel_log=(f"[   12.3] {REJECTED}",)
    ),
    "nvidia-smi shows no GPU": replace(host(), gpus=()),
    "no nvidia-smi": failing(smi_state="absent", smi_error=""),
    "no nvidia-smi and no version": failing(
        smi_state="absent", smi_error="", module=None, library=None
    ),
    "nvidia-smi of which nothing is understood": failing(smi_state="garbage", smi_error="?!"),
    "nvidia-smi that hangs": failing(smi_state="timeout", smi_error=""),
    "no nvidia-smi in a container": replace(
        failing(smi_state="absent", smi_error=""), container="docker"
    ),
    "an Xid without a time": failing(
        smi_error="", kernel_log=("NVRM: Xid (PCI:0000:01:00): 74, pid=1",)
    ),
    "no driver and nothing else": unbound(BARE),
}


def written(name: str, verdict: Verdict) -> str:
    problem = verdict.problem
    lines = [f"{name}: {verdict.state}"]
    if problem:
        lines += [f"  found     {problem.found}", f"  expected  {problem.expected}"]
        lines += [f"  next      {problem.next}"]
    lines += [f"  note      {note}" for note in verdict.notes]
    lines += [f"  evidence  {line}" for line in verdict.evidence]
    return "\n".join(lines) + "\n"


@pytest.mark.usefixtures("frozen_tables")
def test_every_verdict_says_what_it_said() -> None:
    hosts = {name: case.host for name, case in CASES.items()} | MORE
    text = "\n".join(written(name, driver_verdict(host)) for name, host in hosts.items())
    if os.environ.get("LLAMAFLEET_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


SPLIT = ubuntu(NEW, OLD)


@pytest.mark.parametrize(
    ("manager", "found", "command"),
    [
        (
            "pacman",
            {"packages": SPLIT},
            "sudo pacman -Syu, then sudo reboot",
        ),
        (None, {"packages": SPLIT}, f"bring nvidia-dkms-580 to {NEW}, then sudo reboot"),
        (
            "apt",
            {"packages": HALF_INSTALLED},
            "sudo dpkg --configure -a (not configured: nvidia-utils-580), then sudo reboot",
        ),
        (
            "apt",
            {"packages": ()},
            "install the driver again, so that module and library are of one version: "
            f"sudo sh NVIDIA-Linux-x86_64-{OLD}.run --kernel-name=$(uname -r); "
            "modinfo -k $(uname -r) -F version nvidia",
        ),
    ],
)
def test_the_command_that_repairs(
    manager: str | None, found: dict[str, object], command: str
) -> None:
    broken = replace(host(next_kernel=None, **found), kernel=None, package_manager=manager)
    assert repair(broken) == command
