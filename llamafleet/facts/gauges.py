"""What watch.sh printed -> what the GPUs, processes and services of a host do at one moment.

A host's text is foreign: what is no line of the record is left out, a figure that is none is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llamafleet.facts import smi
from llamafleet.facts.lines import number
from llamafleet.layout import serve_unit
from llamafleet.protocol.serve import GENERATED, NAME, State
from llamafleet.received import plain, received_json, received_text

COMMON = (
    *("index", "uuid", "pci.bus_id", "memory.used", "memory.free", "memory.total"),
    *("utilization.gpu", "power.draw", "enforced.power.limit", "clocks.sm", "clocks.mem"),
    "temperature.gpu",
)
NAME_FIELD = "name"
"""The last of each list: it alone may hold a comma."""
FIELDS = (
    (*COMMON, "clocks_event_reasons.active", "temperature.gpu.tlimit", "gpu_recovery_action"),
    (*COMMON, "clocks_event_reasons.active"),
    (*COMMON, "clocks_throttle_reasons.active"),
    COMMON,
)
"""Of nvidia-smi --query-gpu, for newer and older drivers: one that is not known fails them all."""
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""One thing, renamed with driver 535."""

PROMPT = "llamafleet_prompt_tokens_total"
WAITING, COMPUTING = "llamafleet_requests_waiting", "llamafleet_requests_computing"
METRICS = (GENERATED, PROMPT, WAITING, COMPUTING)
"""Of onhost/serve/metrics.py; a test compares."""

KILLED = frozenset({124, 137})
"""Status of what did not end in time: of busybox's timeout and of coreutils' with -s KILL."""
MOST_GPUS = 256
MOST_LINES = 20_000
LONGEST = 200
"""Characters of a host's own words."""
PLACE = re.compile(r"([0-9A-Fa-f]{3,8}):([0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])")
"""A bus address in a complaint, as "GPU0000:07:00.0"."""
SERVICE_UNIT = re.compile(serve_unit("*").replace(".", r"\.").replace("*", f"({NAME})"))


@dataclass(frozen=True)
class GpuNow:
    """One GPU. None: it is not told here."""

    index: int | None
    uuid: str
    pci: str
    name: str
    used_mib: float | None = None
    free_mib: float | None = None
    total_mib: float | None = None
    utilisation: float | None = None
    """Per cent."""
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    margin_c: float | None = None
    """To the temperature at which it slows down."""
    reasons: int | None = None
    """Bits of protocol.throttle."""
    recovery: str = ""
    """What the driver wants done; "": nothing, or not told."""
    faults: tuple[str, ...] = ()
    """nvidia-smi's words in the place of figures."""


@dataclass(frozen=True)
class ProcessNow:
    """One process that computes on a GPU."""

    gpu: str
    """UUID."""
    pid: int
    name: str
    used_mib: float | None
    user: str = ""
    unit: str = ""
    """Of ours; "": it is none of llamafleet's."""

    @property
    def profile(self) -> str:
        """The served profile that it is; "": none."""
        found = SERVICE_UNIT.fullmatch(self.unit)
        return found[1] if found else ""


@dataclass(frozen=True)
class ServiceNow:
    """One service, by what it tells of itself."""

    profile: str
    state: State | None
    """None: nothing that can be believed."""
    reason: str
    metrics: dict[str, float]
    at: float
    """Seconds of the host's monotonic clock, of the metrics."""
    alias: str = ""
    gpus: list[str] = field(default_factory=list)
    """UUIDs; empty: those of the verification."""


@dataclass(frozen=True)
class Gauges:
    """One host at one moment."""

    gpus: tuple[GpuNow, ...] = ()
    processes: tuple[ProcessNow, ...] | None = ()
    """None: not told."""
    services: tuple[ServiceNow, ...] = ()
    driver: bool = True
    """It has an nvidia-smi."""
    fault: str = ""
    """Why nvidia-smi tells nothing of GPUs; "": it does, or there is none."""
    level: int = 1
    """The list of FIELDS, from 1 on, that this driver knows."""
    complaints: tuple[str, ...] = ()
    """Its lines about GPUs that are not well."""
    notes: tuple[str, ...] = ()


class NoRecord(ValueError):
    """The text is no record; the message says what was found instead."""


def parse(lines: Sequence[str]) -> Gauges:
    """One record: all lines up to and with its end. Raises NoRecord."""
    tagged = _tagged(lines)
    rows = [line for line in tagged.get("gpu", []) if line.strip()]
    level = min(max(number(_last(tagged, "level"), 1), 1), len(FIELDS))
    driver = "level" in tagged
    fields = FIELDS[level - 1]
    read = [(line, _gpu(line, fields)) for line in rows[:MOST_GPUS]]
    gpus = tuple(gpu for _, gpu in read if gpu is not None)
    other = [plain(line.strip(), LONGEST) for line, gpu in read if gpu is None]
    complaints = tuple(dict.fromkeys(line for line in other if smi.COMPLAINT.search(line)))
    services, notes = _services(tagged)
    return Gauges(
        gpus=gpus,
        processes=_processes(tagged),
        services=services,
        driver=driver,
        level=level,
        fault=_fault(_last(tagged, "gpu_rc"), gpus, other, complaints) if driver else "",
        complaints=complaints[: smi.MOST_COMPLAINTS],
        notes=notes,
    )


