"""Files that no package brought: which differ, whose they are, and what only looks like one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import DriverFile, Gpu, HostSnapshot, Package
from llamafleet.plans.driver.foreign import culprit
from llamafleet.plans.driver.libcuda import other_libcuda, without_cuda
from llamafleet.plans.driver.verdict import driver_verdict
from tests.plans.driver.test_verdict import (
    HALF_INSTALLED,
    MISMATCH,
    NEW,
    NEXT,
    OLD,
    RUNNING,
    UPDATED,
    failing,
    host,
    ubuntu,
)
from tests.plans.hosts import RTX_4090

LIBRARY = DriverFile(f"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{NEW}", "")
OWNED = replace(LIBRARY, owner="libnvidia-compute-580")
MODULE = DriverFile(f"/usr/lib/modules/{RUNNING}/kernel/drivers/video/nvidia.ko", "", 1_000)
INSTALLED = f"nvidia/{NEW}, {RUNNING}, x86_64: installed"
DIFFERS = f"{INSTALLED} (WARNING! Diff between built and installed module!)"
API_MISMATCH = f"NVRM: API mismatch: the client has the version {NEW}, but"
API_MISMATCH_595 = (
    "NVRM: API mismatch: the client 'kwin_wayland' (pid 1005)",
    f"               NVRM: has the version {NEW}, but this kernel module has",
)
"""Both forms: ublue-os/bazzite#2668 and Frogging-Family/nvidia-all#394."""


def fix_of(snapshot: HostSnapshot) -> str:
    found = culprit(snapshot)
    assert found
    verdict = driver_verdict(snapshot)
    assert verdict.state == "packages split" and verdict.problem
    assert verdict.problem.next == found.fix and found.found in verdict.problem.found
    return found.fix


def stale(**found: Any) -> HostSnapshot:
    """Disk, library and packages are NEW, and OLD is loaded; up for 1000 s."""
    there = failing(**{**UPDATED, **found})
    return replace(there, time=100_000, uptime_s=1_000)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"library_file": LIBRARY}, "sudo rm /usr/lib/x86_64-linux-gnu/libcuda.so."),
        ({"library_file": LIBRARY, "runfile": ("/usr/bin/nvidia-uninstall",)}, "nvidia-uninstall;"),
        ({"library_file": LIBRARY, "runfile": ("/var/log/nvidia-installer.log",)}, "sudo rm /usr/"),
        ({"library_file": replace(LIBRARY, owner="other")}, "apt-get purge other; "),
        ({}, f"remove what is of {NEW}"),
    ],
)
def test_a_library_that_is_not_the_packages(files: dict[str, Any], said: str) -> None:
    fix = fix_of(failing(library=NEW, packages=ubuntu(OLD, OLD), **files))
    assert said in fix and "apt-get install --reinstall libnvidia-compute-580" in fix
    assert fix.endswith("sudo ldconfig, then sudo reboot") and "autoinstall" not in fix


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"dkms": (DIFFERS,)}, f"sudo dkms install --force nvidia/{NEW} -k {RUNNING}"),
        ({"dkms": ()}, f"sudo dkms install --force nvidia/{NEW} -k {RUNNING}"),
        ({"dkms": (f"nvidia/{NEW}: added",)}, f"dkms install --force nvidia/{NEW}"),
        ({"dkms": (INSTALLED,)}, "the package's source is the wrong one"),
        ({"dkms": (INSTALLED,), "module_file": MODULE}, f"sudo rm {MODULE.path}; sudo dkms"),
        (
            {"dkms": (f"nvidia, {OLD}, {RUNNING}, x86_64: installed", f"nvidia, {NEW}: added")},
            f"sudo dkms remove nvidia/{OLD} --all; sudo dkms install --force nvidia/{NEW}",
        ),
        ({"runfile": ("/usr/bin/nvidia-uninstall",)}, "sudo nvidia-uninstall; sudo dkms install"),
    ],
)
def test_a_module_that_is_not_the_packages(found: dict[str, Any], said: str) -> None:
    fix = fix_of(failing(library=NEW, packages=ubuntu(), **found))
    assert said in fix and "autoinstall" not in fix


