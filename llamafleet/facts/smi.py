"""What nvidia-smi printed -> GPUs, its state, and what it says of GPUs that are not well.

Listed is not working: a card that fell off the bus, or waits for a reset, may stand in the list
with words in the place of figures, and nvidia-smi ends with 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from llamafleet.facts.host import Gpu
from llamafleet.facts.lines import Record, number

TIMED_OUT = 124
INFOROM_CORRUPTED = 14
"""Exit status of nvidia-smi whose output is right all the same (nvidia-smi(1), RETURN VALUE)."""
LONGEST_ROW = 300
"""Characters of a line that are looked at; the table is about 90 wide."""
MOST_COMPLAINTS = 20

SICK = re.compile(r"GPU requires reset|Unknown Error|GPU is lost|\bERR!")
"""In the place of a figure. [N/A] and [Not Supported] are no fault: laptops and vGPUs lack many."""
COMPLAINT = re.compile(
    r"Unable to determine the device handle|GPU is lost|GPU requires reset|fallen off the bus"
    r"|\[Unknown Error\]|Reboot the system to recover"
)
BUS_ID = re.compile(r"\b([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])\b")
TABLE_ROW = re.compile(r"\|\s{1,9}\d{1,3}\s")
COMPUTE_MODES = {
    "Default": "Default",
    "E. Process": "Exclusive_Process",
    "E. Thread": "Exclusive_Thread",
    "Prohibited": "Prohibited",
}
"""The table's words -> those of nvidia-smi -q."""
MIG_WORDS = {"Enabled": True, "Enabled*": True, "Disabled": False, "Disabled*": False}
WORN = ("Remapped Rows Pending", "Retired Pages Pending Page Blacklist")
BROKEN = (
    "Remapped Rows Remapping Failure Occurred",
    "GPU Reset Status Reset Required",
    "GPU Reset Status Drain and Reset Recommended",
)

NO_INSTANCE = "No MIG devices found"
"""The table's words where MIG is on and nothing was made of it."""
MIG_NAME = re.compile(r"MIG\s{1,4}(\S{1,40})\s{1,20}Device\s{1,4}(\d{1,3}):")
MIG_UUID = re.compile(r"UUID:\s?(MIG-[0-9A-Za-z/-]{8,80})\)")
MIG_MEMORY = re.compile(
    r"\|\s{1,9}(\d{1,3})\s{1,9}\d{1,3}\s{1,9}\d{1,3}\s{1,9}(\d{1,3})\s{1,9}\|.{1,24}/\s{0,9}(\d{1,7})MiB"
)
GIB_OF_PROFILE = re.compile(r"\.(\d{1,4})gb\b")
LEAST_MIB_PER_GB = 900
"""Of an instance whose memory is in its name alone: 1g.5gb has 4864 MiB (nvitop, pull 8)."""


@dataclass
class _Seen:
    """What the table and the details say of one GPU, by its bus address."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    compute_mode: str = ""
    recovery: str = ""
    fabric: str = ""
    mig: bool = False


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi says of the host."""

    gpus: tuple[Gpu, ...] = ()
    version: str | None = None
    state: str = "absent"
    error: str = ""
    complaints: tuple[str, ...] = ()
    mig: bool = False


def read(record: Record) -> Smi:
    """The answers to the query, for the table, the details and the list."""
    if "smi" not in record.values:
        return Smi()
    gpus: list[Gpu] = []
    version = None
    other: list[str] = []
    for line in record.block("smi_query"):
        if row := _row(line):
            gpus.append(row[0])
            version = row[1]
        elif line.strip():
            other.append(line.strip())
    table = [line[:LONGEST_ROW] for line in record.block("smi_banner")]
    details = [line[:LONGEST_ROW] for line in record.block("smi_details")]
    seen: dict[str, _Seen] = {}
    _read_table(table, seen)
    _read_details(details, seen)
    statuses = [record.number(f"smi_{name}") for name in ("banner", "details", "list")]
    state = _state(record.number("smi_query", 1), statuses, gpus, other)
    told = [_told(gpu, seen.get(gpu.pci_address, _Seen())) for gpu in gpus]
    mig = any(one.mig for one in seen.values())
    listed = record.block("smi_list")
    if not listed and any(NO_INSTANCE in line for line in table):
        listed = [f"GPU {gpu.index}: (UUID: {gpu.uuid})" for gpu in gpus]
    return Smi(
        gpus=tuple(_divided(told, seen, listed, table)),
        version=version,
        state=state,
        error="; ".join(other[:3]),
        complaints=_complaints(other, table, details),
        mig=mig,
    )


