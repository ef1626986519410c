"""The verdict on the driver: a table of planted facts, near misses included."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest

from llamafleet.facts.host import Driver, HostSnapshot, Package, PciGpu
from llamafleet.plans.driver.verdict import State, driver_verdict
from tests.plans.hosts import CARD_4090, CPU_HOST, GPU_HOST, RTX_4090, driver, plan

OLD, NEW = "580.82.07", "580.95.05"
RUNNING, NEXT = "6.8.0-45-generic", "6.8.0-47-generic"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch"
"""nvidia-smi's words, as in oddmario/NVIDIA-Ubuntu-Driver-Guide#4."""
XID_79 = "NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus."
XID_62 = (
    "NVRM: Xid (PCI:0000:01:00): 62, 322bff9a 0000b3b8 00000000 206a4b08 206a3cc8 206a3e36 "
    "206a2284 206a2ad6"
)
"""From NVIDIA/open-gpu-kernel-modules#942."""
XID_45 = "NVRM: Xid (PCI:0000:01:00): 45, pid=2171, name=xdg-desktop-por, channel 0x0000000a"
"""From the same report; not a fatal one."""
REJECTED = "Loading of module with unavailable key is rejected"
"""Quoted in linux-surface/linux-surface#906."""
TAINTED = (
    "nvidia: module verification failed: signature and/or required key missing - tainting kernel"
)
"""What the kernel says when it loads an unsigned module all the same."""
API_MISMATCH = "NVRM: API mismatch: the client has the version 515.48.07, but"
"""From saharmor/dalle-playground#104."""

BARE = PciGpu("0000:01:00.0", "2684", None)
NOUVEAU = PciGpu("0000:01:00.0", "2684", "nouveau")


def ubuntu(compute: str = NEW, dkms: str = NEW) -> tuple[Package, ...]:
    """Packages of the driver in Ubuntu, of one branch."""
    return (
        Package("libnvidia-compute-580", f"{compute}-0ubuntu0.24.04.1"),
        Package("nvidia-utils-580", f"{compute}-0ubuntu0.24.04.1"),
        Package("nvidia-dkms-580", f"{dkms}-0ubuntu0.24.04.1"),
    )


HALF_INSTALLED = (
    *ubuntu()[:1],
    replace(ubuntu()[1], state="unpacked"),
    *ubuntu()[2:],
)


def prebuilt(branch: str) -> tuple[Package, ...]:
    """Ubuntu's modules for one kernel: their version is the kernel's."""
    return (
        ubuntu(OLD)[0],
        Package(f"linux-modules-nvidia-{branch}-generic", "6.8.0-45.45"),
        Package(f"linux-modules-nvidia-{branch}-{RUNNING}", "6.8.0-45.45"),
    )


def host(base: HostSnapshot = GPU_HOST, **found: Any) -> HostSnapshot:
    """A working host with driver OLD in all places; `found` changes the driver."""
    known = {
        "module": OLD,
        "module_on_disk": OLD,
        "library": OLD,
        "next_kernel": RUNNING,
        "module_next": OLD,
        "packages": ubuntu(OLD, OLD),
        "kernel_log": (),
    }
    return replace(base, kernel=RUNNING, uptime_s=90_000, driver=driver(**{**known, **found}))


def failing(**found: Any) -> HostSnapshot:
    """The same with an nvidia-smi that fails."""
    down = {"smi_state": "failed", "smi": None, "cuda": None, "smi_error": MISMATCH}
    return replace(host(**{**down, **found}), gpus=())


def unbound(card: PciGpu = BARE, **found: Any) -> HostSnapshot:
    """A card without its driver."""
    known: dict[str, Any] = {"next_kernel": RUNNING, "kernel_log": ()}
    return replace(
        GPU_HOST,
        kernel=RUNNING,
        gpus=(),
        pci_gpus=(card,),
        driver=Driver(**{**known, **found}),
    )


