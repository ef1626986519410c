"""The card says of itself that it is well, behind all the work that the other checks gave it."""

from __future__ import annotations

from collections.abc import Mapping

from llamafleet.onhost.verify import conditions
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.gpu import NvmlUnavailable
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.conditions import Health
from llamafleet.protocol.result import Check, failed, passed

NAME = "health"

ACTIONS = {
    1: "a reset of the GPU",
    2: "a reboot of the host",
    3: "an end to its peer-to-peer traffic, and a reset",
    4: "an end to all work on it, and a reset",
    5: "a recovery of its IMEX domain",
    6: "a reset of its bus",
    7: "a restart of the system",
}
"""nvmlDeviceGpuRecoveryAction_t of nvml.h."""
EXPECTED = "no uncorrected memory error, no row or page waiting, no recovery asked for"


def judge_health(health: Health, bus_id: str) -> Check:
    """What a card does not tell is no fault: a GeForce has neither ECC nor spare rows."""
    reset = f"`sudo nvidia-smi --gpu-reset -i {bus_id or 'INDEX'}`, else reboot"
    again = f"{reset}; if it comes back, have the card replaced"
    if health.silent:
        found = f"NVML does not answer for this card: {health.silent}"
        return failed(NAME, found, EXPECTED, f"read `sudo dmesg | grep -i xid`; {again}")
    faults = list(_faults(health))
    if faults:
        replaced = health.rows_failed
        advice = "have the card replaced: it has no spare rows left" if replaced else again
        return failed(NAME, "; ".join(faults), EXPECTED, advice)
    told = {
        "uncorrected memory errors": health.ecc_uncorrected,
        "rows": health.rows_pending,
        "pages": health.pages_pending,
        "recovery": health.recovery_action,
    }
    well = [name for name, value in told.items() if value is not None]
    silent = [name for name, value in told.items() if value is None]
    found = f"nothing of {', '.join(well)}" if well else "it tells nothing of itself"
    if well and silent:
        found += f"; not told: {', '.join(silent)}"
    return passed(NAME, found, EXPECTED)


def _faults(health: Health) -> list[str]:
    found = []
    if health.ecc_uncorrected:
        found.append(f"{health.ecc_uncorrected} uncorrected memory errors since the driver started")
    if health.rows_failed:
        found.append("a row of memory could not be replaced")
    if health.rows_pending:
        found.append("rows of memory wait for a reset to be replaced")
    if health.pages_pending:
        found.append("pages of memory wait for a reset to be retired")
    if health.recovery_action:
        action = ACTIONS.get(health.recovery_action, f"action {health.recovery_action}")
        found.append(f"its driver asks for {action}")
    return found


def judge_all(found: Mapping[str, Check]) -> Check:
    """Of several GPUs, by name: after the work that they did together."""
    red = {name: check for name, check in found.items() if check.status == "fail"}
    if not red:
        return passed(NAME, f"nothing of {', '.join(found)}", EXPECTED)
    told = "; ".join(f"{name}: {check.found}" for name, check in red.items())
    return failed(NAME, told, EXPECTED, next(iter(red.values())).next)


def _place(place: Place) -> Check:
    nvml = place.evidence.nvml
    if nvml is None:
        raise NvmlUnavailable(place.evidence.nvml_problem)
    found = {
        f"GPU {gpu.index}": judge_health(conditions.health(nvml, gpu), gpu.bus_id)
        for gpu in place.gpus
    }
    return judge_all(found) if place.kind == "all" else next(iter(found.values()))


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "all"}), of_hidden=True, alone=True)