def _state(query: int, others: list[int], gpus: list[Gpu], other: list[str]) -> str:
    if TIMED_OUT in (query, *others):
        return "timeout"
    if gpus and query in (0, INFOROM_CORRUPTED):
        return "ok"
    # Some drivers exit with 0 here.
    if query != 0 or any("No devices were found" in line for line in other):
        return "failed"
    return "garbage"


def _row(line: str) -> tuple[Gpu, str] | None:
    """One line of --format=csv,noheader,nounits, with or without the compute capability."""
    match = re.fullmatch(
        r"(?P<index>\d{1,4}), (?P<name>.{1,200}), (?P<uuid>GPU-[^,]{1,100}), "
        r"(?P<domain>[0-9A-Fa-f]{4,8}):(?P<place>[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]), "
        r"(?P<vram>[^,]{1,40}), (?P<driver>\d{1,6}(?:\.\d{1,6}){1,3})"
        r"(?:, (?P<capability>[^,]{1,40}))?",
        line.strip(),
    )
    if not match:
        return None
    capability = match["capability"] or ""
    fields = {"name": match["name"], "memory.total": match["vram"], "compute_cap": capability}
    gpu = Gpu(
        index=int(match["index"]),
        name=match["name"],
        uuid=match["uuid"],
        pci_address=_address(match["domain"], match["place"]),
        compute_capability=capability if re.fullmatch(r"\d{1,3}\.\d{1,3}", capability) else None,
        # [N/A] where GPU and CPU share their memory.
        vram_mib=number(match["vram"].strip()),
        faults=tuple(f"{key}: {said}" for key, said in fields.items() if SICK.search(said)),
    )
    return gpu, match["driver"]


def _address(domain: str, place: str) -> str:
    """As the kernel writes it: 0000:01:00.0."""
    return f"{int(domain, 16):04x}:{place.lower()}"


def _address_in(text: str) -> str | None:
    found = BUS_ID.search(text)
    return _address(found[1], found[2]) if found else None


def _told(gpu: Gpu, seen: _Seen) -> Gpu:
    return replace(
        gpu,
        faults=tuple(dict.fromkeys((*gpu.faults, *seen.faults))),
        warnings=tuple(dict.fromkeys(seen.warnings)),
        compute_mode=seen.compute_mode,
        recovery=seen.recovery,
        fabric=seen.fabric,
    )


def _read_table(lines: list[str], seen: dict[str, _Seen]) -> None:
    """The rows of a GPU follow the one with its address; the next rule of dashes ends them."""
    gpu: _Seen | None = None
    for line in lines:
        address = _address_in(line) if TABLE_ROW.match(line) else None
        if address:
            gpu = seen.setdefault(address, _Seen())
            _uncorrected(line, gpu)
        elif gpu is None or not line.startswith("|") or "===" in line:
            gpu = None
            continue
        if SICK.search(line):
            gpu.faults.append(f"nvidia-smi's table: {' '.join(line.strip('| ').split())}")
        column = line.rstrip("| ").rpartition("|")[2].strip()
        for word, mode in COMPUTE_MODES.items():
            # The last word of its column, behind the utilisation.
            if column.endswith(word) and address is None:
                gpu.compute_mode = mode
        gpu.mig |= address is None and MIG_WORDS.get(column, False)


