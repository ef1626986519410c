"""What to type against a sick driver or card: the words of every cure, by kind and host.

A verdict decides what is wrong and names the kind; how that is said on this very host - by its
package manager, in a container or WSL, as root or by sudo - stands here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.facts import holds
from llamafleet.protocol.managers import APT, MANAGERS, YUM, Manager
from llamafleet.tables import driver_packages, parse_version
from llamafleet.tables.driver_origins import DriverOrigin, Purpose, origin_of, runfile
from llamafleet.tables.toolkits import driver_floors

Kind = Literal[
    "reboot",
    "reset-gpu",
    "power-cycle",
    "open-module",
    "proprietary-module",
    "older-branch",
    "newer-branch",
    "guest-driver",
    "fabric-manager",
    "load-module",
    "rebuild-module",
    "rebuild-initramfs",
    "sign-module",
    "blacklist-nouveau",
    "install-driver",
    "reinstall-driver",
    "bind-card",
    "unbind-card",
    "device-rights",
    "install-tools",
    "restart-container",
    "give-gpus",
    "library-of-host",
    "compute-capability",
    "compute-mode",
    "divide-gpu",
    "firmware-settings",
    "leave-out",
    "read-log",
]
"""
reboot              what is on disk is right, what is loaded is not
reset-gpu           Xids whose documented action is a reset; `about`: the card's bus address
power-cycle         the card does not answer: power off and on, then seat, power, riser, cooling
open-module         the card needs the open kernel modules (Blackwell)
proprietary-module  the card is too old for the open ones (before Turing)
older-branch        a later branch dropped the card; `about`: the last branch, as "580"
newer-branch        the card is newer than the branch; `about`: the first branch, as "570"
guest-driver        a vGPU: the guest driver that fits the host's, from its administrator
fabric-manager      NVSwitch: nvidia-fabricmanager of the driver's version, started
load-module         it is on disk and nobody loaded it
rebuild-module      the kernel that boots next has no module; `about`: that kernel
rebuild-initramfs   the boot loads another module than the disk has; `about`: the kernel
sign-module         secure boot refuses it
blacklist-nouveau   nouveau has the card, though NVIDIA's module is on disk
install-driver      there is none
reinstall-driver    a file of it is missing, as its firmware
bind-card           the loaded driver has not taken it; `about`: the card's bus address
unbind-card         another driver has it; `about`: the card's bus address
device-rights       who asks may not open /dev/nvidia*
install-tools       nvidia-smi and the libraries are missing beside a loaded module
restart-container   the container lost its devices
give-gpus           the container was started without GPUs
library-of-host     the container has another library than its host's module
compute-capability  the container was given nvidia-smi and no CUDA
compute-mode        Prohibited or exclusive: back to Default; `about`: the card's bus address
divide-gpu          MIG is on and has no instance; `about`: the card's bus address
firmware-settings   the firmware gives the card no memory region
leave-out           the setting `gpus`; `about`: the bus addresses of the cards that stay
read-log            nothing more is known
"""

WINDOWS = (
    "in Windows update NVIDIA's driver, then in PowerShell: wsl --update; wsl --shutdown "
    "(no driver is installed in WSL itself)"
)

UBUNTU_KEY = ("/var/lib/shim-signed/mok/MOK.priv", "/var/lib/shim-signed/mok/MOK.der")
DKMS_KEY = ("/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub")
"""The machine's own key, private and public, of Ubuntu's shim-signed and of dkms elsewhere."""

OTHER_CARD = "take another card, or set accelerator = 'cpu'"

AGAIN = "install the driver again, so that module and library are of one version"


def cure(kind: Kind, snapshot: HostSnapshot, about: str = "") -> str:
    """The command or sentence for this host. `about`: what the kind's line above asks for."""
    if kind in _ANYWHERE:
        return _ANYWHERE[kind](snapshot, about)
    if snapshot.container == "wsl":
        return "in PowerShell: wsl --shutdown" if kind == "reboot" else WINDOWS
    if snapshot.container:
        return f"on the host of this container, not in it: {_OF_HOST[kind]}"
    if snapshot.ostree and kind in _IMAGE:
        return as_root(snapshot, *_IMAGE[kind])
    return _ON_HOST[kind](snapshot, about)


