"""What a GPU was like before, during and after a benchmark: written beside its figures.

None, "" and an empty list stand for what NVML does not tell there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CAPPED = 0.99
"""Of the default power limit: NVML gives it in milliwatts, and some boards round."""


def is_capped(limit_w: float, usual_w: float) -> bool:
    """Whether a power limit is below the default, or below that of other GPUs of its kind."""
    return limit_w < CAPPED * usual_w


@dataclass(frozen=True)
class Process:
    """One that held a GPU and is none of the verification's."""

    pid: int
    kind: str
    """compute, graphics or MPS."""
    memory_mib: float | None = None
    user: str = ""
    command: str = ""

    def __str__(self) -> str:
        of_whom = ", ".join(part for part in (self.user, self.command) if part)
        memory = f", {self.memory_mib:.0f} MiB" if self.memory_mib is not None else ""
        return f"pid {self.pid} ({of_whom or 'not to be seen from here'}{memory}, {self.kind})"


@dataclass(frozen=True)
class Health:
    """Of the card, since its driver was loaded."""

    silent: str = ""
    """Why NVML does not answer for it."""
    ecc_uncorrected: int | None = None
    rows_pending: bool | None = None
    """Rows of memory wait for a reset to be replaced by spare ones."""
    rows_failed: bool | None = None
    """No spare row is left."""
    pages_pending: bool | None = None
    """The same as rows, of cards that retire pages."""
    recovery_action: int | None = None
    """nvmlDeviceGpuRecoveryAction_t; 0: none."""


@dataclass(frozen=True)
class Conditions:
    """Of one GPU, over one benchmark."""

    uuid: str
    others: tuple[Process, ...] = ()
    """Processes of others, before, during or after."""
    others_unnamed: int = 0
    """Processes more than the worker, where pids are another container's."""
    idle_utilisation: float | None = None
    """Per cent, before the worker started or after it ended, whichever is more."""
    held_mib: float | None = None
    """Memory in use before the worker started, which no listed process holds."""
    came_mib: float | None = None
    """The most that came to it later."""
    compute_mode: str = ""
    span_s: float | None = None
    """Of the measurement."""
    throttled_s: dict[str, float] = field(default_factory=dict)
    """Seconds below the application clocks, by reason: NVML's counters."""
    throttled_share: dict[str, float] = field(default_factory=dict)
    """Share of the samples under load in which NVML gave this reason."""
    sm_clock_mhz: float | None = None
    """Median under load."""
    sm_clock_max_mhz: float | None = None
    sm_clock_default_mhz: float | None = None
    """Application clock as the card is made."""
    sm_clock_set_mhz: float | None = None
    """Application clock as it is set."""
    memory_clock_mhz: float | None = None
    memory_clock_max_mhz: float | None = None
    power_limit_w: float | None = None
    """The lower one of what is set and what is enforced, at its highest under load."""
    power_default_w: float | None = None
    power_max_w: float | None = None
    temperature_c: float | None = None
    """The highest."""
    pcie_generation: int | None = None
    """Under load."""
    pcie_generation_max: int | None = None
    """Of card and slot."""
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    display_active: bool | None = None
    persistence: bool | None = None
    health: Health = Health()
