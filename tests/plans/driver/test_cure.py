"""The words of every cure, by kind and host: each is one that this host can carry out."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from llamafleet.facts.host import HostSnapshot, Package
from llamafleet.plans.driver.cure import Kind, as_root, cure, headers, manager_of, origin
from llamafleet.plans.host import as_typed
from tests.hosts.recorded import SYSTEMS
from tests.plans.driver.test_verdict import NEW, OLD, host, ubuntu
from tests.plans.hosts import GPU_HOST

KINDS: tuple[Kind, ...] = get_args(Kind)
ABOUT: dict[str, str] = {
    "reset-gpu": "0000:01:00.0",
    "older-branch": "580",
    "newer-branch": "570",
    "leave-out": "0000:01:00.0 0000:41:00.0",
    "rebuild-module": "6.8.0-45-generic",
}
INSTALLS = {
    "apt": ("apt install", "apt-get", "ubuntu-drivers"),
    "dnf": ("dnf ",),
    "yum": ("yum ",),
    "pacman": ("pacman ",),
    "zypper": ("zypper ",),
}
"""Words that only a host with that manager understands."""


def system(name: str, packages: tuple[Package, ...] = ()) -> HostSnapshot:
    """A GPU host with the system of that name in systems.yaml."""
    lines = SYSTEMS[name]["lines"]
    release = dict(
        line.replace('"', "").split("=", 1) for line in SYSTEMS[name]["blocks"]["os-release"]
    )
    found = host(packages=packages)
    return replace(
        found,
        os_id=release["ID"],
        os_like=tuple(release.get("ID_LIKE", "").split()),
        os_version=release.get("VERSION_ID", ""),
        os_name=release.get("PRETTY_NAME", ""),
        package_manager=lines["package_manager"][0],
        kernel=lines["kernel"][0],
        ostree="ostree" in lines,
        driver=replace(found.driver, next_kernel=lines["kernel"][0], module=None),
    )


OF_A_SYSTEM = sorted(set(SYSTEMS) - {"alpine"})


@pytest.mark.parametrize("name", OF_A_SYSTEM)
@pytest.mark.parametrize("kind", KINDS)
def test_no_cure_speaks_of_another_package_manager(kind: Kind, name: str) -> None:
    there = system(name)
    text = cure(kind, there, ABOUT.get(kind, ""))
    assert text and "{" not in text and "None" not in text
    for manager, words in INSTALLS.items():
        if manager != (there.package_manager or ""):
            assert not any(word in text for word in words), text


IN_THE_CONTAINER: Kind = "library-of-host"
"""What it has itself is at fault, and is mended in it."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != IN_THE_CONTAINER])
@pytest.mark.parametrize("container", ["docker", "podman", "lxc", "systemd-nspawn"])
def test_in_a_container_nothing_is_done_to_the_host(kind: Kind, container: str) -> None:
    text = cure(kind, replace(host(), container=container), ABOUT.get(kind, ""))
    assert not any(word in text for word in ("sudo", "apt", "modprobe", "dkms", "mokutil")), text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != IN_THE_CONTAINER])
def test_in_wsl_no_linux_driver_is_touched(kind: Kind) -> None:
    text = cure(kind, replace(host(), container="wsl"), ABOUT.get(kind, ""))
    assert "sudo" not in text and "apt" not in text, text


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_root_types_no_sudo(kind: Kind) -> None:
    there = replace(host(), no_sudo=True)
    assert "sudo " not in as_typed(there, cure(kind, there, ABOUT.get(kind, "")))


FEDORA = (Package("akmod-nvidia", NEW), Package("xorg-x11-drv-nvidia-cuda", NEW))
DEBIAN = (Package("nvidia-kernel-dkms", f"{NEW}-1"), Package("libcuda1", f"{NEW}-1"))
CUDA_REPOSITORY = (Package("cuda-drivers", f"{NEW}-1"), Package("nvidia-dkms", f"{NEW}-1"))
G07 = (Package("nvidia-compute-G07", NEW),)
SERVER = (Package("nvidia-dkms-570-server", NEW), Package("libnvidia-compute-570-server", NEW))