def as_root(snapshot: HostSnapshot, *commands: str) -> str:
    """The commands as a person types them there, by sudo unless it is root or has none.

    One that begins with "!" is a sentence. In a container its own package manager is meant.
    """
    inside = snapshot.container not in (None, "wsl") and snapshot.uid == 0
    sudo = "" if snapshot.no_sudo or inside else "sudo "
    return "; ".join(c[1:] if c.startswith("!") else f"{sudo}{c}" for c in commands)


def then_reboot(snapshot: HostSnapshot, commands: str) -> str:
    """The same, and a reboot when they have ended."""
    return f"{commands}, then {as_root(snapshot, 'reboot')}"


def manager_of(snapshot: HostSnapshot) -> Manager | None:
    """The host's package manager, yum too; None: none that is known."""
    if old_enterprise_linux(snapshot):
        return YUM
    return MANAGERS.get(snapshot.package_manager or "")


def old_enterprise_linux(snapshot: HostSnapshot) -> bool:
    """RHEL 7 and its like, Amazon Linux 2: they have no dnf, module streams or gcc-toolset."""
    major = snapshot.os_version.partition(".")[0]
    like = snapshot.enterprise_linux or snapshot.os_id in ("centos", "ol", "scientific", "amzn")
    old = like and major.isdigit() and int(major) < 8
    return old or snapshot.package_manager == "yum"


def origin(snapshot: HostSnapshot) -> DriverOrigin | None:
    """Where the driver comes from, or would on this system; None: not known."""
    names = [package.name for package in snapshot.driver.packages]
    if not names and snapshot.driver.runfile:
        return runfile()
    return _system_origin(snapshot, names)


def by_hand(snapshot: HostSnapshot) -> bool:
    """There is a driver, and no package of one: NVIDIA's own installer brought it."""
    driver = snapshot.driver
    if driver.runfile:
        return not driver.packages
    # Of others nobody was asked for packages: NixOS, Gentoo, Void.
    told = snapshot.container or snapshot.package_manager in MANAGERS
    return bool(told) and not driver.packages and bool(driver.module or driver.library)


def _system_origin(snapshot: HostSnapshot, names: list[str]) -> DriverOrigin | None:
    manager = "yum" if old_enterprise_linux(snapshot) else snapshot.package_manager
    system = snapshot.os_id
    if manager == "apt" and "ubuntu" in snapshot.os_like:
        system = "ubuntu"
    elif manager == "apt" and system != "ubuntu":
        system = "debian"
    return origin_of(manager or "", names, system, snapshot.os_like, snapshot.os_version)


def branch_of(snapshot: HostSnapshot) -> tuple[str, str]:
    """Branch and flavour of Ubuntu's packages, as ("580", "-server"); else the version's."""
    for package in snapshot.driver.packages:
        if found := re.search(r"-(\d{3})(-server)?(?:-open)?(?:-|$)", package.name):
            return found[1], found[2] or ""
    driver = snapshot.driver
    version = driver.library or driver.module or driver.module_on_disk or driver_floors()[0].driver
    return version.partition(".")[0], ""


def _changed(purpose: Purpose) -> Callable[[HostSnapshot, str], str]:
    """The words that change the driver for that purpose, by the origin's row."""

    def words(snapshot: HostSnapshot, about: str) -> str:
        row = origin(snapshot)
        if row is None:
            return _unknown_origin(snapshot, purpose, about)
        said = _filled(row, purpose, snapshot, about)
        # Another snapshot than today's may not know of the installer's files.
        if by_hand(snapshot) and row != runfile() and purpose in ("open", "proprietary"):
            other = _filled(runfile(), purpose, snapshot, about)
            return f"{said} (or, where NVIDIA's own installer brought it: {other})"
        return said

    return words


def _filled(row: DriverOrigin, purpose: Purpose, snapshot: HostSnapshot, about: str) -> str:
    branch, flavour = branch_of(snapshot)
    version = snapshot.driver.module or snapshot.driver.library or "VERSION"
    commands = (
        command.format(branch=about or branch, flavour=flavour, version=version)
        for command in row.commands[purpose]
    )
    words = as_root(snapshot, *commands)
    # openSUSE's generations of packages have one set of names.
    newer = any("-G07" in package.name for package in snapshot.driver.packages)
    return words.replace("G06", "G07") if newer else words


