"""Was a GPU free and itself while it was measured: what NVML tells, put together.

Each item may be missing: cards, drivers and containers tell different parts. What the record means
is judged by freedom.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from llamafleet.onhost.verify.gpu import Gpu, Moment, Nvml, OnGpu, Sample
from llamafleet.onhost.verify.sampling import Recording
from llamafleet.protocol.conditions import Conditions, Health, Process
from llamafleet.protocol.throttle import THROTTLE_REASONS

IDLE_S = 4.0
"""How long a GPU may take to come to rest: NVML's utilisation is a mean over up to a second, and
what a process held is freed a moment after it ended."""
LOOK_EVERY_S = 0.2
IDLE_UTILISATION = 5.0
"""Per cent. An idle H200 showed 0 to 3 (2026-11-26); a desktop's compositor takes a few."""
HELD_MIB = 128.0
"""Memory that no listed process holds and that is no sign of one. On an H200 (driver 580) it was 0
with nothing running and 8 beside a process; a process without a model held 518 (2026-11-26)."""
CLOCK_SM, CLOCK_MEMORY = 1, 2
UNCORRECTED, VOLATILE = 1, 0

VIOLATIONS = {"power": 0, "thermal": 1, "sync boost": 2, "board limit": 3}
"""nvmlPerfPolicyType_t. Nanoseconds below the application clocks since the driver was loaded. Not
asked: low utilisation, which grows while a card is idle, and reliability, the voltage limit that a
GeForce meets at its highest clock."""
EVENT_FIELDS = {
    "software thermal": "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "hardware thermal": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "power brake": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}
"""Counters of newer drivers, in nanoseconds. Their numbers moved between releases of nvml.h: an
older driver refuses them, or has another figure there, which does not grow like time."""
RECOVERY_FIELD = "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"


@dataclass(frozen=True)
class Look:
    """One GPU while none of the verification's processes is on it."""

    at: float
    moment: Moment
    counters: dict[str, int] = field(default_factory=dict)
    """Nanoseconds, by reason."""


class Watch:
    """One benchmark on these GPUs: made before it starts, asked when it has ended."""

    def __init__(
        self, nvml: Nvml, gpus: Sequence[Gpu], sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._nvml, self._gpus, self._sleep = nvml, gpus, sleep
        self._before = self._at_rest()

    def _at_rest(self) -> list[Look]:
        """As the GPUs are when they are at rest, or after IDLE_S."""
        for _ in range(round(IDLE_S / LOOK_EVERY_S)):
            looks = [look(self._nvml, gpu) for gpu in self._gpus]
            if not any(in_use(one.moment) for one in looks):
                return looks
            self._sleep(LOOK_EVERY_S)
        return [look(self._nvml, gpu) for gpu in self._gpus]

    def ended(self, recording: Recording) -> tuple[Conditions, ...]:
        """What was seen; `recording` is of the worker that measured."""
        after = self._at_rest()
        return tuple(
            gather(self._nvml, gpu, before, moments(recording, number), later)
            for number, (gpu, before, later) in enumerate(
                zip(self._gpus, self._before, after, strict=True)
            )
        )


def look(nvml: Nvml, gpu: Gpu) -> Look:
    return Look(time.monotonic(), nvml.moment(gpu), counters(nvml, gpu))


def counters(nvml: Nvml, gpu: Gpu) -> dict[str, int]:
    """Nanoseconds below the application clocks, by reason; those that the card counts."""
    ask = nvml.card_asker(gpu)
    found = {}
    for name, policy in VIOLATIONS.items():
        told = ask("nvmlDeviceGetViolationStatus", policy)
        if told is not None:
            found[name] = int(told.violationTime)
    return found | nvml.fields(gpu, EVENT_FIELDS)


def in_use(moment: Moment) -> bool:
    """Something may still be at work, or hold memory, that is about to end."""
    held = held_mib(moment)
    return (
        any(one.kind != "graphics" for one in moment.processes or ())
        or (moment.utilisation or 0) > IDLE_UTILISATION
        or (held or 0) > HELD_MIB
    )


def held_mib(moment: Moment) -> float | None:
    """Memory in use that no listed process holds; None: not told."""
    if moment.used_mib is None:
        return None
    # One process may stand in several lists, each time with all that it holds.
    by_pid: dict[int, float] = {}
    for one in moment.processes or ():
        by_pid[one.pid] = max(by_pid.get(one.pid, 0.0), one.memory_mib or 0.0)
    return max(0.0, moment.used_mib - sum(by_pid.values()))


@dataclass(frozen=True)
class Seen:
    """One GPU while the worker ran."""

    whole: tuple[Moment, ...]
    """From its start to its end."""
    loaded: tuple[tuple[Moment, ...], ...]
    """Under load, a row for each test; in each test the worker's memory stays as it is."""
    pid: int
    start: float | None
    end: float | None
    """time.monotonic() of the first and the last mark."""


def moments(recording: Recording, number: int) -> Seen:
    """What was seen of the GPU of this number among those that were watched."""
    marks = recording.marks

    def of(samples: Iterable[Sample]) -> tuple[Moment, ...]:
        return tuple(one.moments[number] for one in samples if len(one.moments) > number)

    rows = []
    for test in ("pp", "tg"):
        ends = [marks[name] for name in (f"{test} done",) if name in marks]
        rows.append(of([*recording.between(test, f"{test} done"), *ends]))
    if not any(rows):
        rows = [of(recording.between("measuring", "measured"))]
    first, last = marks.get("measuring"), marks.get("measured")
    return Seen(
        whole=of([*recording.samples, *marks.values()]),
        loaded=tuple(row for row in rows if row),
        pid=recording.pid,
        start=first.at if first else None,
        end=last.at if last else None,
    )


def gather(nvml: Nvml, gpu: Gpu, before: Look, seen: Seen, after: Look) -> Conditions:
    """The record of one GPU."""
    ask = nvml.card_asker(gpu)
    loaded = [moment for row in seen.loaded for moment in row]
    others, unnamed = other_processes(before, seen, after)
    # Under load: a laptop's limit is lower while it is idle.
    limits = [m.power_limit_w for m in loaded if m.power_limit_w is not None]
    constraints = ask("nvmlDeviceGetPowerManagementLimitConstraints")
    return Conditions(
        uuid=gpu.uuid,
        others=others,
        others_unnamed=unnamed,
        idle_utilisation=_most(one.moment.utilisation for one in (before, after)),
        held_mib=held_mib(before.moment),
        came_mib=came_mib(before, seen, after),
        compute_mode=nvml.compute_mode(gpu),
        span_s=round(seen.end - seen.start, 3) if seen.start and seen.end else None,
        throttled_s=throttled_s(before, after),
        throttled_share=throttled_share(loaded),
        sm_clock_mhz=_median(m.sm_clock_mhz for m in loaded),
        sm_clock_max_mhz=_float(ask("nvmlDeviceGetMaxClockInfo", CLOCK_SM)),
        sm_clock_default_mhz=_float(ask("nvmlDeviceGetDefaultApplicationsClock", CLOCK_SM)),
        sm_clock_set_mhz=_float(ask("nvmlDeviceGetApplicationsClock", CLOCK_SM)),
        memory_clock_mhz=_median(m.memory_clock_mhz for m in loaded),
        memory_clock_max_mhz=_float(ask("nvmlDeviceGetMaxClockInfo", CLOCK_MEMORY)),
        power_limit_w=max(limits, default=None),
        power_default_w=_watt(ask("nvmlDeviceGetPowerManagementDefaultLimit")),
        power_max_w=_watt(constraints and constraints[1]),
        temperature_c=max((t for m in loaded if (t := m.temperature_c) is not None), default=None),
        pcie_generation=max((m.pcie_generation or 0 for m in loaded), default=0) or None,
        pcie_generation_max=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=max((m.pcie_width or 0 for m in loaded), default=0) or None,
        pcie_width_max=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        display_active=_bool(ask("nvmlDeviceGetDisplayActive")),
        persistence=_bool(ask("nvmlDeviceGetPersistenceMode")),
        health=health(nvml, gpu),
    )


def health(nvml: Nvml, gpu: Gpu) -> Health:
    """Of the card, now."""
    ask = nvml.card_asker(gpu)
    rows = ask("nvmlDeviceGetRemappedRows")
    told = Health(
        ecc_uncorrected=ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE),
        rows_pending=bool(rows[2]) if rows else None,
        rows_failed=bool(rows[3]) if rows else None,
        pages_pending=_bool(ask("nvmlDeviceGetRetiredPagesPendingStatus")),
        recovery_action=nvml.fields(gpu, {"action": RECOVERY_FIELD}).get("action"),
    )
    # Last: one of these questions may be what it has no answer to any more.
    return replace(told, silent=nvml.why_silent(gpu))


def other_processes(before: Look, seen: Seen, after: Look) -> tuple[tuple[Process, ...], int]:
    """Processes of others, and how many more there were that can't be told from the worker.

    Where NVML shows the worker's pid, each that is not ours is another's. Where it does not, the
    pids are another container's: those that were there before or after are others, and of those
    that came with the worker one is the worker.
    """
    found: dict[int, Process] = {}

    def note(moment: Moment) -> None:
        for one in moment.processes or ():
            if not one.ours and one.pid != seen.pid:
                found.setdefault(one.pid, _process(one))

    for moment in (before.moment, after.moment):
        note(moment)
    known = any(one.pid == seen.pid or one.ours for m in seen.whole for one in m.processes or ())
    if known:
        for moment in seen.whole:
            note(moment)
        return tuple(found.values()), 0
    most = 0
    for moment in seen.whole:
        came = {one.pid for one in moment.processes or () if one.pid not in found}
        most = max(most, len(came))
    return tuple(found.values()), max(0, most - 1)


def came_mib(before: Look, seen: Seen, after: Look) -> float | None:
    """The most memory that others took after the worker started; None: not told.

    Where NVML shows what the worker holds, all else must stay as it was; where it does not, all
    must stay the same while a test runs.
    """
    at_first, at_last = held_mib(before.moment), held_mib(after.moment)
    grown = [0.0]
    if at_first is not None and at_last is not None:
        grown.append(at_last - at_first)
    told = 0
    for row in seen.loaded:
        used = [m.used_mib for m in row if m.used_mib is not None]
        mine = [_held_by(m, seen.pid) for m in row if m.used_mib is not None]
        told += len(used)
        if used and all(one is not None for one in mine) and at_first is not None:
            grown.append(max(held_mib(m) or 0.0 for m in row) - at_first)
        elif used:
            grown.append(max(used) - min(used))
    return round(max(grown), 1) if told or at_last is not None else None


def _held_by(moment: Moment, pid: int) -> float | None:
    for one in moment.processes or ():
        if one.pid == pid:
            return one.memory_mib
    return None


def throttled_s(before: Look, after: Look) -> dict[str, float]:
    """Seconds by reason. A figure that grew more than the time that went by is no time."""
    span = after.at - before.at
    grown = {
        name: (after.counters[name] - value) / 1e9
        for name, value in before.counters.items()
        if name in after.counters
    }
    return {name: round(s, 3) for name, s in grown.items() if 0 <= s <= SLACK * span + 0.1}


SLACK = 1.1
"""The driver reads clocks and counters a moment apart."""


def throttled_share(loaded: Sequence[Moment]) -> dict[str, float]:
    """Share of the moments under load in which NVML gave this reason."""
    bits = [m.throttle for m in loaded if m.throttle is not None]
    shares = {
        name: sum(1 for one in bits if one & bit) / len(bits)
        for bit, name in THROTTLE_REASONS.items()
        if bits
    }
    return {name: round(share, 3) for name, share in shares.items() if share and name != "gpu_idle"}


def _process(one: OnGpu) -> Process:
    return Process(one.pid, one.kind, one.memory_mib, one.user, one.command)


def _median(values: Iterable[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return median(told) if told else None


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)


def _watt(milliwatt: int | None) -> float | None:
    return milliwatt / 1000 if milliwatt else None


def _bool(value: int | None) -> bool | None:
    return None if value is None else bool(value)