CARD_5090 = PciGpu("0000:01:00.0", "2b85", "nvidia")
CARD_1050 = PciGpu("0000:01:00.0", "1c81", None)
CARD_L40S = PciGpu("0000:05:00.0", "26b9", None)
LOADED = (
    "[  900.1] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build"
)
XID_119 = (
    "[  800.1] NVRM: Xid (PCI:0000:01:00): 119, pid=3119, name=python, Timeout after 45s of "
    "waiting for RPC response from GPU0 GSP! Expected function 76 (GSP_RM_CONTROL)."
)
"""As in NVIDIA/open-gpu-kernel-modules#1045."""
XID_154 = (
    "[  801.2] NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to "
    "0x1 (GPU Reset Required)"
)
XID_154_AT_REST = XID_154.replace("0x0 (None) to 0x1 (GPU Reset Required)", "0x1 to 0x0 (None)")
NVLINK = "NVRM: Xid (PCI:0000:01:00): 149, NETIR_LINK_EVT {} XC0 i0 Link 11 (0x004505c6 0x0)"
NEEDS_OPEN = (
    "[    5.559842] NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:2b85)",
    "               NVRM: installed in this system requires use of the NVIDIA open kernel modules.",
    "[    5.559858] NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x22:0x56:884)",
)
"""NVIDIA/open-gpu-kernel-modules#862."""
LEGACY = (
    "[    4.1] NVRM: The NVIDIA NVIDIA GeForce GTX 1050 GPU installed in this system is",
    "                           NVRM:  supported through the NVIDIA 580.xx Legacy drivers. Please",
    "                           NVRM:  visit http://www.nvidia.com/object/unix.html for more",
    "                           NVRM:  information.  The 595.71.05 NVIDIA driver will ignore",
    "                           NVRM:  this GPU.  Continuing probe...",
    "[    4.2] NVRM: No NVIDIA GPU found.",
)
"""NixOS/nixos-hardware#1880."""
NO_GSP = (
    "NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:1c81)",
    "NVRM: installed in this system is not supported by open",
    "NVRM: nvidia.ko because it does not include the required GPU",
    "NVRM: System Processor (GSP).",
)
"""As ajvengo quotes it in NVIDIA/open-gpu-kernel-modules#696: without times or blanks."""
NEWER = (
    "[    4.1] NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:2b85)",
    "               NVRM: installed in this system is not supported by the",
    "               NVRM: NVIDIA 550.144.03 driver release.",
)
VGPU = (
    "[99083.966246] NVRM: The NVIDIA GPU 0000:05:00.0 (PCI ID: 10de:26b9)",
    "               NVRM: installed in this system is not supported by the",
    "               NVRM: NVIDIA 570.86.15 driver release.",
)
"""NVIDIA/gpu-operator#1371."""
FALLEN_IN_THREE = (
    "Jan 11 10:00:00 surface kernel: NVRM: The NVIDIA GPU 0000:01:00.0",
    "Jan 11 10:00:00 surface kernel: NVRM: (PCI ID: 10de:134b) installed in this system has",
    "Jan 11 10:00:00 surface kernel: NVRM: fallen off the bus and is not responding to commands.",
)
"""The words of linux-surface/linux-surface#376."""


def shown(**told: Any) -> HostSnapshot:
    """The working host, whose nvidia-smi says this of its GPU."""
    return replace(host(), gpus=(replace(RTX_4090, **told),))


def none_found(log: tuple[str, ...], card: PciGpu = CARD_4090) -> HostSnapshot:
    """The card is bound, and nvidia-smi finds no devices."""
    down = failing(smi_error="No devices were found", kernel_log=log)
    return replace(down, pci_gpus=(card,))


UPDATED = {"library": NEW, "packages": ubuntu(), "module_on_disk": NEW, "module_next": NEW}


@dataclass(frozen=True)
class Case:
    host: HostSnapshot
    state: str
    found: str = ""
    fix: str = ""
    note: str = ""
    """Text of a note; only where the host is not stopped."""
    blocks: bool = field(default=True)


def works(host: HostSnapshot, state: str = "ok", note: str = "") -> Case:
    return Case(host, state, note=note, blocks=False)