_PURPOSES: dict[Purpose, str] = {
    "install": "install NVIDIA's driver for this kernel",
    "open": "install the same driver with its open kernel modules",
    "proprietary": "install the same driver with its proprietary kernel modules",
    "branch": "install a driver of branch {about} or newer",
    "legacy": "install a driver of branch {about}",
    "tools": "install the driver's utilities (nvidia-utils, nvidia-smi) of the module's version",
    "fabric": "install the Fabric Manager of the driver's version",
}


def _unknown_origin(snapshot: HostSnapshot, purpose: Purpose, about: str) -> str:
    words = _PURPOSES[purpose].format(about=about)
    if snapshot.os_id == "nixos":
        return f"{words} in hardware.nvidia: {as_root(snapshot, 'nixos-rebuild boot')}"
    return f"{words} ({snapshot.os_name or 'an unknown system'}: by its own means)"


def too_old_branch(branch: int) -> bool:
    """No driver of it has a CUDA that is known here."""
    return branch < parse_version(driver_floors()[-1].driver)[0]


def _older_branch(snapshot: HostSnapshot, about: str) -> str:
    words = then_reboot(snapshot, _changed("legacy")(snapshot, about))
    if about.isdigit() and too_old_branch(int(about)):
        lowest = driver_floors()[-1].cuda
        words += f"; that driver has no CUDA {lowest}, which a build needs: {OTHER_CARD}"
    return words


def _rebooted(words: Callable[[HostSnapshot, str], str]) -> Callable[[HostSnapshot, str], str]:
    return lambda snapshot, about: then_reboot(snapshot, words(snapshot, about))


def _reset_gpu(snapshot: HostSnapshot, about: str) -> str:
    command = f"nvidia-smi --gpu-reset -i {about}" if about else "nvidia-smi --gpu-reset"
    return (
        f"{as_root(snapshot, command)} with nothing on that GPU; if it can't be reset: "
        f"{as_root(snapshot, 'reboot')}"
    )


def _power_cycle(snapshot: HostSnapshot, _about: str) -> str:
    return (
        "power the host off and on, a reboot alone may not bring the card back: "
        f"{as_root(snapshot, 'poweroff')}, cut the power for a minute, start it again; if it comes "
        "back: power cables, seat, riser and cooling of the card, and "
        f"{as_root(snapshot, 'nvidia-bug-report.sh')}"
    )


def _load(snapshot: HostSnapshot, _about: str) -> str:
    on_disk = snapshot.driver.module_on_disk
    disk = f" (version {on_disk} is on disk)" if on_disk else ""
    log = as_root(snapshot, "dmesg | grep -i nvidia")
    words = f"{as_root(snapshot, f'modprobe {module_name(snapshot)}')}{disk}; {log}"
    if "ubuntu" not in (snapshot.os_id, *snapshot.os_like):
        return words
    chosen = then_reboot(snapshot, as_root(snapshot, "prime-select on-demand"))
    return f"{words}; on a laptop whose `prime-select query` says intel: {chosen}"


def module_name(snapshot: HostSnapshot) -> str:
    """As modprobe knows it: Debian's packages name it nvidia-current."""
    file = snapshot.driver.module_file
    current = file is not None and "/nvidia-current" in file.path
    return "nvidia-current" if current else "nvidia"


_FLAVOUR = re.compile(r"-\d[\d.]*-([a-z][a-z-]*)$")
"""As zen, pve, default at the end of a kernel's name. Ubuntu's packages bear the whole name."""


def headers(snapshot: HostSnapshot, kernel: str) -> tuple[str, ...]:
    """The command that brings a kernel's headers; (): the manager is not known."""
    flavour = _FLAVOUR.search(kernel)
    name = flavour[1] if flavour else ""
    uek = "-uek" if "uek" in kernel else ""
    manjaro = re.match(r"(\d+)\.(\d+)\..*-MANJARO$", kernel)
    arch = f"linux{manjaro[1]}{manjaro[2]}" if manjaro else f"linux-{name}" if name else "linux"
    # Proxmox named them pve-headers before its 8.1, of kernel 6.5.
    proxmox = "proxmox" if parse_version(kernel.partition("-")[0]) >= (6, 5) else "pve"
    packages = {
        "apt": f"apt install {proxmox if name == 'pve' else 'linux'}-headers-{kernel}",
        "dnf": f"dnf install kernel{uek}-devel-{kernel}",
        "yum": f"yum install kernel{uek}-devel-{kernel}",
        "pacman": f"pacman -S --needed {arch}-headers",
        "zypper": f"zypper install kernel-{name or 'default'}-devel",
    }
    manager = "yum" if old_enterprise_linux(snapshot) else snapshot.package_manager or ""
    return (packages[manager],) if manager in packages else ()


