"""Why a GPU's clocks are below their maximum: bits of nvmlClocksEventReasons in nvml.h."""

from __future__ import annotations

IDLE = 0x1
THROTTLE_REASONS = {
    IDLE: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
SOFTWARE_CAP = "sw_power_cap"
SLOWDOWNS = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
"""None of a card that works as it is made."""
COUNTED = ("thermal", "software thermal", "hardware thermal", "power brake", "sync boost")
"""Of NVML's counters (Conditions.throttled_s): alone enough. "power" is none, as most cards end a
prompt at their own power limit. The board limit also counts where the card works as it is made, and
needs one of SLOWDOWNS beside it."""


def decode_throttle(bits: int) -> list[str]:
    """Names of the reasons why clocks are below their maximum; idleness is none."""
    known = [name for bit, name in THROTTLE_REASONS.items() if bits & bit and bit != IDLE]
    rest = bits & ~sum(THROTTLE_REASONS)
    return known + ([f"unknown_{rest:#x}"] if rest else [])