CASES = {
    # ok and its near misses
    "all agree": works(host()),
    "updated and rebooted": works(host(module=NEW, **UPDATED)),
    "nothing known but nvidia-smi": works(host(**dict.fromkeys(("module", "library"), None))),
    "next kernel has the same module": works(host(next_kernel=NEXT)),
    "module there without version": works(host(module_next="")),
    "tainted by an unsigned module": works(host(kernel_log=(TAINTED,), secure_boot=False)),
    "a harmless Xid": works(host(kernel_log=(f"[89990.1] {XID_45}",))),
    "nouveau loaded for nothing": works(host(nouveau=True)),
    "an old API mismatch in the log": works(host(kernel_log=(API_MISMATCH,))),
    "pinning package of another version": works(
        host(packages=(*ubuntu(OLD, OLD), Package("nvidia-driver-pinning-580", "580.65.06-1")))
    ),
    "kmod of a kernel that does not boot": works(
        host(
            next_kernel="6.10.5-200.fc40.x86_64",
            packages=(
                Package("xorg-x11-drv-nvidia-cuda", OLD),
                Package("kmod-nvidia-6.10.5-200.fc40.x86_64", OLD),
                Package("kmod-nvidia-6.9.4-200.fc40.x86_64", "555.58.02"),
            ),
        )
    ),
    "runfile over packages of the distribution": works(
        host(packages=ubuntu("535.183.01", "535.183.01")), note="of another version"
    ),
    "newer packages, older files everywhere": works(
        # A reboot changes nothing here: the files are not the packages' own.
        host(packages=ubuntu()),
        note=f"of another version than the driver {OLD}: libnvidia-compute-580",
    ),
    # reboot needed
    "updated, not rebooted": Case(
        failing(**UPDATED), "reboot needed", f"module {OLD}, library {NEW}", "sudo reboot"
    ),
    "updated, nvidia-smi still answers": Case(host(**UPDATED), "reboot needed", NEW, "sudo reboot"),
    "updated by runfile": Case(
        failing(**{**UPDATED, "packages": ()}), "reboot needed", OLD, "sudo reboot"
    ),
    "downgraded, not rebooted": Case(
        failing(module=NEW), "reboot needed", f"module {NEW}, library {OLD}", "sudo reboot"
    ),
    "the new kernel has the new module": Case(
        failing(**{**UPDATED, "module_on_disk": OLD, "next_kernel": NEXT}), "reboot needed"
    ),
    "library newer, the disk does not tell": Case(
        failing(**{**UPDATED, "module_on_disk": None, "next_kernel": None, "module_next": None}),
        "reboot needed",
    ),
    "module equals library, packages newer": Case(
        host(packages=ubuntu(), module_on_disk=None, module_next=None, next_kernel=None),
        "reboot needed",
        f"library {OLD}",
        "sudo reboot",
    ),
    "module equals library, packages and module on disk newer": Case(
        host(packages=ubuntu(), module_on_disk=NEW, module_next=NEW), "reboot needed"
    ),
    "library unknown, module on disk newer": Case(
        host(library=None, packages=(), module_on_disk=NEW, module_next=NEW), "reboot needed"
    ),
    "by nvidia-smi's words alone": Case(
        failing(library=None, packages=(), module_on_disk=None, next_kernel=None),
        "reboot needed",
        "version mismatch",
    ),
    "installed for a newer kernel than the running one": Case(
        unbound(next_kernel=NEXT, module_next=NEW), "reboot needed", NEXT, "sudo reboot"
    ),
    # packages split
    "library updated alone": Case(
        failing(library=NEW, packages=ubuntu(NEW, OLD)),
        "packages split",
        f"nvidia-utils-580 {NEW}; nvidia-dkms-580 {OLD}",
        "--only-upgrade nvidia-dkms-580",
    ),
    "packages split though the module on disk fits": Case(
        failing(**{**UPDATED, "packages": (*ubuntu(), Package("nvidia-compute-utils-580", OLD))}),
        "packages split",
        "nvidia-compute-utils-580",
    ),
    "module on disk is not the packages' own": Case(
        # As in Nobara-Project/rpm-sources#526: dkms built another version than its package's.
        failing(library=NEW, packages=ubuntu()),
        "packages split",
        f"would load module {OLD} beside library {NEW}",
        f"dkms install --force nvidia/{NEW} -k {RUNNING}",
    ),
    "not configured": Case(
        failing(
            library=NEW,
            packages=(*ubuntu()[:2], replace(ubuntu()[2], state="half-configured")),
        ),
        "packages split",
        fix="dpkg --configure -a (not configured: nvidia-dkms-580)",
    ),
    "not configured, module on disk is the new one": Case(
        failing(**{**UPDATED, "packages": HALF_INSTALLED}),
        "packages split",
        "not configured: nvidia-utils-580",
        fix="dpkg --configure -a (not configured: nvidia-utils-580)",
    ),
    "not configured, module there for the next kernel": Case(
        unbound(next_kernel=NEXT, module_next=NEW, packages=HALF_INSTALLED),
        "packages split",
        fix="dpkg --configure -a",
    ),
    "runfile, module of the old one on disk": Case(
        failing(library=NEW, packages=()), "packages split", fix="install the driver again"
    ),
    "by nvidia-smi's words, the same module comes again": Case(
        failing(library=None, packages=()), "packages split", f"module {OLD} again"
    ),
    "library older, nothing else known": Case(
        failing(module=NEW, packages=(), module_on_disk=None, next_kernel=None),
        "packages split",
        "the older one",
    ),
    "works, the next boot loads another module": Case(
        host(module_on_disk=NEW, module_next=NEW), "packages split", f"module on disk {NEW}"
    ),
    "works, packages split and nothing known of the disk": Case(
        host(packages=ubuntu(NEW, OLD), module_on_disk=None, next_kernel=None), "packages split"
    ),
    "library of a container": Case(
        replace(failing(library=NEW, packages=ubuntu()), container="docker"),
        "packages split",
        fix="restart the container",
    ),
    "another kernel's module differs": works(
        host(next_kernel=NEXT, module_next="570.195.03"),
        "packages split",
        f"THE NEXT BOOT BREAKS THE DRIVER: kernel {NEXT}",
    ),
    # module missing
    "missing for the next kernel": works(
        host(next_kernel=NEXT, module_next=None),
        "module missing",
        f"THE NEXT BOOT LOSES THE GPUS: kernel {NEXT}",
    ),
    "missing for the next kernel, packages newer": works(
        host(next_kernel=NEXT, module_next=None, packages=ubuntu()),
        "module missing",
        f"THE NEXT BOOT LOSES THE GPUS: kernel {NEXT}",
    ),
    "packages of a container's image": works(
        replace(host(packages=ubuntu(), module_on_disk=None, next_kernel=None), container="docker")
    ),
    "missing in a container": works(replace(host(module_next=None), container="docker")),
    "missing and half updated": Case(
        failing(**{**UPDATED, "next_kernel": NEXT, "module_next": None}),
        "module missing",
        NEXT,
        f"dkms autoinstall -k {NEXT}",
    ),
    "packages without a module": Case(
        unbound(packages=ubuntu()), "module missing", RUNNING, f"linux-headers-{RUNNING}"
    ),
    "akmod without a module": Case(
        replace(unbound(packages=(Package("akmod-nvidia", NEW),)), package_manager="dnf"),
        "module missing",
        fix=f"akmods --force --kernels {RUNNING}",
    ),
    # nouveau, no driver, not loaded
    "nouveau": Case(unbound(NOUVEAU), "nouveau in the way", "bound to nouveau", "blocks nouveau"),
    "nouveau before an installed driver": Case(
        unbound(NOUVEAU, module_on_disk=NEW, module_next=NEW), "nouveau in the way", NEW, "blackli"
    ),
    "no driver": Case(unbound(), "no driver", "bound to nothing", "install NVIDIA's driver"),
    "not loaded": Case(
        unbound(module_on_disk=NEW, module_next=NEW), "card not bound", fix="modprobe nvidia"
    ),
    # signature
    "unsigned, secure boot": Case(
        unbound(module_on_disk=NEW, module_next=NEW, secure_boot=True, module_signer=""),
        "module not signed",
        "secure boot on, module nvidia 580.95.05 not signed",
        "mokutil --import",
    ),
    "signed with a key that is not enrolled": Case(
        unbound(
            module_on_disk=NEW,
            module_next=NEW,
            secure_boot=True,
            module_signer="DKMS module signing key",
            kernel_log=(f"[   12.3] {REJECTED}",),
        ),
        "module not signed",
        "signed by DKMS module signing key; kernel: [   12.3] Loading",
    ),
    "signed, not refused, not loaded": Case(
        unbound(module_on_disk=NEW, module_next=NEW, secure_boot=True, module_signer="Canonical"),
        "card not bound",
    ),
    "unsigned without secure boot": Case(
        unbound(module_on_disk=NEW, module_next=NEW, secure_boot=False, module_signer=""),
        "card not bound",
    ),
    # GPU lost
    "fell off the bus": Case(
        failing(smi_error="No devices were found", kernel_log=(XID_79,)),
        "GPU lost",
        XID_79,
        "power",
    ),
    "a recent fatal Xid of a GPU that is shown": Case(
        host(kernel_log=(f"[89000.5] {XID_62}",)), "GPU lost", "Xid 62"
    ),
    "a fatal Xid of a GPU that is not shown": Case(
        host(kernel_log=("[  100.5] " + XID_79.replace("01:00", "02:00"),)), "GPU lost"
    ),
    "lost by nvidia-smi's words": Case(
        failing(
            smi_error="Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost."
        ),
        "GPU lost",
    ),
    "without Xid": Case(
        failing(
            smi_error="No devices were found",
            kernel_log=("NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.",),
        ),
        "GPU lost",
        "Xid 79",
    ),
    # No time heals a card: a reset or a new start does.
    "a fatal Xid of long ago, the GPU is shown": Case(
        host(kernel_log=(f"[  100.5] {XID_79}",)), "GPU lost", "is listed and not well: Xid 79"
    ),
    "a fatal Xid of unknown time, the GPU is shown": Case(
        host(kernel_log=(XID_62,)), "GPU lost", "Xid 62", "nvidia-smi --gpu-reset -i 0000:01:00.0"
    ),
    "a fatal Xid, then the driver was started anew": works(
        host(kernel_log=(f"[  100.5] {XID_62}", LOADED)), note="Xid 62 earlier in this boot"
    ),
    "a fatal Xid, then another boot": works(
        host(kernel_log=(XID_62, "[    0.000000] Linux version 6.8.0-45-generic")), note="Xid 62"
    ),
    "a fatal Xid of an earlier boot by its clock": works(
        host(kernel_log=(f"[350735.1] {XID_62}",))
    ),
    "a fatal Xid, then the card was reset": works(
        host(kernel_log=(XID_62, "[  200.1] nvidia 0000:01:00.0: reset done")), note="Xid 62"
    ),
    "a fatal Xid, then the reset of another card": Case(
        host(kernel_log=(XID_62, "[  200.1] nvidia 0000:02:00.0: reset done")), "GPU lost"
    ),
    "the driver asks for a reset": Case(
        host(kernel_log=(XID_154,)), "GPU lost", "Xid 154", "--gpu-reset"
    ),
    "the driver asks for a boot": Case(
        host(kernel_log=(XID_154.replace("0x1 (GPU Reset", "0x2 (Node Reboot"),)),
        "GPU lost",
        "Node Reboot Required",
        "sudo reboot",
    ),
    "the driver asked for a reset and asks no longer": works(
        host(kernel_log=(XID_119, XID_154, XID_154_AT_REST)), note="Xid 119 earlier in this boot"
    ),
    "the GSP hangs": Case(host(kernel_log=(XID_119,)), "GPU lost", "Xid 119", "--gpu-reset"),
    "a fatal error of a link": Case(
        host(kernel_log=(NVLINK.format("Fatal"),)), "GPU lost", "Xid 149", "--gpu-reset"
    ),
    "a harmless error of a link": works(host(kernel_log=(NVLINK.format("Nonfatal"),))),
    "a row of memory put out of use": works(
        host(kernel_log=("NVRM: Xid (PCI:0000:01:00): 63, pid=1, Row Remapper: New row",)),
        note="GPU 0000:01:00.0: NVRM: Xid (PCI:0000:01:00): 63",
    ),
    # listed is not working
    "words in place of a figure": Case(
        shown(faults=("memory.total: [GPU requires reset]",)),
        "GPU lost",
        "GPU 0000:01:00.0 is listed and not well: memory.total: [GPU requires reset]",
        "--gpu-reset",
    ),
    "a lost GPU in the list": Case(
        shown(faults=("temperature.gpu: [GPU is lost]",)), "GPU lost", "is lost", "poweroff"
    ),
    "the driver's recovery action": Case(
        shown(recovery="Reset"), "GPU lost", "recovery action: Reset", "--gpu-reset"
    ),
    "the driver's recovery action is a boot": Case(
        shown(recovery="Reboot"), "GPU lost", "recovery action: Reboot", "sudo reboot"
    ),
    "no recovery action": works(shown(recovery="None")),
    "no recovery action after one": works(
        replace(shown(recovery="None"), driver=host(kernel_log=(XID_154,)).driver),
        note="Xid 154 earlier",
    ),
    "compute mode Prohibited": Case(
        shown(compute_mode="Prohibited"), "closed to CUDA", "Prohibited", "-c DEFAULT"
    ),
    "an exclusive compute mode": works(
        shown(compute_mode="Exclusive_Process"), note="Exclusive_Process: one process at a time"
    ),
    "divided without an instance": Case(
        shown(divided=True), "closed to CUDA", "has no instance", "nvidia-smi mig"
    ),
    "memory that waits for a reset": works(
        shown(warnings=("Remapped Rows Pending: Yes",)), note="Remapped Rows Pending"
    ),
    # the fabric
    "fabric in progress": Case(
        shown(fabric="In Progress, N/A"), "fabric not ready", "In Progress", "nvidia-fabricmanager"
    ),
    "fabric completed": works(shown(fabric="Completed, Success")),
    "NVSwitches and no manager": Case(
        host(switches=4, fabric_manager="not-found"), "fabric not ready", "4 NVSwitches"
    ),
    "NVSwitches and their manager": works(host(switches=4, fabric_manager="active")),
    "NVSwitches, and the fabric is told to be ready": works(
        replace(
            shown(fabric="Completed, Success"),
            driver=host(switches=4, fabric_manager="failed").driver,
        )
    ),
    "a fatal error of an NVSwitch": works(
        host(
            kernel_log=(
                "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
                "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 19084, Non-fatal, Link 30 AN1",
            )
        ),
        note="NVSwitch: nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal",
    ),
    # the kernel's own reason
    "the open module is required": Case(
        none_found(NEEDS_OPEN, card=CARD_5090), "open module required", "requires use", "open"
    ),
    "the code of a card that wants the open module": Case(
        none_found(NEEDS_OPEN[2:], card=CARD_5090),
        "open module required",
    ),
    "the same code of a card that runs with either module": Case(
        # As in Cyridd/cmpunlocker#4.
        none_found(NEEDS_OPEN[2:]),
        "GPU not started",
    ),
    "a failure that names no card": Case(
        # As in Bumblebee-Project/Bumblebee#722.
        none_found(("[87669.726564] NVRM: RmInitAdapter failed! (0x26:0xffff:1375)",)),
        "GPU not started",
    ),
    "the open module of before 560 on a GeForce": Case(
        # As in NVIDIA/open-gpu-kernel-modules#230.
        none_found(
            (
                "[    3.513141] NVRM: Open nvidia.ko is only ready for use on Data Center GPUs.",
                "[    3.513144] NVRM: To force use of Open nvidia.ko on other GPUs, see the",
                "[    3.824916] NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x63:0x0:1905)",
            )
        ),
        "GPU not supported",
        "only ready for use on Data Center",
        "install nvidia-driver-580,",
    ),
    "a card that is not on the bus and asks for the open module": Case(
        replace(none_found(NEEDS_OPEN), pci_gpus=()), "open module required", "10de:2b85"
    ),
    "a card that is not on the bus and does not wake up": Case(
        replace(
            none_found(
                (
                    "nvidia 0000:01:00.0: Unable to change power state from D3cold to D0, device "
                    "inaccessible",
                )
            ),
            pci_gpus=(),
        ),
        "GPU lost",
        "D3cold",
        "poweroff",
    ),
    "firmware that is missing": Case(
        none_found(
            (
                "nvidia 0000:01:00.0: Direct firmware load for nvidia/515.43.04/gsp.bin failed "
                "with error -2",
                "NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x61:0x0:1702)",
            )
        ),
        "GPU not started",
        "firmware load",
        "install",
    ),
    "a card that later branches dropped": Case(
        unbound(CARD_1050, module_on_disk="595.71.05", module_next="595.71.05", kernel_log=LEGACY),
        "GPU not supported",
        "580.xx Legacy drivers",
        "580",
    ),
    "the same by the table": Case(
        unbound(CARD_1050, module_on_disk="595.71.05", module_next="595.71.05"),
        "GPU not supported",
        "generation Pascal",
        "580",
    ),
    "a card without GSP": Case(
        unbound(CARD_1050, module_on_disk=OLD, module_next=OLD, kernel_log=NO_GSP),
        "GPU not supported",
        "not supported by open nvidia.ko",
        "nvidia-kernel-dkms",
    ),
    "a card that is newer than the branch": Case(
        unbound(CARD_5090, module_on_disk="550.144.03", module_next="550.144.03", kernel_log=NEWER),
        "GPU not supported",
        "is not supported by the",
        "580",
    ),
    "a vGPU under the driver of a whole card": Case(
        unbound(CARD_L40S, module_on_disk="570.86.15", module_next="570.86.15", kernel_log=VGPU),
        "vGPU guest driver needed",
        "570.86.15 driver release",
        "guest driver",
    ),
    "a card that does not start": Case(
        none_found(("NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x24:0x72:1568)",)),
        "GPU not started",
        "RmInitAdapter failed! (0x24:0x72:1568)",
        "poweroff",
    ),
    "a card without a memory region": Case(
        none_found(
            (
                "[ 4.2] NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:",
                "               NVRM: BAR1 is 0M @ 0x0 (PCI:0000:01:00.0)",
                "[ 4.3] NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x25:0x1c:1474)",
            )
        ),
        "GPU not started",
        "BAR1 is 0M",
        "Above 4G Decoding",
    ),
    "a card without power": Case(
        none_found(
            ("NVRM: GPU 0000:01:00.0: GPU does not have the necessary power cables connected.",)
        ),
        "GPU lost",
        "power cables",
        "power cables",
    ),
    "fallen off the bus in three lines": Case(
        none_found(FALLEN_IN_THREE), "GPU lost", "has fallen off the bus and is not", "poweroff"
    ),
    "asleep for good": Case(
        none_found(
            (
                "nvidia 0000:01:00.0: Unable to change power state from D3cold to D0, device "
                "inaccessible",
            )
        ),
        "GPU lost",
        "D3cold",
    ),
    "a configuration space of ones": Case(
        replace(failing(smi_error="No devices"), pci_gpus=(replace(CARD_4090, unreadable=True),)),
        "GPU lost",
        "reads ff",
        "poweroff",
    ),
    "a reason of before the last start of the module": works(
        host(kernel_log=(*NEEDS_OPEN, "NVRM: nvidia-nvlink: Nvlink Core is being initialized"))
    ),
    # too old
    "CUDA before every toolkit": Case(
        replace(GPU_HOST, driver=driver("470")), "too old", "CUDA up to 11.4", "install a driver"
    ),
    "driver before every floor": Case(
        host(
            **dict.fromkeys(
                ("module", "library", "smi", "module_on_disk", "module_next"), "440.33.01"
            ),
            packages=(),
            cuda=None,
        ),
        "too old",
        "440.33.01",
    ),
    "the oldest that will do": works(
        host(
            **dict.fromkeys(
                ("module", "library", "smi", "module_on_disk", "module_next"), "520.61.05"
            ),
            packages=(),
            cuda=None,
        )
    ),
    "no libcuda": Case(
        host(cuda=None, cuda_unknown="N/A"), "no CUDA", "CUDA Version: N/A", "libnvidia-compute-580"
    ),
    "no answer": Case(failing(smi_error="boom"), "no answer", "nvidia-smi failed: boom", "dmesg"),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    case = CASES[name]
    verdict = driver_verdict(case.host)
    assert verdict.state == case.state, verdict
    assert (verdict.problem is not None) == case.blocks
    if verdict.problem:
        assert verdict.problem.check == "driver"
        assert case.found in verdict.problem.found
        assert case.fix in verdict.problem.next
        assert verdict.notes == ()
    elif case.note:
        assert any(case.note in note for note in verdict.notes)
    else:
        assert verdict.notes == ()


@pytest.mark.parametrize("name", CASES)
def test_a_plan_stops_where_the_verdict_blocks_and_nowhere_else(name: str) -> None:
    case = CASES[name]
    made = plan(case.host)
    assert any(p.check == "driver" for p in made.problems) == case.blocks
    if case.note:
        assert any(case.note in note for note in made.notes)


def test_every_state_is_in_the_table() -> None:
    assert {case.state for case in CASES.values()} == set(get_args(State))


def test_evidence_names_each_source() -> None:
    verdict = driver_verdict(
        failing(
            library=NEW,
            packages=ubuntu(NEW, OLD),
            next_kernel=NEXT,
            module_next=None,
            dkms=("nvidia/580.82.07, 6.8.0-45-generic, x86_64: installed",),
            secure_boot=True,
            module_signer="",
            nouveau=True,
            kernel_log=(API_MISMATCH,),
        )
    )
    assert verdict.evidence == (
        f"loaded module: {OLD}",
        f"library: {NEW}",
        f"module on disk for {RUNNING}: {OLD}",
        f"module for {NEXT}, which boots next: missing",
        f"packages: libnvidia-compute-580 {NEW}-0ubuntu0.24.04.1, nvidia-utils-580 "
        f"{NEW}-0ubuntu0.24.04.1, nvidia-dkms-580 {OLD}-0ubuntu0.24.04.1",
        f"nvidia-smi: failed, {MISMATCH}",
        "cards: 0000:01:00.0 nvidia",
        "nouveau: loaded",
        "secure boot: on",
        "signer of the module: none",
        "dkms: nvidia/580.82.07, 6.8.0-45-generic, x86_64: installed",
        f"kernel log: {API_MISMATCH}",
    )


def test_evidence_says_that_the_log_may_not_be_read() -> None:
    assert "kernel log: may not be read by this user" in driver_verdict(GPU_HOST).evidence


@pytest.mark.parametrize(
    ("manager", "fix"),
    [
        ("apt", "--only-upgrade nvidia-dkms-580"),
        ("dnf", "sudo dnf upgrade nvidia-dkms-580"),
        ("zypper", "sudo zypper update nvidia-dkms-580"),
        ("pacman", "pacman -Syu"),
        (None, f"bring nvidia-dkms-580 to {NEW}"),
    ],
)
def test_the_command_is_the_package_manager_s(manager: str | None, fix: str) -> None:
    split = replace(failing(library=NEW, packages=ubuntu(NEW, OLD)), package_manager=manager)
    problem = driver_verdict(split).problem
    assert problem and fix in problem.next and problem.next.endswith("sudo reboot")


def test_two_gpus_one_lost() -> None:
    second = replace(CARD_4090, address="0000:02:00.0")
    lost = replace(
        host(kernel_log=("[  100.5] " + XID_79.replace("01:00", "02:00"),)),
        pci_gpus=(CARD_4090, second),
    )
    assert driver_verdict(lost).state == "GPU lost"
    both = replace(lost, gpus=(RTX_4090, replace(RTX_4090, pci_address="00000000:02:00.0")))
    assert driver_verdict(both).state == "GPU lost"


def test_errors_of_gpus_that_are_not_this_host_s_own() -> None:
    other = host(kernel_log=("[89000.5] " + XID_79.replace("01:00", "02:00"),))
    assert driver_verdict(other).state == "GPU lost"
    assert driver_verdict(replace(other, container="docker")).state == "ok"
    passed_on = PciGpu("0000:02:00.0", "2684", "vfio-pci")
    assert driver_verdict(replace(other, pci_gpus=(CARD_4090, passed_on))).state == "ok"
    none_left = replace(failing(smi_error="No devices", kernel_log=(XID_79,)), container="docker")
    assert driver_verdict(none_left).state == "GPU lost"


HANDLE = "Unable to determine the device handle for GPU0000:02:00.0: Unknown Error"
SECOND = PciGpu("0000:02:00.0", "2684", "nvidia")


def two(state: str = "ok", second: PciGpu = SECOND, **found: Any) -> HostSnapshot:
    """Two cards, of which nvidia-smi lists the first."""
    return replace(host(smi_state=state, **found), pci_gpus=(CARD_4090, second))


@pytest.mark.parametrize(
    "found",
    [
        two(smi_error=HANDLE, complaints=(HANDLE,)),
        two("failed", smi_error=HANDLE, complaints=(HANDLE,)),
        two(),
        two(second=replace(SECOND, unreadable=True)),
    ],
)
def test_one_of_two_is_not_shown_whatever_the_exit_status(found: HostSnapshot) -> None:
    verdict = driver_verdict(found)
    assert verdict.state == "GPU lost" and verdict.problem
    assert "0000:02:00.0" in verdict.problem.found.lower()
    assert 'gpus = ["0000:01:00.0"]' in verdict.problem.next
    for setting in ("0", "0000:01:00.0", RTX_4090.uuid):
        alone = driver_verdict(found, (setting,))
        assert alone.problem is None and alone.state == "ok"
        assert any("left out by the setting gpus" in note for note in alone.notes)
    assert driver_verdict(found, ("0000:02:00.0", "0")).state == "GPU lost"


@pytest.mark.parametrize(
    "found",
    [
        two(second=replace(SECOND, kernel_driver="vfio-pci")),
        # Of a generation that the driver has left behind: for the display.
        two(second=PciGpu("0000:02:00.0", "128b", None)),
        two(second=replace(SECOND, excluded=True)),
        replace(two(), container="docker"),
        replace(two(second=replace(SECOND, given=False)), container="docker"),
    ],
)
def test_a_card_that_is_not_ours_stops_nothing(found: HostSnapshot) -> None:
    verdict = driver_verdict(found)
    assert verdict.problem is None and verdict.state == "ok"


@pytest.mark.parametrize(
    ("device", "log", "state", "said"),
    [
        ("2684", (), "GPU not started", "tee /sys/bus/pci/drivers/nvidia/bind"),
        ("2b85", (), "GPU not supported", "apt install nvidia-open"),
        (
            "2b85",
            (
                "NVRM: The NVIDIA GPU 0000:02:00.0 (PCI ID: 10de:2b85)",
                "NVRM: installed in this system is not supported by the",
                "NVRM: NVIDIA 550.144.03 driver release.",
            ),
            "GPU not supported",
            "apt install nvidia-open",
        ),
    ],
)
def test_a_card_of_today_that_is_bound_to_nothing(
    device: str, log: tuple[str, ...], state: str, said: str
) -> None:
    old = two(second=PciGpu("0000:02:00.0", device, None), kernel_log=log)
    if device == "2b85":
        driver = replace(old.driver, module="550.144.03", module_on_disk="550.144.03")
        driver = replace(driver, module_next="550.144.03", library="550.144.03")
        driver = replace(driver, packages=(), package=None, cuda="12.4", libcuda=None)
        old = replace(old, driver=driver)
    verdict = driver_verdict(old)
    assert verdict.state == state and verdict.problem
    assert said in verdict.problem.next and 'gpus = ["0000:01:00.0"]' in verdict.problem.next


def test_a_row_of_words_asks_for_a_reset() -> None:
    row = "1, [GPU requires reset], [GPU requires reset], 00000000:02:00.0, [GPU requires reset]"
    verdict = driver_verdict(two(smi_error=row, complaints=(row,)))
    assert verdict.state == "GPU lost" and verdict.problem
    assert "--gpu-reset -i 0000:02:00.0" in verdict.problem.next


def test_a_card_that_no_driver_brings_to_cuda_12() -> None:
    """A newer driver, which knows no K80, is no cure for one."""
    k80 = host(cuda="11.4", module="470.256.02", library="470.256.02", module_on_disk="470.256.02")
    k80 = replace(k80, driver=replace(k80.driver, packages=(), package=None, smi="470.256.02"))
    verdict = driver_verdict(replace(k80, pci_gpus=(PciGpu("0000:01:00.0", "102d", "nvidia"),)))
    assert verdict.state == "too old" and verdict.problem
    assert verdict.problem.next.endswith("accelerator = 'cpu'")


@pytest.mark.parametrize(
    ("device", "said"),
    [("2684", "apt install nvidia-driver-580-open"), ("1b06", "apt install nvidia-driver-580,")],
)
def test_too_old_a_driver_has_its_command(device: str, said: str) -> None:
    """A card that was left behind by newer ones gets its last branch."""
    versions = dict.fromkeys(("module", "library", "module_on_disk", "module_next"), "470.256.02")
    packages = (Package("nvidia-dkms-470", "470.256.02-0ubuntu1"),)
    old = host(cuda="11.4", smi="470.256.02", libcuda=None, packages=packages, **versions)
    old = replace(old, os_id="ubuntu", pci_gpus=(PciGpu("0000:01:00.0", device, "nvidia"),))
    verdict = driver_verdict(old)
    assert verdict.state == "too old" and verdict.problem
    assert said in verdict.problem.next


def test_a_module_of_another_kernel_is_built_anew() -> None:
    line = "[9.1] nvidia: disagrees about version of symbol module_layout"
    unbound = PciGpu("0000:01:00.0", "2684", None)
    found = failing(module=None, kernel_log=(line,), smi_error="NVIDIA-SMI has failed")
    found = replace(found, pci_gpus=(unbound,))
    verdict = driver_verdict(found)
    assert verdict.state == "module missing" and verdict.problem
    assert "dkms autoinstall --force" in verdict.problem.next


@pytest.mark.parametrize(
    ("said", "container", "cured"),
    [
        ("Failed to initialize NVML: Insufficient Permissions", "podman", "label=disable"),
        ("Failed to initialize NVML: Insufficient Permissions", None, "ls -l /dev/nvidia*"),
        ("NVIDIA-SMI couldn't find libnvidia-ml.so library", "docker", "--gpus all"),
        ("NVIDIA-SMI couldn't find libnvidia-ml.so library", None, "nvidia-utils-"),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
            "lxc",
            "/dev/nvidia0",
        ),
    ],
)
def test_what_nvidia_smi_says_decides_the_cure(
    said: str, container: str | None, cured: str
) -> None:
    verdict = driver_verdict(replace(failing(smi_error=said), container=container))
    assert verdict.state == "no answer" and verdict.problem
    assert cured in verdict.problem.next, verdict.problem.next