def _rebuild(snapshot: HostSnapshot, about: str) -> str:
    """Build or install the module for one kernel, in the way of the packages that are there."""
    kernel = about or snapshot.driver.next_kernel or snapshot.kernel or "$(uname -r)"
    seen = f"modinfo -k {kernel} -F version {module_name(snapshot)}"
    names = [package.name for package in snapshot.driver.packages]
    if snapshot.driver.dkms or any(driver_packages.has(name, "dkms") for name in names):
        built = as_root(snapshot, *headers(snapshot, kernel), f"dkms autoinstall -k {kernel}")
        return f"{built}; dkms status; {seen}"
    branches = [branch for branch in map(driver_packages.prebuilt_branch, names) if branch]
    if branches:
        held = holds(snapshot.driver, names)
        package = f"linux-modules-nvidia-{branches[0]}-{kernel}"
        installed = as_root(snapshot, f"apt install {package}")
        return f"{APT.lift(held) if held else ''}{installed}; {seen}"
    if any(driver_packages.has(name, "akmod") for name in names):
        built = as_root(snapshot, *headers(snapshot, kernel), f"akmods --force --kernels {kernel}")
        return f"{built}; {seen}"
    return f"{_installed_again(snapshot, names, kernel)}; {seen}"


def _installed_again(snapshot: HostSnapshot, names: list[str], kernel: str) -> str:
    """The module of packages that bring it built, or of NVIDIA's own installer."""
    row = origin(snapshot)
    kind = row.id if row else ""
    built = [name for name in names if "-kmp-" in name or driver_packages.has(name, "kernel")]
    manager = manager_of(snapshot)
    if kind == "arch" and names:
        return as_root(snapshot, "pacman -Syu")
    if kind == "suse" and manager and names:
        return as_root(snapshot, manager.reinstall.format(" ".join(built or names)))
    if built and manager:
        # NVIDIA builds one for each kernel of RHEL, some days after it.
        other = (
            ""
            if kind != "nvidia-modules"
            else (
                f" (if there is none for {kernel} yet: "
                f"{as_root(snapshot, 'dnf module switch-to nvidia-driver:open-dkms')})"
            )
        )
        return as_root(snapshot, manager.upgrade.format("'kmod-nvidia*'")) + other
    if by_hand(snapshot):
        version = snapshot.driver.library or snapshot.driver.module or "VERSION"
        command = f"sh NVIDIA-Linux-{snapshot.arch}-{version}.run --kernel-name={kernel}"
        return f"{AGAIN}: {as_root(snapshot, command)}"
    return _own_means(snapshot) or AGAIN


_SYSTEMS = {
    "nixos": (
        "nixos-rebuild boot",
        "!an nvidia-x11 in a profile hides it: nix-env -q, nix profile list",
    ),
    "gentoo": ("emerge --oneshot @module-rebuild x11-drivers/nvidia-drivers",),
    "void": ("xbps-install -Su", "xbps-reconfigure -fa"),
}
"""What brings the driver's parts together where no package manager is asked."""


def _own_means(snapshot: HostSnapshot) -> str:
    return as_root(snapshot, *_SYSTEMS.get(snapshot.os_id, ()))


def own_means(snapshot: HostSnapshot) -> str:
    """The driver's parts of one version, in the system's own way; "": it has none known here."""
    words = _own_means(snapshot)
    return then_reboot(snapshot, words) if words else ""


def _reinstall(snapshot: HostSnapshot, _about: str) -> str:
    """All packages of the driver: its firmware is in another one than its module."""
    manager = manager_of(snapshot)
    names = snapshot.driver.parts or tuple(p.name for p in snapshot.driver.packages)
    if manager and names:
        return then_reboot(snapshot, as_root(snapshot, manager.reinstall.format(" ".join(names))))
    return then_reboot(snapshot, _changed("install")(snapshot, ""))


def _bind(snapshot: HostSnapshot, about: str) -> str:
    bind = as_root(snapshot, "tee /sys/bus/pci/drivers/nvidia/bind")
    log = as_root(snapshot, "dmesg | tail -n 20")
    return f"echo {about} | {bind}; {log}, which says why the driver does not take it"