def test_debian_s_module_has_a_name_of_its_own() -> None:
    packages = (Package("nvidia-kernel-dkms", f"{NEW}-1"), Package("libcuda1", f"{NEW}-1"))
    assert f"nvidia-current/{NEW}" in fix_of(failing(library=NEW, packages=packages))


@pytest.mark.parametrize(
    "found",
    [
        {"module_file": replace(MODULE, changed=98_999)},
        {"kernel_log": (f"[   14.120771] {API_MISMATCH}",)},
        {"kernel_log": (f"[    9.424670] {API_MISMATCH_595[0]}", API_MISMATCH_595[1])},
        {"kernel_log": (f"[    9.424670] {' '.join(API_MISMATCH_595)}",)},
    ],
)
def test_an_initramfs_of_before(found: dict[str, Any]) -> None:
    assert f"sudo update-initramfs -u -k {RUNNING}, then sudo reboot" in fix_of(stale(**found))


@pytest.mark.parametrize(
    "found",
    [
        {"module_file": replace(MODULE, changed=99_001)},
        {"module_file": replace(MODULE, changed=None)},
        # Written after the boot: its word goes before that of the log.
        {
            "module_file": replace(MODULE, changed=99_001),
            "kernel_log": (f"[   14.120771] {API_MISMATCH}",),
        },
        {"kernel_log": (f"[  914.120771] {API_MISMATCH}",)},
        {"kernel_log": (API_MISMATCH,)},
        {"kernel_log": (f"[   14.1] NVRM: API mismatch: the client has the version {OLD}, but",)},
        {"kernel_log": ("[   14.1] NVRM: API mismatch: the client has the version", "[ 1.5] x")},
        {"kernel_log": None},
    ],
)
def test_an_update_that_waits_for_its_reboot(found: dict[str, Any]) -> None:
    assert culprit(stale(**found)) is None
    assert driver_verdict(stale(**found)).state == "reboot needed"


@pytest.mark.parametrize(
    "there",
    [
        host(),
        host(library_file=replace(LIBRARY, owner=""), module_file=MODULE),
        host(packages=ubuntu("535.183.01", "535.183.01"), library_file=LIBRARY),
        host(packages=()),
        replace(failing(library=NEW, packages=ubuntu(OLD, OLD)), container="docker"),
        failing(library=NEW, packages=HALF_INSTALLED),
        failing(library=NEW, packages=ubuntu(NEW, OLD)),
        # Loaded module and library go together: the packages were updated, the boot is to come.
        host(packages=ubuntu(), module_on_disk=NEW, module_next=NEW),
        host(packages=ubuntu(), module_on_disk=NEW, module_next=NEW, library_file=OWNED),
        # What akmods or the distribution prebuilds comes later than the rest.
        failing(library=NEW, packages=(Package("akmod-nvidia", NEW),)),
        failing(
            library=NEW,
            packages=(ubuntu()[0], Package(f"linux-modules-nvidia-580-{RUNNING}", "6.8.0-45.45")),
        ),
    ],
)
def test_what_is_no_foreign_file(there: HostSnapshot) -> None:
    assert culprit(there) is None


def test_another_kernel_s_module_is_a_note() -> None:
    there = host(next_kernel=NEXT, module_next=NEW)
    verdict = driver_verdict(there)
    assert verdict.problem is None and "THE NEXT BOOT BREAKS" in verdict.notes[0]
    assert f"dkms install --force nvidia/{OLD} -k {NEXT}" in verdict.notes[0]