def test_a_container_that_was_given_a_card_and_does_not_show_it() -> None:
    given = replace(two(second=replace(SECOND, given=True)), container="docker")
    assert driver_verdict(given).state == "GPU lost"


def test_a_display_card_that_the_driver_refuses_stops_nothing() -> None:
    """As in NVIDIA/open-gpu-kernel-modules#696, whose other card works."""
    log = tuple(line.replace("01:00", "02:00") for line in NO_GSP)
    old = PciGpu("0000:02:00.0", "1b82", None)
    assert driver_verdict(two(second=old, kernel_log=log)).problem is None
    fallen = tuple(line.replace("01:00", "02:00") for line in FALLEN_IN_THREE)
    assert driver_verdict(two(second=old, kernel_log=fallen)).state == "GPU lost"


def test_all_sick_cards_are_named() -> None:
    third = replace(SECOND, address="0000:03:00.0")
    verdict = driver_verdict(replace(two(), pci_gpus=(CARD_4090, SECOND, third)))
    assert verdict.problem
    assert "0000:02:00.0" in verdict.problem.found and "0000:03:00.0" in verdict.problem.found


def test_a_hanging_nvidia_smi_alone() -> None:
    odd = replace(CPU_HOST, driver=Driver(smi_state="timeout"))
    assert driver_verdict(odd).state == "no answer"