@pytest.mark.parametrize(
    ("there", "kind", "about", "said"),
    [
        (system("ubuntu22"), "install-driver", "", "sudo ubuntu-drivers install, then sudo reb"),
        (system("ubuntu22", ubuntu()), "open-module", "", "apt install nvidia-driver-580-open, "),
        (system("ubuntu22", SERVER), "open-module", "", "install nvidia-driver-570-server-open"),
        (system("ubuntu22", SERVER), "newer-branch", "580", "nvidia-driver-580-server-open,"),
        (system("ubuntu22", SERVER), "older-branch", "580", "nvidia-driver-580-server,"),
        (system("ubuntu22", SERVER), "older-branch", "470", "accelerator = 'cpu'"),
        (system("ubuntu22", CUDA_REPOSITORY), "older-branch", "580", "apt install cuda-drivers"),
        (system("ubuntu22", ubuntu()), "load-module", "", "prime-select on-demand"),
        (system("ubuntu22", ubuntu()), "reinstall-driver", "", "--reinstall libnvidia-compute-"),
        (system("bazzite42"), "install-tools", "", "rpm-ostree upgrade"),
        (system("bazzite42"), "older-branch", "580", "rpm-ostree rebase; sudo reboot"),
        (system("leap15", G07), "install-tools", "", "zypper install nvidia-compute-utils-G07"),
        (system("ubuntu22", SERVER), "fabric-manager", "", "install nvidia-fabricmanager-570"),
        (system("debian12"), "install-driver", "", "nvidia-driver nvidia-smi"),
        (system("debian12", DEBIAN), "open-module", "", "apt install nvidia-open-kernel-dkms"),
        (system("debian12", DEBIAN), "install-tools", "", "nvidia-smi libcuda1 libnvidia-ml1"),
        (system("fedora42"), "install-driver", "", "dnf install akmod-nvidia xorg-x11-drv-nvidia"),
        (system("fedora42", FEDORA), "open-module", "", "%_with_kmod_nvidia_open 1"),
        (system("fedora42", FEDORA), "rebuild-module", "k", "akmods --force --kernels k"),
        (system("fedora42", FEDORA), "sign-module", "", "/etc/pki/akmods/certs/public_key.der"),
        (system("rhel9"), "open-module", "", "dnf module switch-to nvidia-driver:open-dkms"),
        (system("rocky8"), "install-driver", "", "dnf module enable nvidia-driver:open-dkms"),
        (system("centos7"), "install-driver", "", "yum install nvidia-driver-latest-dkms"),
        (system("arch"), "open-module", "", "pacman -Syu nvidia-open nvidia-utils"),
        (system("leap15"), "open-module", "", "nvidia-open-driver-G06-signed-kmp-default"),
        (system("leap15"), "blacklist-nouveau", "", "sudo dracut --force --kver"),
        (system("arch"), "blacklist-nouveau", "", "sudo mkinitcpio -P"),
        (system("bazzite42"), "blacklist-nouveau", "", "rpm-ostree kargs"),
        (system("ubuntu22", ubuntu()), "sign-module", "", "/var/lib/shim-signed/mok/MOK.der"),
        (system("debian12", DEBIAN), "sign-module", "", "/var/lib/dkms/mok.pub"),
        (host(), "reset-gpu", "0000:01:00.0", "sudo nvidia-smi --gpu-reset -i 0000:01:00.0"),
        (host(), "compute-mode", "0000:01:00.0", "sudo nvidia-smi -i 0000:01:00.0 -c DEFAULT"),
        (host(), "leave-out", "0000:01:00.0", 'gpus = ["0000:01:00.0"]'),
        (replace(host(), container="docker"), "reboot", "", "not in it: reboot it"),
        (replace(host(), container="docker"), "library-of-host", "", ": apt-get purge libnvidia-"),
        (replace(host(packages=()), container="lxc"), "library-of-host", "", f"{OLD}.run --no-ker"),
        (replace(host(), container="lxc"), "restart-container", "", "lxc.cgroup2.devices.allow"),
        (replace(host(), container="docker"), "restart-container", "", "docker restart"),
        (replace(host(), container="wsl"), "reboot", "", "wsl --shutdown"),
    ],
)
def test_a_cure_in_the_words_of_its_host(
    there: HostSnapshot, kind: Kind, about: str, said: str
) -> None:
    assert said in cure(kind, there, about)