def _unbind(snapshot: HostSnapshot, about: str) -> str:
    away = as_root(snapshot, f"tee /sys/bus/pci/devices/{about}/driver/unbind")
    load = as_root(snapshot, "modprobe nvidia")
    probe = as_root(snapshot, "tee /sys/bus/pci/drivers_probe")
    return (
        f"echo {about} | {away}; {load}; echo {about} | {probe}; for the next boot look what binds "
        "it: grep -r vfio /etc/modprobe.d /proc/cmdline; or set accelerator = 'cpu'"
    )


def _device_rights(snapshot: HostSnapshot, _about: str) -> str:
    join = as_root(snapshot, "usermod -aG video $USER")
    return f"ls -l /dev/nvidia*, and join the group that they name: {join}, then log in again"


def initramfs(snapshot: HostSnapshot, kernel: str) -> str:
    """The command, without sudo, that makes a kernel's initramfs anew from what is on disk."""
    if snapshot.package_manager == "apt":
        return f"update-initramfs -u -k {kernel}"
    if snapshot.package_manager == "pacman":
        return "mkinitcpio -P"
    return f"dracut --force --kver {kernel}"


def _rebuild_initramfs(snapshot: HostSnapshot, about: str) -> str:
    kernel = about or snapshot.driver.next_kernel or snapshot.kernel or "$(uname -r)"
    return then_reboot(snapshot, as_root(snapshot, f"depmod {kernel}", initramfs(snapshot, kernel)))


def _sign(snapshot: HostSnapshot, _about: str) -> str:
    """The machine's own key into the firmware's list, and the module signed with it."""
    enrol = (
        "enrol the key at the blue screen of that boot; or switch secure boot off in the firmware"
    )
    signed, key = _signed(snapshot)
    commands = as_root(snapshot, *signed, f"mokutil --import {key}")
    return f"{then_reboot(snapshot, commands)} and {enrol}"


def _signed(snapshot: HostSnapshot) -> tuple[tuple[str, ...], str]:
    """What signs the module with the machine's key, and where the key's public half lies."""
    driver = snapshot.driver
    names = [package.name for package in driver.packages]
    row = origin(snapshot)
    if any(driver_packages.has(name, "akmod") for name in names):
        kernel = snapshot.kernel or "$(uname -r)"
        built = ("kmodgenca -a", f"akmods --force --rebuild --kernels {kernel}")
        return () if driver.module_signer else built, "/etc/pki/akmods/certs/public_key.der"
    if snapshot.ostree and driver.module_signer:
        # Bluefin and its like have a command for theirs: ujust enroll-secure-boot-key.
        return (), "/etc/pki/akmods/certs/*.der"
    if row is not None and row.id == "suse":
        return (), "/var/lib/nvidia-pubkeys/MOK-nvidia-driver-*.der"
    ubuntu = "ubuntu" in (snapshot.os_id, *snapshot.os_like)
    private, public = UBUNTU_KEY if ubuntu else DKMS_KEY
    if names or driver.dkms or driver.module_signer:
        return (), public
    # NVIDIA's installer signs what it builds if it is told a key, and not otherwise.
    made = "update-secureboot-policy --new-key" if ubuntu else "dkms generate_mok"
    installer = (
        f"sh NVIDIA-Linux-{snapshot.arch}-{driver.module_on_disk or 'VERSION'}.run "
        f"--module-signing-secret-key={private} --module-signing-public-key={public}"
    )
    return (made, installer), public


def _blacklist(snapshot: HostSnapshot, _about: str) -> str:
    kernel = snapshot.driver.next_kernel or snapshot.kernel or "$(uname -r)"
    conf = "/etc/modprobe.d/blacklist-nouveau.conf"
    tee = as_root(snapshot, f"tee {conf}")
    commands = f"echo 'blacklist nouveau' | {tee}; {as_root(snapshot, initramfs(snapshot, kernel))}"
    return then_reboot(snapshot, commands)


def _fabric(snapshot: HostSnapshot, about: str) -> str:
    commands = _changed("fabric")(snapshot, about)
    started = as_root(snapshot, "systemctl enable --now nvidia-fabricmanager")
    return f"{commands} (of the driver's very version); {started}; nvidia-smi -q | grep -A2 Fabric"


