"""What the conditions of a benchmark mean: figures of a free and healthy GPU, or why not.

Busy, for these change pp or tg: a process of others, load or memory of unknown owner, a slowdown by
heat or by the power supply, a power limit below the card's own, clocks that are held down, figures
that differ from repetition to repetition. Not busy: a card at its own power limit, which is how
most cards end a prompt; a display or a driver that is unloaded when idle, which are said. A narrow
or slow PCIe link is a warning: the model is read through it once and pp and tg stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llamafleet.onhost.verify.conditions import HELD_MIB, IDLE_UTILISATION
from llamafleet.protocol.conditions import Conditions, Process, is_capped
from llamafleet.protocol.result import Rates
from llamafleet.protocol.throttle import COUNTED, SLOWDOWNS, SOFTWARE_CAP

Weight = Literal["busy", "warn", "note"]

HELD_WITH_DISPLAY_MIB = 2048.0
"""A desktop holds memory that no list names, under WSL2 all of Windows' own."""
THROTTLED = 0.01
"""Share of the measurement below the application clocks: less than that is within a figure's own
spread."""
SAMPLED = 0.1
"""Share of the samples under load with that reason: one of many may be the moment between two
states."""
AT_CLOCK = 0.97
"""Of the application clock that the card is made for. An H200 kept 1980 of 1980 (2026-11-26)."""
OF_MAX_CLOCK = 0.75
"""Of the highest SM clock: a GeForce, which tells no application clock, works at 85 % and more of
the highest that its table holds."""
OF_MAX_MEMORY_CLOCK = 0.85
"""CUDA takes a GeForce's second highest memory clock: 10251 of 10501 MHz on an RTX 4090, 5005 of
5505 on a GTX 1080 Ti."""
SPREAD = {"pp": 0.05, "tg": 0.02}
"""Standard deviation by median. Of free cards, 8 measurements on H200s and 3 on H100s (2026-11-26):
tg 0.1 to 1.2 %; pp 0.1 to 0.8 % with 7B, 0.4 to 2.4 % with 160M, whose prompt takes 4 ms. With a
load that came in the middle: pp 26 %."""

BROKER = "nvidia-cuda-mps-server"
"""Stands between programs and the GPU; those that use it are listed by themselves."""

COOL = "cool the GPU (fans, dust, room) and its power supply: `nvidia-smi -q -d PERFORMANCE`"


@dataclass(frozen=True)
class Finding:
    """One thing that the conditions show."""

    weight: Weight
    text: str
    next: str = ""
    standing: bool = False
    """It is set so: it does not pass by waiting."""


@dataclass(frozen=True)
class Called:
    """How a sentence and a command call a GPU."""

    name: str
    address: str


def judge(conditions: Sequence[Conditions], names: Sequence[Called]) -> list[Finding]:
    """Of all GPUs of a measurement."""
    return [
        finding
        for one, name in zip(conditions, names, strict=True)
        for part in (processes, load, slowdowns, power, clocks, link, notes)
        for finding in part(one, name)
    ]


def processes(seen: Conditions, gpu: Called) -> Iterator[Finding]:
    for one in seen.others:
        if one.kind == "graphics" or BROKER in one.command:
            yield Finding("note", f"{gpu.name}: {one}")
        else:
            yield Finding("busy", f"another process on {gpu.name}: {one}", _ending(one))
    if seen.others_unnamed:
        yield Finding(
            "busy",
            f"{seen.others_unnamed} more processes on {gpu.name} than ours, outside this container",
            "run `nvidia-smi` on the host, end them or wait for them",
        )


def _ending(one: Process) -> str:
    if not one.user and not one.command:
        return f"look for pid {one.pid} on the host (`nvidia-smi`), end it or wait for it"
    return f"end pid {one.pid} of {one.user or 'its user'} (`ps -fp {one.pid}`) or wait for it"


def load(seen: Conditions, gpu: Called) -> Iterator[Finding]:
    """Work and memory that no process in the lists explains."""
    named = any(one.kind != "graphics" for one in seen.others)
    if (seen.idle_utilisation or 0) > IDLE_UTILISATION:
        yield Finding(
            "busy",
            f"{gpu.name} was at {seen.idle_utilisation:.0f} % while we did nothing",
            "find what runs on it: `nvidia-smi pmon -c 1`, on the host where this is a container",
        )
    limit = HELD_WITH_DISPLAY_MIB if seen.display_active else HELD_MIB
    advice = "find who holds it: `fuser -v /dev/nvidia*`, on the host where this is a container"
    if (seen.held_mib or 0) > limit:
        text = f"{seen.held_mib:.0f} MiB of {gpu.name} were in use that no listed process holds"
        yield Finding("busy", text, advice)
    if (seen.came_mib or 0) > limit and not named:
        text = f"others took {seen.came_mib:.0f} MiB of {gpu.name} during the measurement"
        yield Finding("busy", text, advice)