@pytest.mark.parametrize("branch", ["580", "580-open", "580-server", "580-server-open"])
@pytest.mark.parametrize("held", [(), ("libnvidia-compute-580",)])
def test_a_prebuilt_module_comes_from_its_package(branch: str, held: tuple[str, ...]) -> None:
    bare = host(next_kernel=NEXT, module_next=None, packages=prebuilt(branch), held=held)
    note = driver_verdict(bare).notes[0]
    unhold = f"sudo apt-mark unhold {held[0]}; " if held else ""
    install = f"sudo apt install linux-modules-nvidia-{branch}-{NEXT}; "
    assert f"next: {unhold}{install}" in note


def test_a_metapackage_named_after_dkms_brings_none() -> None:
    meta = Package("nvidia-headless-no-dkms-580-server", f"{OLD}-0ubuntu0.24.04.1")
    packages = (*prebuilt("580-server"), meta)
    bare = host(next_kernel=NEXT, module_next=None, packages=packages)
    assert f"install linux-modules-nvidia-580-server-{NEXT}" in driver_verdict(bare).notes[0]


@pytest.mark.parametrize("late", ["libnvidia-compute", "nvidia-dkms"])
def test_nvidias_packages_for_compute_alone_count(late: str) -> None:
    """From branch 590 on their names have none."""
    names = ("libnvidia-compute", "nvidia-dkms", "nvidia-kernel-common")
    packages = tuple(Package(n, f"{OLD if n == late else NEW}-1ubuntu1") for n in names)
    verdict = driver_verdict(failing(library=NEW, module_on_disk=NEW, packages=packages))
    assert verdict.state == "packages split"
    assert verdict.problem and f"--only-upgrade {late}," in verdict.problem.next