def _guest(snapshot: HostSnapshot, _about: str) -> str:
    return (
        "install the guest driver (NVIDIA-Linux-*-grid.run, or nvidia-linux-grid-*) that goes with "
        "the vGPU release of this machine's host, from NVIDIA's licensing portal or the cloud's "
        f"own documents, then {as_root(snapshot, 'reboot')}"
    )


def _compute_mode(snapshot: HostSnapshot, about: str) -> str:
    return as_root(snapshot, f"nvidia-smi {f'-i {about} ' if about else ''}-c DEFAULT")


def _divide(snapshot: HostSnapshot, about: str) -> str:
    chosen = f"-i {about} " if about else ""
    off = as_root(snapshot, f"nvidia-smi {chosen}-mig 0")
    made = as_root(snapshot, f"nvidia-smi mig {chosen}-cgi PROFILE -C")
    return f"nvidia-smi mig -lgip; {made}, or {off}"


def _firmware_settings(_snapshot: HostSnapshot, _about: str) -> str:
    return (
        "in the machine's firmware (BIOS) switch on Above 4G Decoding, and Resizable BAR if it is "
        "there; in a virtual machine widen the host's 64-bit PCI window; then power it off and on"
    )


def _leave_out(_snapshot: HostSnapshot, about: str) -> str:
    listed = ", ".join(f'"{address}"' for address in about.replace(",", " ").split())
    return f"to go on without it: gpus = [{listed}]"


def _restart_container(snapshot: HostSnapshot, _about: str) -> str:
    if snapshot.container in ("lxc", "systemd-nspawn"):
        return (
            "on its host: allow it the devices of the driver (lxc.cgroup2.devices.allow: c 195:* "
            "rwm, and those of nvidia-uvm by /proc/devices), then restart it"
        )
    again = {"docker": "docker restart", "podman": "podman restart"}.get(snapshot.container or "")
    restart = f"on its host: {again} CONTAINER" if again else "restart the container from its host"
    return (
        f"{restart}; it loses its GPUs again at each systemctl daemon-reload of the host unless "
        "they are given by CDI or as --device, or Docker's cgroup driver is cgroupfs"
    )


def _give_gpus(snapshot: HostSnapshot, _about: str) -> str:
    if snapshot.container in ("lxc", "systemd-nspawn"):
        return (
            "on its host give it the nodes /dev/nvidia0, nvidiactl and nvidia-uvm (Proxmox: "
            "dev0: /dev/nvidia0, and so on; nvidia-smi makes them after a boot), then restart it"
        )
    return (
        "start the container with its GPUs, as docker run --gpus all, or podman run --device "
        "nvidia.com/gpu=all; in Kubernetes by the resource nvidia.com/gpu"
    )


def _library_of_host(snapshot: HostSnapshot, _about: str) -> str:
    """Docker and its like get the host's, unless the image brings one; LXC has its own."""
    module, manager = snapshot.driver.module, manager_of(snapshot)
    names = [package.name for package in snapshot.driver.packages]
    brought = [name for name in names if driver_packages.has(name, "library")]
    if brought and manager and snapshot.container in ("docker", "podman"):
        remove = as_root(snapshot, manager.remove.format(" ".join(brought)))
        return (
            "take the driver's library out of the image, which hides the one of its host: "
            f"{remove}; then restart the container"
        )
    command = f"sh NVIDIA-Linux-{snapshot.arch}-{module}.run --no-kernel-modules"
    by_hand = f": {as_root(snapshot, command)}" if module else ""
    return (
        "restart the container, so that it gets the host's library; else install the library of "
        f"{module or 'that module'} in it{by_hand}"
    )


