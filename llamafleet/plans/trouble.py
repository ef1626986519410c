"""What is wrong with a host or a GPU, and in which order it is shown: the worst one first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from llamafleet.facts.gauges import (
    PLACE,
    PROMPT,
    Gauges,
    GpuNow,
    ProcessNow,
    ServiceNow,
    address,
)
from llamafleet.protocol.serve import GENERATED
from llamafleet.protocol.throttle import IDLE, SLOWDOWNS, SOFTWARE_CAP, decode_throttle

Trouble = Literal[
    "unreachable",
    "silent",
    "driver",
    "gone",
    "reset",
    "ill",
    "throttled",
    "hot",
    "power-capped",
    "memory full",
    "held",
    "untold",
    "others",
    "busy",
    "idle",
    "no GPU",
    "asked",
]
"""The worst one first. docs/watching.md says what each means."""
RANKS = {name: rank for rank, name in enumerate(get_args(Trouble))}
USUAL = frozenset(
    {"power-capped", "memory full", "untold", "others", "busy", "idle", "no GPU", "asked"}
)
"""A GPU that works hard has its limits: worth a look, and no fault."""
QUIET = frozenset({"idle", "no GPU", "asked"})

HOT_C = 90.0
"""Where the driver tells no margin. A choice: no figure of a card's maker."""
MARGIN_C = 3.0
"""To the temperature at which a card slows down."""
FULL = 0.02
"""Free memory by total. A choice."""


@dataclass(frozen=True)
class Line:
    """One line of the view: a GPU, or a host that tells of none."""

    host: str
    trouble: Trouble
    why: str = ""
    gpu: GpuNow | None = None
    processes: tuple[ProcessNow, ...] | None = None
    services: tuple[ServiceNow, ...] = ()
    tokens_s: float | None = None
    """That its services made since the record before."""

    @property
    def order(self) -> tuple[int, str, int, str]:
        index = self.gpu.index if self.gpu and self.gpu.index is not None else -1
        return RANKS[self.trouble], self.host, index, self.gpu.pci if self.gpu else ""


def by_trouble(lines: Iterable[Line]) -> list[Line]:
    """The worst one first; equals by host and index."""
    return sorted(lines, key=lambda line: line.order)


def lines_of(
    host: str, now: Gauges, before: Gauges | None = None, known: Sequence[GpuNow] = ()
) -> list[Line]:
    """The lines of a host that has answered.

    `before`: its record before this one. `known`: GPUs that it told of since the watch began.
    """
    lines = [_line(host, gpu, now, before) for gpu in now.gpus]
    lines += _gone(host, now, known)
    if now.fault:
        lines.append(Line(host, "driver", now.fault))
    elif not lines:
        lines.append(Line(host, "no GPU", "" if now.driver else "found no nvidia-smi"))
    shown = {service.profile for line in lines for service in line.services}
    left = tuple(one for one in now.services if one.profile not in shown)
    for one in left:
        kind: Trouble = "held" if _held(one) else "untold" if one.reason else "busy"
        kind = "idle" if one.state == "stopped" else kind
        rate = rate_of((one,), before)
        lines.append(Line(host, kind, _told(one), services=(one,), tokens_s=rate))
    return [*lines, *(Line(host, "untold", note) for note in now.notes)]


def rate_of(services: Iterable[ServiceNow], before: Gauges | None) -> float | None:
    """Tokens that they made each second since `before`; None: not known."""
    rates = []
    earlier = {one.profile: one for one in before.services} if before else {}
    for one in services:
        old = earlier.get(one.profile)
        if old is None or GENERATED not in one.metrics or GENERATED not in old.metrics:
            continue
        made, passed = one.metrics[GENERATED] - old.metrics[GENERATED], one.at - old.at
        # A service that was started anew counts from nothing.
        if passed > 0 and made >= 0 and one.metrics.get(PROMPT, 0) >= old.metrics.get(PROMPT, 0):
            rates.append(made / passed)
    total = sum(rates)
    return total if rates and math.isfinite(total) else None


# -- one GPU ---------------------------------------------------------------------------------------


