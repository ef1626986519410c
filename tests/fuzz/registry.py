"""All targets, and what reads and needs none."""

from __future__ import annotations

from tests.fuzz import Target
from tests.fuzz.targets import controller, facts, jobs, verify

TARGETS: tuple[Target, ...] = (
    *facts.TARGETS,
    *controller.TARGETS,
    *jobs.TARGETS,
    *verify.TARGETS,
)

OPEN: dict[str, str] = dict.fromkeys(
    (
        *("a snapshot", "the plan of a snapshot", "llamafleet plan FILE", "llamafleet plan --set"),
        *("a result", "a stamp, a job's progress and status", "JSON text from a host"),
        *("a stored result", "an inventory", "a public key", "a verification's settings"),
        *("a unit's environment file", "what dnf would do", "apt's policy", "pip's output"),
        *("ninja's log", "the progress of wheels, and cuda.h"),
    ),
    "being mended",
)
"""What a target is still red for, by its name; to be empty."""

READ = r"json\.loads?\(|\.read_text\(|\.read_bytes\(|\.read\(|yaml\.\w*load\("
"""How a module shows that it reads something."""

ELSEWHERE = {
    "bootstrap": "what setup.sh downloads, each file by its pinned hash",
    "facts.snapshot": "the script that is part of this package",
    "onhost.diagnose": "the table that is part of the zipapp",
    "onhost.job": "the kernel's /proc, and its own log by protocol.diagnose",
    "onhost.toolkit.runfile": "a download, by its pinned hash",
    "onhost.verify.bench": "the kernel's /sys",
    "onhost.verify.checks.machine_code": "by onhost.verify.fatbin",
    "onhost.verify.synth": "models that this code wrote, by their hash",
    "onhost.verify.worker": "its parent's requests",
    "zipapps": "files of this package",
}
"""Modules that read what needs no target, and why."""
