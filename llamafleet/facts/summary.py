"""A snapshot in a few lines, for people."""

from __future__ import annotations

from llamafleet.facts.host import Driver, HostSnapshot, Toolkit


def summarize(snapshot: HostSnapshot) -> list[str]:
    """System, machine, GPUs, driver by its sources, compilers, toolkits and interpreters."""
    disks = ", ".join(f"{place} {mib}" for place, mib in snapshot.disk_free_mib.items())
    lines = [
        f"host: {snapshot.hostname or '?'}, {snapshot.os_name or 'unknown system'}, "
        f"{snapshot.arch}, kernel {snapshot.kernel}, "
        f"{f'glibc {snapshot.glibc}' if snapshot.glibc else 'no glibc'}, "
        f"{f'container {snapshot.container}, ' if snapshot.container else ''}"
        f"init {snapshot.init}, read as {snapshot.user}",
        f"machine: {snapshot.cpu or 'unknown CPU'}, {snapshot.cores} cores, "
        f"{snapshot.memory_mib} MiB memory, free MiB: {disks or 'unknown'}",
    ]
    lines += [
        f"gpu {gpu.index}: {gpu.name}, compute capability {gpu.compute_capability or 'not told'}, "
        f"{gpu.vram_mib} MiB, at {gpu.pci_address}"
        for gpu in snapshot.gpus
    ]
    lines += [
        f"card: 10de:{card.device_id} at {card.address}, bound to {card.kernel_driver or 'nothing'}"
        for card in snapshot.pci_gpus
    ]
    lines.append(f"driver: {_driver(snapshot.driver)}")
    compilers = (f"{c.path} ({c.kind} {c.version})" for c in snapshot.compilers)
    pythons = (f"{p.path} ({p.version})" for p in snapshot.pythons)
    lines += [
        f"compilers: {', '.join(compilers) or 'none'}",
        f"toolkits: {', '.join(map(_toolkit, snapshot.toolkits)) or 'none'}",
        f"python: {', '.join(pythons) or 'none'}",
    ]
    return lines


def _driver(driver: Driver) -> str:
    sources = {
        "loaded module": driver.module,
        "module on disk": driver.module_on_disk,
        "library": driver.library,
        "package": driver.package,
        "nvidia-smi": driver.smi,
        "CUDA up to": driver.cuda,
    }
    told = [f"{name} {version}" for name, version in sources.items() if version]
    if driver.smi_state != "ok":
        said = f" ({driver.smi_error})" if driver.smi_error else ""
        told.append(f"nvidia-smi {driver.smi_state}{said}")
    return ", ".join(told)


def _toolkit(toolkit: Toolkit) -> str:
    lacks = f", lacks {' '.join(toolkit.missing)}" if toolkit.missing else ""
    return f"{toolkit.root} (CUDA {toolkit.version or '?'}{lacks})"