def _compute_capability(_snapshot: HostSnapshot, _about: str) -> str:
    return (
        "start the container anew with NVIDIA_DRIVER_CAPABILITIES=compute,utility, as docker run "
        "--gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    )


def _log(snapshot: HostSnapshot, _about: str) -> str:
    return f"run nvidia-smi on the host; {as_root(snapshot, 'dmesg')} | grep -iE 'nvrm|xid'"


_ANYWHERE: dict[Kind, Callable[[HostSnapshot, str], str]] = {
    "restart-container": _restart_container,
    "give-gpus": _give_gpus,
    "library-of-host": _library_of_host,
    "compute-capability": _compute_capability,
    "leave-out": _leave_out,
}
"""Said alike wherever it is typed."""

_ON_HOST: dict[Kind, Callable[[HostSnapshot, str], str]] = {
    "reboot": lambda snapshot, _: as_root(snapshot, "reboot"),
    "reset-gpu": _reset_gpu,
    "power-cycle": _power_cycle,
    "open-module": _rebooted(_changed("open")),
    "proprietary-module": _rebooted(_changed("proprietary")),
    "older-branch": _older_branch,
    "newer-branch": _rebooted(_changed("branch")),
    "guest-driver": _guest,
    "fabric-manager": _fabric,
    "load-module": _load,
    "rebuild-module": _rebuild,
    "rebuild-initramfs": _rebuild_initramfs,
    "sign-module": _sign,
    "blacklist-nouveau": _blacklist,
    "install-driver": _rebooted(_changed("install")),
    "reinstall-driver": _reinstall,
    "bind-card": _bind,
    "unbind-card": _unbind,
    "device-rights": _device_rights,
    "install-tools": _changed("tools"),
    "compute-mode": _compute_mode,
    "divide-gpu": _divide,
    "firmware-settings": _firmware_settings,
    "read-log": _log,
}

_OF_HOST: dict[Kind, str] = {
    "reboot": "reboot it",
    "reset-gpu": "reset the GPU with nothing on it (nvidia-smi --gpu-reset), or reboot it",
    "power-cycle": "power it off and on; then power, seat, riser and cooling of the card",
    "open-module": "install the driver with its open kernel modules, and reboot it",
    "proprietary-module": "install the driver with its proprietary kernel modules, and reboot it",
    "older-branch": "install an older branch of the driver, and reboot it",
    "newer-branch": "install a newer branch of the driver, and reboot it",
    "guest-driver": "install the guest driver that goes with its own host's vGPU release",
    "fabric-manager": "install and start the Fabric Manager of the driver's version",
    "load-module": "load the module nvidia",
    "rebuild-module": "build or install the module nvidia for its kernel",
    "rebuild-initramfs": "make its initramfs anew, and reboot it",
    "sign-module": "sign the module nvidia, or enrol its key",
    "blacklist-nouveau": "take the card from nouveau, and reboot it",
    "install-driver": "install NVIDIA's driver",
    "reinstall-driver": "install the driver's packages again, and reboot it",
    "bind-card": "read in dmesg why the driver does not take the card",
    "unbind-card": "take the card from the driver that has it, as vfio-pci",
    "device-rights": "where SELinux keeps containers from the devices: setsebool -P "
    "container_use_devices on; or start it with --security-opt label=disable",
    "install-tools": "install the driver's utilities, then start the container with its GPUs",
    "compute-mode": "nvidia-smi -c DEFAULT",
    "divide-gpu": "make MIG instances, or nvidia-smi -mig 0",
    "firmware-settings": "Above 4G Decoding in its firmware, then power it off and on",
    "read-log": "nvidia-smi; dmesg | grep -iE 'nvrm|xid'",
}
"""What its administrator has to do: which system that is can't be seen from inside."""

_IMAGE: dict[Kind, tuple[str, ...]] = {
    "install-driver": (
        "rpm-ostree upgrade",
        "!or rebase to the image with NVIDIA's driver",
        "reboot",
    ),
    "rebuild-module": ("rpm-ostree upgrade", "reboot", "!if it comes back: rpm-ostree rollback"),
    "rebuild-initramfs": ("rpm-ostree upgrade", "reboot", "!if it comes back: rpm-ostree rollback"),
    "reinstall-driver": ("rpm-ostree upgrade", "reboot"),
    "open-module": ("!rebase to the image with NVIDIA's open modules: rpm-ostree rebase", "reboot"),
    "proprietary-module": (
        "!rebase to the image with NVIDIA's proprietary modules: rpm-ostree rebase",
        "reboot",
    ),
    "older-branch": (
        "!rebase to the image with NVIDIA's driver for older cards: rpm-ostree rebase",
        "reboot",
    ),
    "newer-branch": ("rpm-ostree upgrade", "reboot"),
    "install-tools": (
        "rpm-ostree upgrade",
        "!or rebase to the image with NVIDIA's driver",
        "reboot",
    ),
    "blacklist-nouveau": (
        "rpm-ostree kargs --append=rd.driver.blacklist=nouveau --append=modprobe.blacklist=nouveau",
        "reboot",
    ),
}
"""Where the system is an image, which is changed as a whole."""
