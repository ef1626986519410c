"""Single GPUs: how a card is called, which ones the driver does not show, which ones were lost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.known import LOST, is_known
from llamafleet.plans.gpus import describe
from llamafleet.tables.gpus import xids

XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<place>[0-9a-f:.]+)\): (?P<code>\d+)", re.IGNORECASE)
FALLEN = re.compile(r"GPU (?:at PCI:)?(?P<place>[0-9a-f:.]+).*fallen off the bus", re.IGNORECASE)
SINCE_BOOT = re.compile(r"^\[\s*(\d+)\.\d+\]")
OFF_THE_BUS = 79


@dataclass(frozen=True)
class _Fatal:
    code: int
    place: str
    """As 0000:01:00."""
    line: str
    age_s: int | None


def unseen_cards(snapshot: HostSnapshot) -> tuple[str, ...]:
    """Cards on the bus that the driver does not show: spared for others, or broken."""
    shown = {gpu.pci_address.lower()[-12:] for gpu in snapshot.gpus}
    return tuple(
        f"the driver does not show {describe(card)}, bound to {card.kernel_driver or 'nothing'}"
        for card in snapshot.pci_gpus
        if card.address.lower()[-12:] not in shown
    )


def lost_gpu(snapshot: HostSnapshot) -> str:
    """The sentence about a GPU that is gone or not to be trusted; "": none."""
    for fatal in reversed(_fatal_xids(snapshot)):
        if _counts(fatal, snapshot):
            return f"Xid {fatal.code} in the kernel log: {fatal.line} ({xids().fatal_source})"
    said = snapshot.driver.smi_error
    if is_known(said, LOST):
        return f"nvidia-smi: {said}"
    return ""


def old_xids(snapshot: HostSnapshot) -> tuple[str, ...]:
    """Fatal errors of GPUs that work again."""
    return tuple(
        f"Xid {fatal.code} earlier in this boot, the GPU works now: {fatal.line}"
        for fatal in _fatal_xids(snapshot)
        if not _counts(fatal, snapshot)
    )


def _counts(fatal: _Fatal, snapshot: HostSnapshot) -> bool:
    """It is recent, or its GPU should be shown and is not."""
    if any(gpu.pci_address.lower()[-12:].startswith(fatal.place) for gpu in snapshot.gpus):
        return fatal.age_s is not None and fatal.age_s < xids().recent_hours * 3600
    # The log is the whole machine's: a container sees the errors of GPUs that are not its own,
    # and a card may have been passed on to a virtual machine since.
    if snapshot.container:
        return not snapshot.gpus
    card = next((c for c in snapshot.pci_gpus if c.address.startswith(fatal.place)), None)
    return card is None or card.kernel_driver in (None, "nvidia")


def _fatal_xids(snapshot: HostSnapshot) -> list[_Fatal]:
    found = []
    for line in snapshot.driver.kernel_log or ():
        match = XID.search(line) or FALLEN.search(line)
        if not match:
            continue
        code = int(match.groupdict().get("code") or OFF_THE_BUS)
        if code in xids().fatal:
            place = match["place"].lower().split(".")[0].rstrip(":")
            found.append(_Fatal(code, place, line.strip(), _age_s(line, snapshot.uptime_s)))
    return found


def _age_s(line: str, uptime_s: int | None) -> int | None:
    """None: the line has no time, or the clock of another kernel's start."""
    since_boot = SINCE_BOOT.match(line)
    if since_boot is None or uptime_s is None:
        return None
    age = uptime_s - int(since_boot[1])
    return age if age >= 0 else None
