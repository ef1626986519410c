"""Hosts whose driver is not theirs: WSL and containers; and boards that have no GPU on a bus."""

from __future__ import annotations

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.cure import WINDOWS, as_root, cure, manager_of
from llamafleet.plans.driver.foreign import Culprit
from llamafleet.tables import driver_packages

WSL_LIBRARIES = "/usr/lib/wsl/"
"""Where Windows's driver shows through."""

LOST = "Failed to initialize NVML: Unknown Error"
"""What nvidia-smi says in a container whose devices were taken away (NVIDIA/nvidia-docker#1730)."""

TEGRA_NAMES = ("Jetson", "Tegra", "IGX Orin")


def tegra(snapshot: HostSnapshot) -> str:
    """What tells that this is a Jetson or another Tegra, whose GPU is on no bus; "": it is none."""
    if snapshot.pci_gpus:
        return ""
    if snapshot.tegra:
        return f"/etc/nv_tegra_release: {snapshot.tegra}"
    if any(name in snapshot.board for name in TEGRA_NAMES):
        return f"the board is {snapshot.board}"
    if "tegra" in snapshot.kernel:
        return f"kernel {snapshot.kernel}"
    said = snapshot.driver.smi_error
    return f"nvidia-smi: {said}" if "(nvgpu)" in said else ""


def windows(snapshot: HostSnapshot) -> Culprit | None:
    """In WSL: a Linux driver hides Windows's, or Windows's does not answer."""
    driver = snapshot.driver
    if snapshot.container != "wsl":
        return None
    packages = [p.name for p in driver.packages if driver_packages.has(p.name, "version")]
    files = (driver.library_file, driver.libcuda_file)
    hiding = [f.path for f in files if f and not f.path.startswith(WSL_LIBRARIES)]
    hidden = bool(hiding and (packages or driver.smi_state != "ok"))
    if hidden or (packages and driver.smi_state != "ok"):
        manager = manager_of(snapshot)
        names = " ".join(packages) or "PACKAGES"
        remove = manager.remove.format(names) if manager and packages else ""
        away = as_root(snapshot, remove) if remove else f"remove {' '.join(hiding)}"
        listed = ", ".join(packages) or "no package"
        return Culprit(
            f"a Linux driver is installed in WSL ({listed}"
            + (f"; {', '.join(hiding)}" if hiding else "")
            + "), which hides the one of Windows in /usr/lib/wsl/lib",
            f"{away}, then {cure('reboot', snapshot)}",
        )
    if driver.smi_state == "ok" and snapshot.gpus:
        return None
    said = f": {driver.smi_error}" if driver.smi_error else ""
    state = {
        "absent": "no nvidia-smi in /usr/lib/wsl/lib",
        "timeout": "nvidia-smi does not answer within its time limit",
    }.get(driver.smi_state, f"nvidia-smi shows no GPU{said}")
    return Culprit(f"{state} (WSL, whose driver is Windows's)", WINDOWS)


def lost_devices(snapshot: HostSnapshot) -> Culprit | None:
    """A container whose GPUs were taken from it while it ran."""
    said = snapshot.driver.smi_error
    inside = snapshot.container and snapshot.container != "wsl"
    if not inside or LOST not in said:
        return None
    return Culprit(
        f"nvidia-smi: {said} (in this container, {snapshot.container}, whose devices were taken "
        "away: the host's systemd was reloaded)",
        cure("restart-container", snapshot),
    )