def _uncorrected(line: str, gpu: _Seen) -> None:
    """The table's last column counts errors since the driver was loaded."""
    count = line.rstrip("| ").rpartition("|")[2].strip()
    if re.fullmatch(r"[1-9]\d{0,8}", count):
        gpu.faults.append(f"uncorrected ECC errors since the driver was loaded: {count}")


def _read_details(lines: list[str], seen: dict[str, _Seen]) -> None:
    gpu: _Seen | None = None
    fabric: dict[str, str] = {}
    for key, value, address in _pairs(lines):
        if address:
            gpu, fabric = seen.setdefault(address, _Seen()), {}
        if gpu is None:
            continue
        if SICK.search(value) or (key in BROKEN and value == "Yes"):
            gpu.faults.append(f"{key}: {value}")
        elif key in WORN and value == "Yes":
            gpu.warnings.append(f"{key}: {value}")
        elif key == "Compute Mode":
            gpu.compute_mode = value
        elif key == "GPU Recovery Action":
            gpu.recovery = "" if value in ("N/A", "Not Supported") else value
        elif key in ("Fabric State", "Fabric Status") and value not in ("N/A", "Not Supported"):
            fabric[key] = value
            gpu.fabric = ", ".join(fabric.values())
        elif key == "MIG Mode Current" and value == "Enabled":
            gpu.mig = True


def _pairs(lines: Iterable[str]) -> Iterator[tuple[str, str, str | None]]:
    """Key, value and the address that begins a GPU; a key in a section has the section's name."""
    sections: list[tuple[int, str]] = []
    for line in lines:
        text = line.strip()
        address = _address_in(line) if line.startswith("GPU ") else None
        if address:
            sections = []
            yield "", "", address
            continue
        depth = len(line) - len(line.lstrip())
        while sections and sections[-1][0] >= depth:
            sections.pop()
        key, colon, value = (part.strip() for part in text.partition(" : "))
        if colon:
            yield " ".join([*(name for _, name in sections[-1:]), key]), value, None
        elif text:
            sections.append((depth, text))


def _complaints(*texts: list[str]) -> tuple[str, ...]:
    lines = (line.strip() for lines in texts for line in lines if not TABLE_ROW.match(line))
    return tuple(dict.fromkeys(line for line in lines if COMPLAINT.search(line)))[:MOST_COMPLAINTS]


def _divided(
    gpus: list[Gpu], seen: dict[str, _Seen], listed: list[str], table: list[str]
) -> Iterator[Gpu]:
    """MIG instances in the place of the GPU that is divided, where the list tells of them."""
    instances = _instances(listed)
    memory = {
        (int(found[1]), int(found[2])): int(found[3])
        for line in table
        if (found := MIG_MEMORY.match(line))
    }
    for gpu in gpus:
        slices = instances.get(gpu.uuid, [])
        if not slices:
            on = gpu.pci_address in seen and seen[gpu.pci_address].mig
            yield replace(gpu, divided=on and gpu.uuid in instances)
        for place, profile, uuid in slices:
            told = GIB_OF_PROFILE.search(profile)
            least = int(told[1]) * LEAST_MIB_PER_GB if told else 0
            yield replace(
                gpu,
                name=f"{gpu.name} MIG {profile}",
                uuid=uuid,
                parent=gpu.uuid,
                vram_mib=memory.get((gpu.index, place), least),
            )


def _instances(lines: list[str]) -> dict[str, list[tuple[int, str, str]]]:
    """Number, profile and UUID of each instance, by the UUID of the GPU; of nvidia-smi -L."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    parent = ""
    for line in (whole[:LONGEST_ROW] for whole in lines):
        whole_gpu = re.search(r"UUID:\s?(GPU-[0-9a-f-]{8,80})\)", line)
        name, uuid = MIG_NAME.search(line), MIG_UUID.search(line)
        if whole_gpu and line.startswith("GPU "):
            parent = whole_gpu[1]
            found[parent] = []
        elif parent and name and uuid:
            found[parent].append((int(name[2]), name[1], uuid[1]))
    return found