@pytest.mark.parametrize(
    ("name", "kernel", "package"),
    [
        ("debian12", "6.17.2-1-pve", "apt install proxmox-headers-6.17.2-1-pve"),
        ("debian12", "6.2.16-20-pve", "apt install pve-headers-6.2.16-20-pve"),
        ("debian12", "6.1.0-38-amd64", "apt install linux-headers-6.1.0-38-amd64"),
        ("ubuntu22", "6.8.0-88-generic", "apt install linux-headers-6.8.0-88-generic"),
        ("arch", "6.4.1-zen1-1-zen", "pacman -S --needed linux-zen-headers"),
        ("arch", "6.12.60-1-lts", "pacman -S --needed linux-lts-headers"),
        ("arch", "6.14.4-2-cachyos", "pacman -S --needed linux-cachyos-headers"),
        ("arch", "6.12.1-4-MANJARO", "pacman -S --needed linux612-headers"),
        ("arch", "6.18.2-arch1-1", "pacman -S --needed linux-headers"),
        ("leap15", "6.4.0-150600.23.22-default", "zypper install kernel-default-devel"),
        ("rhel9", "5.15.0-307.178.5.el9uek.x86_64", "dnf install kernel-uek-devel-5.15.0-307"),
        ("rhel9", "5.14.0-570.el9_6.x86_64", "dnf install kernel-devel-5.14.0-570.el9_6.x86_64"),
    ],
)
def test_headers_of_each_flavour_of_kernel(name: str, kernel: str, package: str) -> None:
    """rhel9's package names stand for Oracle Linux too."""
    assert headers(system(name), kernel)[0].startswith(package)


@pytest.mark.parametrize(
    ("os_id", "said"),
    [("nixos", "nixos-rebuild boot"), ("gentoo", "@module-rebuild"), ("void", "xbps-")],
)
def test_where_no_packages_were_asked_for_no_installer_is_meant(os_id: str, said: str) -> None:
    there = replace(host(packages=()), package_manager=None, os_id=os_id, os_like=())
    assert said in cure("rebuild-module", there) and ".run" not in cure("rebuild-module", there)


def test_a_driver_of_nvidia_s_installer_is_changed_by_it() -> None:
    there = host(packages=(), module=OLD, runfile=("/usr/bin/nvidia-uninstall",))
    row = origin(there)
    assert row and row.id == "runfile"
    assert f"NVIDIA-Linux-$(uname -m)-{OLD}.run -m=kernel-open" in cure("open-module", there)


def test_a_system_that_is_not_known_gets_a_sentence() -> None:
    there = replace(
        system("arch"), os_id="nixos", os_like=(), package_manager=None, os_name="NixOS"
    )
    assert "nixos-rebuild boot" in cure("install-driver", there)
    void = replace(there, os_id="void", os_name="Void")
    assert cure("open-module", void).startswith("install the same driver with its open kernel")
    assert manager_of(void) is None


def test_amazon_linux_2_and_oracle_7_have_yum() -> None:
    for name, version in (("amzn", "2"), ("ol", "7.9")):
        there = replace(GPU_HOST, os_id=name, os_like=(), os_version=version, package_manager=None)
        manager = manager_of(there)
        assert manager and manager.program == "yum"
    assert manager_of(replace(GPU_HOST, os_id="amzn", os_version="2023", package_manager="dnf"))


def test_a_sentence_among_commands_gets_no_sudo() -> None:
    assert as_root(host(), "one", "!then look") == "sudo one; then look"