def slowdowns(seen: Conditions, gpu: Called) -> Iterator[Finding]:
    """By NVML's counters; by samples what they do not count."""
    span = seen.span_s or 0.0
    shares = {reason: s / span for reason, s in seen.throttled_s.items() if span > 0}
    sampled = [r for r in SLOWDOWNS if seen.throttled_share.get(r, 0) > SAMPLED]
    counted = [r for r in COUNTED if shares.get(r, 0) >= THROTTLED]
    if sampled and shares.get("board limit", 0) >= THROTTLED:
        counted.append("board limit")
    for reason in counted:
        text = f"{gpu.name} was slowed down ({reason}) for {seen.throttled_s[reason]:.2f} s"
        yield Finding("busy", f"{text} of {span:.1f}", COOL)
    if sampled and not counted:
        text = ", ".join(f"{r} in {seen.throttled_share[r]:.0%} of the samples" for r in sampled)
        yield Finding("busy", f"{gpu.name} was slowed down: {text}", COOL)


def power(seen: Conditions, gpu: Called) -> Iterator[Finding]:
    """A limit below the card's own is a cap; at its own limit a card is as it is sold."""
    limit, default = seen.power_limit_w, seen.power_default_w
    if limit and default and is_capped(limit, default):
        yield Finding(
            "busy",
            f"the power limit of {gpu.name} is {limit:g} W, below its default of {default:g} W",
            f"`sudo nvidia-smi -i {gpu.address} -pl {default:g}`, or set allow_busy = true",
            standing=True,
        )
    elif seen.throttled_share.get(SOFTWARE_CAP, 0) > SAMPLED:
        yield Finding("note", f"{gpu.name} worked at its own power limit of {_told(limit)} W")


def clocks(seen: Conditions, gpu: Called) -> Iterator[Finding]:
    """Clocks that somebody holds down; with a slowdown or the power limit they are explained."""
    made, now = seen.sm_clock_default_mhz, seen.sm_clock_set_mhz
    if made and now and now < made:
        yield Finding(
            "busy",
            f"the application clock of {gpu.name} is set to {now:g} MHz, below its {made:g}",
            f"`sudo nvidia-smi -i {gpu.address} -rac`, or set allow_busy = true",
            standing=True,
        )
        return
    explained = any(seen.throttled_share.get(r, 0) > 0 for r in (SOFTWARE_CAP, *SLOWDOWNS))
    least = max(AT_CLOCK * (made or 0), OF_MAX_CLOCK * (seen.sm_clock_max_mhz or 0))
    if seen.sm_clock_mhz is not None and seen.sm_clock_mhz < least and not explained:
        yield Finding(
            "busy",
            f"the SM clock of {gpu.name} was {seen.sm_clock_mhz:g} of "
            f"{_told(seen.sm_clock_max_mhz)} MHz under load, and NVML gives no reason: it is "
            "locked",
            f"`sudo nvidia-smi -i {gpu.address} -rgc`, or set allow_busy = true",
            standing=True,
        )
    least = OF_MAX_MEMORY_CLOCK * (seen.memory_clock_max_mhz or 0)
    if seen.memory_clock_mhz is not None and seen.memory_clock_mhz < least:
        yield Finding(
            "busy",
            f"the memory clock of {gpu.name} was {seen.memory_clock_mhz:g} of "
            f"{_told(seen.memory_clock_max_mhz)} MHz under load",
            f"`sudo nvidia-smi -i {gpu.address} -rmc`, or set allow_busy = true",
            standing=True,
        )


def link(seen: Conditions, gpu: Called) -> Iterator[Finding]:
    parts = []
    if seen.pcie_width and seen.pcie_width_max and seen.pcie_width < seen.pcie_width_max:
        parts.append(f"x{seen.pcie_width} of x{seen.pcie_width_max}")
    now, most = seen.pcie_generation, seen.pcie_generation_max
    if now and most and now < most:
        parts.append(f"generation {now} of {most}")
    if parts:
        yield Finding(
            "warn",
            f"PCIe of {gpu.name} under load: {', '.join(parts)}; loading is slower, pp and tg "
            "are not",
            "seat the card and its riser again, and look at the slot's settings in the firmware",
        )


def notes(seen: Conditions, gpu: Called) -> Iterator[Finding]:
    if seen.display_active:
        yield Finding("note", f"{gpu.name} drives a display")
    if seen.persistence is False:
        yield Finding("note", f"{gpu.name}: persistence mode is off")
    if seen.compute_mode:
        yield Finding("note", f"{gpu.name}: compute mode {seen.compute_mode}")


def spread(rates: dict[str, Rates]) -> Iterator[Finding]:
    """Repetitions that differ more than those of a free card do."""
    for test, one in rates.items():
        share = one.stdev_ts / one.median_ts if one.median_ts else 0.0
        if share > SPREAD[test]:
            yield Finding(
                "busy",
                f"{test}{one.n} differs by {share:.1%} between repetitions, more than "
                f"{SPREAD[test]:.0%}",
                "look for what else runs on this host, and for heat: `nvidia-smi dmon`, `top`",
            )


def _told(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"
