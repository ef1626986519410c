"""What to type against a sick driver or card: the words of every cure, by kind and host.

A verdict decides what is wrong and names the kind; how that is said on this very host - by its
package manager, in a container or WSL, as root or by sudo - stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from llamafleet.facts.host import HostSnapshot

Kind = Literal[
    "reboot",
    "reset-gpu",
    "power-cycle",
    "open-module",
    "proprietary-module",
    "older-branch",
    "newer-branch",
    "guest-driver",
    "fabric-manager",
    "load-module",
    "rebuild-module",
    "sign-module",
    "blacklist-nouveau",
    "install-driver",
    "install-tools",
    "restart-container",
    "compute-mode",
    "leave-out",
    "read-log",
]
"""
reboot              what is on disk is right, what is loaded is not
reset-gpu           Xids whose documented action is a reset; `about`: the card's bus address
power-cycle         the card does not answer: power off and on, then seat, power, riser, cooling
open-module         the card needs the open kernel modules (Blackwell)
proprietary-module  the card is too old for the open ones (before Turing)
older-branch        a later branch dropped the card; `about`: the last branch, as "580"
newer-branch        the card is newer than the branch; `about`: the first branch, as "570"
guest-driver        a vGPU: the guest driver that fits the host's, from its administrator
fabric-manager      NVSwitch: nvidia-fabricmanager of the driver's version, started
load-module         it is on disk and nobody loaded it
rebuild-module      the kernel that boots next has no module, or one of another version
sign-module         secure boot refuses it
blacklist-nouveau   nouveau has the card, though NVIDIA's module is on disk
install-driver      there is none
install-tools       nvidia-smi and the libraries are missing beside a loaded module
restart-container   the container lost its devices or has another library than its host's module
compute-mode        Prohibited or exclusive: back to Default; `about`: the card's bus address
leave-out           the setting `gpus`; `about`: the bus addresses of the cards that stay
read-log            nothing more is known
"""


def cure(kind: Kind, snapshot: HostSnapshot, about: str = "") -> str:
    """The command or sentence for this host. `about`: what the kind's line above asks for."""
    return _WORDS[kind](snapshot, about)


def as_root(snapshot: HostSnapshot, command: str) -> str:
    """The command as a person types it there: by sudo, unless root or a host without sudo."""
    return f"sudo {command}"


def _reboot(snapshot: HostSnapshot, _about: str) -> str:
    return as_root(snapshot, "reboot")


def _unworded(_snapshot: HostSnapshot, about: str) -> str:
    return about


_WORDS: dict[Kind, Callable[[HostSnapshot, str], str]] = {
    **dict.fromkeys(get_args(Kind), _unworded),
    "reboot": _reboot,
}
