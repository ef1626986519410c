"""libcuda by itself: nvidia-smi works without it, and CUDA does not."""

from __future__ import annotations

import re
from dataclasses import replace

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.cure import as_root, cure, manager_of
from llamafleet.plans.driver.facts import package_versions
from llamafleet.plans.driver.foreign import Culprit
from llamafleet.plans.toolkit.compatibility import newest_cuda
from llamafleet.tables import parse_version
from llamafleet.tables.toolkits import driver_floors

COMPAT = "/compat/"
"""Folder of the packages cuda-compat-*: the libcuda of a newer driver, for data centre GPUs."""

VGPU = re.compile(r"-\d{1,3}[ABCQ]$")

CONSUMER = ("GeForce", "TITAN")
"""In names of GPUs on which that libcuda ends with error 804 (forward compatibility was attempted
on non supported HW)."""


def without_cuda(snapshot: HostSnapshot) -> Culprit | None:
    """nvidia-smi shows GPUs and can't load libcuda: "CUDA Version: N/A"."""
    driver = snapshot.driver
    if driver.cuda_unknown != "N/A" or driver.smi_state != "ok":
        return None
    found = "nvidia-smi shows the GPUs and CUDA Version: N/A: it can't load libcuda"
    if snapshot.container == "wsl":
        return Culprit(found, cure("install-tools", snapshot))
    if snapshot.container:
        given = driver.capabilities
        said = f" (NVIDIA_DRIVER_CAPABILITIES is {given})" if given else ""
        return Culprit(f"{found}{said}", cure("compute-capability", snapshot))
    if _is_vgpu_host(snapshot) and "hypervisor" in snapshot.cpu_flags and _has_vgpus(snapshot):
        return Culprit(
            f"{found}; this is a vGPU host's driver, in a virtual machine that has a vGPU",
            cure("guest-driver", snapshot),
        )
    if _is_vgpu_host(snapshot):
        return Culprit(
            f"{found}; this is the driver of a vGPU host, which has none",
            "run CUDA in a virtual machine that has a vGPU and the guest driver; or replace this "
            "driver by NVIDIA's ordinary one: its machines then have no vGPU",
        )
    if driver.libcuda_file:
        return Culprit(
            f"{found}, though {driver.libcuda_file.path} is there",
            f"{as_root(snapshot, 'ldconfig')}; ldd {driver.libcuda_file.path}; "
            "python3 -c 'import ctypes; ctypes.CDLL(\"libcuda.so.1\")'",
        )
    return Culprit(f"{found}, and there is no libcuda.so.1", cure("install-tools", snapshot))


def _has_vgpus(snapshot: HostSnapshot) -> bool:
    """As "GRID RTX6000-8Q": name, memory and kind of the part of a card."""
    return any(VGPU.search(gpu.name) for gpu in snapshot.gpus)


def _is_vgpu_host(snapshot: HostSnapshot) -> bool:
    """The module that hands out vGPUs is loaded; or a hypervisor has a driver and no libcuda."""
    names = [package.name for package in snapshot.driver.packages]
    packaged = any("vgpu" in name for name in names)
    hypervisor = snapshot.kernel.endswith("-pve") and snapshot.driver.libcuda_file is None
    return snapshot.driver.vgpu_host or packaged or hypervisor


def other_libcuda(snapshot: HostSnapshot) -> Culprit | None:
    """libcuda is of another driver than the module: a compat one, or one that was left behind."""
    driver = snapshot.driver
    file, module = driver.libcuda_file, driver.module
    if snapshot.container == "wsl" or not module:
        return None
    compat = file is not None and COMPAT in file.path
    if driver.libcuda and driver.libcuda != module and driver.library in (None, module):
        if compat and not _consumer(snapshot):
            return None
        if compat or len(package_versions(snapshot)) <= 1:
            return _of_another(snapshot, driver.libcuda)
    floor = _foreign_cuda(snapshot)
    if floor and _consumer(snapshot):
        return _compat(
            snapshot,
            f"nvidia-smi says CUDA {driver.cuda}, which comes with driver {floor} or newer, and "
            f"the driver is {driver.smi or module}: a compat libcuda hides the driver's own",
        )
    return None


def compat_note(snapshot: HostSnapshot) -> tuple[str, ...]:
    """A compat libcuda on a GPU that may use it."""
    driver = snapshot.driver
    file = driver.libcuda_file
    if file is None or COMPAT not in file.path or driver.libcuda == driver.module:
        return ()
    return (
        f"CUDA uses {file.path} of a newer driver, not the driver's own {driver.module}: it goes "
        "with data centre GPUs alone",
    )


def _consumer(snapshot: HostSnapshot) -> bool:
    return any(word in gpu.name for gpu in snapshot.gpus for word in CONSUMER)


def _foreign_cuda(snapshot: HostSnapshot) -> str:
    """The driver that nvidia-smi's CUDA version comes with, where it can't be this one; "": it can.

    By branch and major version alone: the table's drivers are those that NVIDIA ships with a
    toolkit, and others of the branch may have its CUDA version too.
    """
    driver = snapshot.driver
    version = driver.module or driver.smi
    if not version or not driver.cuda:
        return ""
    own = newest_cuda(replace(driver, cuda=None, smi=version))
    floor = next((row for row in driver_floors() if row.cuda == driver.cuda), None)
    if floor is None:
        return ""
    # None: older than every row.
    later = own is None or parse_version(driver.cuda)[0] > parse_version(own[0])[0]
    earlier = parse_version(version)[0] < parse_version(floor.driver)[0]
    return floor.driver if later and earlier else ""


def _of_another(snapshot: HostSnapshot, version: str) -> Culprit:
    driver = snapshot.driver
    file = driver.libcuda_file
    path = file.path if file else "libcuda.so.1"
    whose = {None: "", "": ", which no package owns"}.get(
        file.owner if file else None, f", of the package {file.owner if file else ''}"
    )
    found = f"libcuda is {path}{whose}, of driver {version}, and the module is {driver.module}"
    if COMPAT in path:
        return _compat(
            snapshot, f"{found} (forward compatibility, which no GeForce has: error 804)"
        )
    if snapshot.container:
        return Culprit(
            found,
            f"remove {path} from the container's image, which hides the host's own; then "
            f"{cure('restart-container', snapshot)}",
        )
    manager = manager_of(snapshot)
    folder = path.rpartition("/")[0]
    away = f"rm {folder}/libcuda.so.{version}"
    if file and file.owner and manager:
        away = manager.reinstall.format(file.owner)
    return Culprit(f"{found}; CUDA then ends with error 803", as_root(snapshot, away, "ldconfig"))


def _compat(snapshot: HostSnapshot, found: str) -> Culprit:
    file = snapshot.driver.libcuda_file
    manager = manager_of(snapshot)
    seen = file is not None and COMPAT in file.path
    folder = file.path.rpartition("/")[0] if file and seen else "/usr/local/cuda/compat"
    newer = f"or update the driver to one that has CUDA {snapshot.driver.cuda or 'of that version'}"
    if snapshot.container:
        newer = f"or update the driver of its host to one with CUDA {snapshot.driver.cuda}"
    if file and seen and file.owner and manager:
        away = as_root(snapshot, manager.remove.format(file.owner), "ldconfig")
    else:
        away = (
            f"take {folder} out of LD_LIBRARY_PATH and of /etc/ld.so.conf.d (grep -rl compat "
            f"/etc/ld.so.conf.d), then {as_root(snapshot, 'ldconfig')}"
        )
    return Culprit(found, f"{away}; {newer}")