def _line(host: str, gpu: GpuNow, now: Gauges, before: Gauges | None) -> Line:
    on_it = None
    if now.processes is not None:
        on_it = tuple(one for one in now.processes if one.gpu == gpu.uuid and gpu.uuid)
    services = tuple(one for one in now.services if _uses(one, gpu, on_it or ()))
    trouble, why = _judged(gpu, on_it or (), services)
    return Line(host, trouble, why, gpu, on_it, services, rate_of(services, before))


def _uses(service: ServiceNow, gpu: GpuNow, on_it: Sequence[ProcessNow]) -> bool:
    """It computes there, or is to."""
    named = bool(gpu.uuid) and gpu.uuid in service.gpus
    return named or any(process.profile == service.profile for process in on_it)


def _judged(
    gpu: GpuNow, on_it: Sequence[ProcessNow], services: Sequence[ServiceNow]
) -> tuple[Trouble, str]:
    """The worst that is wrong, and why."""
    if gpu.recovery or any("requires reset" in fault for fault in gpu.faults):
        return "reset", gpu.recovery or "GPU requires reset"
    if gpu.faults:
        return "ill", gpu.faults[0]
    idle = gpu.reasons is not None and bool(gpu.reasons & IDLE)
    reasons = [] if idle or gpu.reasons is None else decode_throttle(gpu.reasons)
    if slow := [reason for reason in reasons if reason in SLOWDOWNS]:
        return "throttled", ", ".join(reason.replace("_", " ") for reason in slow)
    if (hot := _hot(gpu)) is not None:
        return "hot", hot
    if SOFTWARE_CAP in reasons:
        return "power-capped", ""
    if gpu.free_mib is not None and gpu.total_mib and gpu.free_mib < FULL * gpu.total_mib:
        return "memory full", f"{gpu.free_mib:.0f} MiB free"
    if held := [one for one in services if _held(one)]:
        return "held", _told(held[0])
    if untold := [one for one in services if one.reason]:
        return "untold", _told(untold[0])
    return _work(gpu, on_it)


def _hot(gpu: GpuNow) -> str | None:
    if gpu.margin_c is not None:
        return f"{gpu.margin_c:.0f} C to its limit" if gpu.margin_c <= MARGIN_C else None
    hot = gpu.temperature_c is not None and gpu.temperature_c >= HOT_C
    return f"{gpu.temperature_c:.0f} C" if hot else None


def _held(service: ServiceNow) -> bool:
    return service.state in ("held", "failed")


def _told(service: ServiceNow) -> str:
    state = service.state or "not told"
    return f"{service.profile}: {state}{f': {service.reason}' if service.reason else ''}"


def _work(gpu: GpuNow, on_it: Sequence[ProcessNow]) -> tuple[Trouble, str]:
    if foreign := [one for one in on_it if not one.unit]:
        told = ", ".join(dict.fromkeys(f"{one.user or '?'}: {_program(one)}" for one in foreign))
        return "others", told
    busy = bool(on_it) or (gpu.utilisation or 0) > 0
    return ("busy", "") if busy else ("idle", "")


def _program(process: ProcessNow) -> str:
    return process.name.rpartition("/")[2] or process.name or str(process.pid)


# -- GPUs that are no more -------------------------------------------------------------------------


def _gone(host: str, now: Gauges, known: Sequence[GpuNow]) -> Iterator[Line]:
    """Those that nvidia-smi complains of, and those that it told of before and does no more."""
    there = {gpu.pci for gpu in now.gpus}
    by_place = {gpu.pci: gpu for gpu in known}
    told: dict[str, str] = {}
    for complaint in now.complaints:
        place = PLACE.search(complaint)
        told.setdefault(address(place) if place else complaint, complaint)
    for pci, complaint in told.items():
        if pci not in there:
            yield Line(host, "gone", complaint, _blank(by_place.get(pci), pci))
    if now.fault:  # It tells of none: nothing follows for each of them.
        return
    for pci, gpu in by_place.items():
        if pci not in there and pci not in told:
            yield Line(host, "gone", "nvidia-smi no longer tells of it", _blank(gpu, pci))


def _blank(gpu: GpuNow | None, pci: str) -> GpuNow | None:
    """It by its names alone: figures of before are no figures of now."""
    if gpu is None:
        return GpuNow(None, "", pci, "") if PLACE.fullmatch(pci) else None
    return replace(GpuNow(gpu.index, gpu.uuid, gpu.pci, gpu.name))
