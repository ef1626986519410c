"""Why a GPU may be slower than its peers: what the record says of it and not of them.

The strongest first: what is always a cause before what may be one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from llamafleet.history.record import Record, Test
from llamafleet.protocol.conditions import is_capped
from llamafleet.protocol.throttle import COUNTED

THROTTLED_S = 0.1
"""Seconds more than the peers have."""
CLOCK = 0.97
"""Of the peers' clock: H200s and H100s kept 1980 of 1980 MHz, each of them (2026-11-26)."""
COLD = 10.0
"""Degrees above the peers', said beside a slowdown by heat or a low clock."""

HOLDS = 0.02
"""Below the peers' generation: by so much a free card's own may differ (verify/freedom.py)."""

Slow = dict[Test, float]
"""How far below the peers, as a share, by test; none of what was not judged."""


def reasons(own: Record, peers: Sequence[Record], slow: Slow) -> tuple[str, ...]:
    """One sentence each; empty: nothing in the record tells."""
    return tuple(text for look in LOOKS for text in look(own, peers, slow))


def _processes(own: Record, peers: Sequence[Record], slow: Slow) -> Iterator[str]:
    # A desktop has one on each GPU.
    if own.processes and own.processes > (_usual(peers, lambda r: r.processes) or 0):
        yield f"{_counted(own.processes, 'other process', 'es')} used it meanwhile"


def _heat(own: Record, peers: Sequence[Record], slow: Slow) -> Iterator[str]:
    for reason in COUNTED:
        seconds = own.throttled_s.get(reason, 0.0)
        usual = median(r.throttled_s.get(reason, 0.0) for r in peers)
        if seconds > usual + THROTTLED_S:
            yield f"slowed down ({reason}) for {seconds:.1f} s{_warm(own, peers)}"


def _warm(own: Record, peers: Sequence[Record]) -> str:
    usual = _usual(peers, lambda r: r.temperature_c)
    if own.temperature_c is None or usual is None or own.temperature_c < usual + COLD:
        return ""
    return f", at {own.temperature_c:.0f} °C where its peers had {usual:.0f}"


def _power(own: Record, peers: Sequence[Record], slow: Slow) -> Iterator[str]:
    limit, usual = own.power_limit_w, _usual(peers, lambda r: r.power_limit_w)
    made = own.power_default_w
    if limit is None:
        return
    text = ""
    if made and is_capped(limit, made) and not (usual and usual <= limit):
        text = f"its power limit is {limit:g} W, below its default of {made:g} W"
    elif usual and is_capped(limit, usual):
        text = f"its power limit is {limit:g} W, that of its peers {usual:g} W"
    if text and "tg" in slow and slow["tg"] <= HOLDS < slow.get("pp", 0):
        text += " (prompt processing is slow and generation holds, as a power limit does it)"
    if text:
        yield text


def _clocks(own: Record, peers: Sequence[Record], slow: Slow) -> Iterator[str]:
    clocks: tuple[tuple[str, Callable[[Record], float | None]], ...] = (
        ("SM", lambda r: r.sm_clock_mhz),
        ("memory", lambda r: r.memory_clock_mhz),
    )
    for name, clock in clocks:
        told, usual = clock(own), _usual(peers, clock)
        if told is not None and usual and told < CLOCK * usual:
            yield f"its {name} clock was {told:g} MHz, that of its peers {usual:g}"


def _link(own: Record, peers: Sequence[Record], slow: Slow) -> Iterator[str]:
    width, usual = own.pcie_width, _usual(peers, lambda r: r.pcie_width)
    most = own.pcie_width_max
    if width and usual and width < usual:
        yield f"PCIe x{width}, its peers x{usual:g}"
    elif width and most and width < most and not usual:
        yield f"PCIe x{width} of x{most}"
    generation, usual = own.pcie_generation, _usual(peers, lambda r: r.pcie_generation)
    if generation and usual and generation < usual:
        yield f"PCIe generation {generation}, its peers {usual:g}"


def _driver(own: Record, peers: Sequence[Record], slow: Slow) -> Iterator[str]:
    others = {r.driver for r in peers if r.driver}
    if own.driver and others and own.driver not in others:
        yield f"driver {own.driver}, its peers {', '.join(sorted(others)[:3])}"


def _persistence(own: Record, peers: Sequence[Record], slow: Slow) -> Iterator[str]:
    told = [r.persistence for r in peers if r.persistence is not None]
    if own.persistence is False and told and all(told):
        yield "persistence mode is off, that of its peers on"


LOOKS = (_processes, _heat, _power, _clocks, _link, _driver, _persistence)


def _usual(peers: Sequence[Record], of: Callable[[Record], float | None]) -> float | None:
    """None: no peer tells."""
    told = [value for r in peers if (value := of(r)) is not None]
    return median(told) if told else None


def _counted(count: int, what: str, several: str) -> str:
    return f"{count} {what}{several if count > 1 else ''}"