GEFORCE = (RTX_4090,)
DATA_CENTRE: tuple[Gpu, ...] = (replace(RTX_4090, name="NVIDIA A100-SXM4-80GB"),)
COMPAT = DriverFile("/usr/local/cuda-13.0/compat/libcuda.so.580.95.05", "cuda-compat-13-0")
STALE = DriverFile("/usr/local/lib/libcuda.so.535.183.01", "")


def cuda(gpus: tuple[Gpu, ...] = GEFORCE, **found: Any) -> HostSnapshot:
    return replace(host(**found), gpus=gpus)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (cuda(libcuda=NEW, libcuda_file=COMPAT), "sudo apt-get purge cuda-compat-13-0; sudo ldcon"),
        (
            cuda(libcuda=NEW, libcuda_file=replace(COMPAT, owner="")),
            "take /usr/local/cuda-13.0/com",
        ),
        (cuda(libcuda="535.183.01", libcuda_file=STALE), f"sudo rm {STALE.path}; sudo ldconfig"),
        (
            replace(cuda(libcuda="535.183.01", libcuda_file=STALE), container="docker"),
            "from the container's image",
        ),
        (cuda(DATA_CENTRE, libcuda="535.183.01", libcuda_file=STALE), "sudo rm"),
        # Driver 525 has CUDA 12.0, and no release of its branch has 13.
        (
            cuda(module="525.147.05", library=None, smi="525.147.05", packages=(), cuda="13.0"),
            "LD_LIBRARY_PATH",
        ),
    ],
)
def test_a_libcuda_of_another_driver(there: HostSnapshot, said: str) -> None:
    found = other_libcuda(there)
    assert found and said in found.fix
    verdict = driver_verdict(there)
    assert verdict.state == "packages split" and verdict.problem
    assert found.found in verdict.problem.found


@pytest.mark.parametrize(
    "there",
    [
        cuda(libcuda=OLD, libcuda_file=replace(STALE, path=f"/usr/lib/libcuda.so.{OLD}")),
        cuda(libcuda=None, libcuda_file=None),
        cuda(DATA_CENTRE, libcuda=NEW, libcuda_file=COMPAT),
        replace(cuda(libcuda=NEW, libcuda_file=STALE), container="wsl"),
        cuda(module=None, libcuda=NEW, libcuda_file=STALE),
        # The library that nvidia-smi uses differs too: an update, which is judged by itself.
        failing(library=NEW, libcuda=NEW, packages=ubuntu()),
        cuda(cuda="13.0", smi="580.65.06", module="580.65.06", library="580.65.06", packages=()),
    ],
)
def test_a_libcuda_that_may_stay(there: HostSnapshot) -> None:
    assert other_libcuda(there) is None


def test_forward_compatibility_is_a_note_where_it_works() -> None:
    verdict = driver_verdict(cuda(DATA_CENTRE, libcuda=NEW, libcuda_file=COMPAT))
    assert verdict.state == "ok" and any(COMPAT.path in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (replace(host(), container="docker"), "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
        (replace(host(capabilities="utility"), container="podman"), "compute,utility"),
        (replace(host(), container="wsl"), "in Windows update"),
        (host(vgpu_host=True), "virtual machine"),
        (replace(host(), kernel="6.8.12-17-pve"), "virtual machine"),
        (host(libcuda_file=OWNED), "sudo ldconfig"),
        (host(), "libnvidia-compute-580"),
    ],
)
def test_no_cuda_version(there: HostSnapshot, said: str) -> None:
    none = replace(there, driver=replace(there.driver, cuda=None, cuda_unknown="N/A"))
    found = without_cuda(none)
    assert found and said in found.fix
    assert driver_verdict(none).state in ("no CUDA", "no answer")
    assert driver_verdict(none).problem is not None


def test_an_unknown_cuda_version_of_wsl_is_none_of_these() -> None:
    erring = replace(host(cuda=None, cuda_unknown="ERR!"), container="wsl")
    assert without_cuda(erring) is None and without_cuda(host()) is None
    assert without_cuda(failing(cuda_unknown="N/A", smi_error=MISMATCH)) is None