def _tagged(lines: Sequence[str]) -> dict[str, list[str]]:
    """Lines by tag. Raises NoRecord where none begins, or the record is too long."""
    begin = max((n for n, line in enumerate(lines) if line.startswith("#begin ")), default=None)
    if begin is None:
        found = next((line for line in lines if line.strip()), "nothing")
        raise NoRecord(f"found {plain(found.strip(), LONGEST)!r}; expected a record of watch.sh")
    tagged: dict[str, list[str]] = {}
    for line in lines[begin + 1 : begin + MOST_LINES]:
        tag, bar, text = line.partition("|")
        if bar:
            tagged.setdefault(tag, []).append(text)
    return tagged


def _last(tagged: dict[str, list[str]], tag: str) -> str:
    return tagged.get(tag, [""])[-1].strip()


def _gpu(line: str, fields: Sequence[str]) -> GpuNow | None:
    """None: it is no row of that list of fields."""
    parts = [plain(part.strip(), LONGEST) for part in line.split(",", len(fields))]
    if len(parts) != len(fields) + 1:
        return None
    told = dict(zip((*fields, NAME_FIELD), parts, strict=True))
    place = PLACE.fullmatch(told["pci.bus_id"])
    if not re.fullmatch(r"[0-9]{1,4}", told["index"]) or not place:
        return None
    sick = tuple(f"{key}: {text}" for key, text in told.items() if smi.SICK.search(text))
    reasons = next((told[key] for key in REASONS if key in told), "")
    recovery = told.get("gpu_recovery_action", "")
    return GpuNow(
        index=int(told["index"]),
        uuid=told["uuid"] if told["uuid"].startswith("GPU-") else "",
        pci=address(place),
        name=told[NAME_FIELD],
        used_mib=_figure(told["memory.used"]),
        free_mib=_figure(told["memory.free"]),
        total_mib=_figure(told["memory.total"]),
        utilisation=_figure(told["utilization.gpu"]),
        power_w=_figure(told["power.draw"]),
        power_limit_w=_figure(told["enforced.power.limit"]),
        sm_clock_mhz=_figure(told["clocks.sm"]),
        memory_clock_mhz=_figure(told["clocks.mem"]),
        temperature_c=_figure(told["temperature.gpu"]),
        margin_c=_figure(told.get("temperature.gpu.tlimit", "")),
        reasons=int(reasons, 16) if re.fullmatch(r"0x0{0,15}[0-9A-Fa-f]{1,15}", reasons) else None,
        recovery="" if recovery in ("", "None", "N/A") or recovery[0] == "[" else recovery,
        faults=sick,
    )


def address(place: re.Match[str]) -> str:
    """As the kernel writes it: 0000:01:00.0."""
    return f"{int(place[1], 16):04x}:{place[2].lower()}"


def _figure(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,6})?", text) else None


def _fault(rc: str, gpus: Sequence[GpuNow], other: list[str], complaints: Sequence[str]) -> str:
    status = number(rc, -1)
    if status in KILLED:
        return "nvidia-smi does not end"
    if gpus and status in (0, smi.INFOROM_CORRUPTED):
        return ""
    if complaints:  # Each of them is a line of its own.
        return ""
    if not gpus:
        return f"nvidia-smi tells of no GPU: {'; '.join(other[:2]) or f'status {status}'}"
    return f"nvidia-smi ended with {status}: {'; '.join(other[:2]) or 'no word'}"


def _processes(tagged: dict[str, list[str]]) -> tuple[ProcessNow, ...] | None:
    if number(_last(tagged, "app_rc"), -1) != 0:
        return None
    owners = dict(_of_pids(r"/proc/(\d+) (\S+)", tagged.get("owner", [])))
    units = dict(_of_pids(r"/proc/(\d+)/cgroup:(\S+)", tagged.get("unit", [])))
    found = []
    for line in tagged.get("app", []):
        parts = [plain(part.strip(), LONGEST) for part in line.split(",", 3)]
        if len(parts) == 4 and parts[0].startswith(("GPU-", "MIG-")) and parts[1].isdecimal():
            gpu, pid, used, name = parts
            mine = (owners.get(pid, ""), units.get(pid, ""))
            found.append(ProcessNow(gpu, number(pid), name, _figure(used), *mine))
    return tuple(found)


def _of_pids(form: str, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        if found := re.fullmatch(form, plain(line.strip(), LONGEST)):
            yield found[1], found[2]


def _service(line: str) -> ServiceNow | None:
    """None: not even whose line it is can be told. One whose word is odd is a service all the same,
    and must not go unseen by it."""
    one = received_text(ServiceNow, line)
    if isinstance(one, ServiceNow):
        return one
    data = received_json(line)
    profile = data.get("profile") if isinstance(data, dict) else None
    if not isinstance(profile, str):
        return None
    return ServiceNow(plain(profile, LONGEST), None, plain(one.reason, LONGEST), {}, 0.0)


def _services(tagged: dict[str, list[str]]) -> tuple[tuple[ServiceNow, ...], tuple[str, ...]]:
    services, notes = dict[str, ServiceNow](), list[str]()
    for line in tagged.get("service", []):
        one = _service(line)
        if one is None or one.profile in services:
            notes.append(f"services: {plain(line.strip(), LONGEST)}")
        elif re.fullmatch(NAME, one.profile):
            services[one.profile] = one
    status = _last(tagged, "service_rc")
    if status not in ("", "0"):
        notes = [f"services are not told: status {plain(status, 10)}", *notes[-1:]]
    return tuple(services.values()), tuple(notes[:5])
