"""An RTX 4090 and its driver, faked at the edges of a booted host.

Packages of the driver are real ones, small: a library that answers as NVML does, nvidia-smi as a
script, a kernel module that is an ELF file with what modinfo reads. At each boot the module on disk
becomes the loaded one, as udev would do it, by files where the kernel would show them. All that
looks at the driver is real.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.booted import BootedHost

CUDA = {"535.261.03": "12.2", "570.86.10": "12.8", "580.95.05": "13.0", "590.44.01": "13.1"}
"""Newest CUDA version of each driver, as its nvidia-smi shows it."""

KERNEL = os.uname().release
LIBRARIES = "usr/lib/x86_64-linux-gnu"
NAME, UUID = "NVIDIA GeForce RTX 4090", "GPU-4b7e1c9a-0d52-9a1f-6c3e-5a1d2f3b4c5d"

# Words and exit status of the mismatch: oddmario/NVIDIA-Ubuntu-Driver-Guide#4.
NVIDIA_SMI = """#!/bin/sh
library=$(readlink /usr/lib/*-linux-gnu/libnvidia-ml.so.1)
library=${{library#libnvidia-ml.so.}}
loaded=$(cat /sys/module/nvidia/version 2>/dev/null ||
    sed -n 's/.*Kernel Module  \\([0-9.]*\\).*/\\1/p' /proc/driver/nvidia/version)
if [ -n "$library" ] && [ "$library" != "$loaded" ]; then
    echo "Failed to initialize NVML: Driver/library version mismatch"
    echo "NVML library version: ${{library%.*}}"
    exit 18
fi
case "$1" in
--query-gpu=driver_version) echo {driver} ;;
--query-gpu=*) echo "0, {name}, {uuid}, 00000000:01:00.0, 24564, {driver}, 8.9" ;;
"") echo "| NVIDIA-SMI {driver}    Driver Version: {driver}    CUDA Version: {cuda}     |" ;;
*) exit 2 ;;
esac
"""

# Names, numbers and structures of nvml.h.
NVML = r"""
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
static int text(char *to, unsigned size, const char *from) {
    snprintf(to, size, "%s", from);
    return 0;
}
int nvmlInit_v2(void) {
    char loaded[64] = "";
    FILE *file = fopen("/sys/module/nvidia/version", "r");
    if (!file) return 9;                       /* NVML_ERROR_DRIVER_NOT_LOADED */
    if (fgets(loaded, sizeof loaded, file)) loaded[strcspn(loaded, "\n")] = 0;
    fclose(file);
    return strcmp(loaded, VERSION) ? 18 : 0;   /* NVML_ERROR_LIB_RM_VERSION_MISMATCH */
}
int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) {
    return code == 18 ? "Driver/library version mismatch" : "Driver Not Loaded";
}
int nvmlSystemGetDriverVersion(char *to, unsigned size) { return text(to, size, VERSION); }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { *to = CUDA; return 0; }
int nvmlDeviceGetCount_v2(unsigned *to) { *to = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **to) { *to = "0"; return 0; }
int nvmlDeviceGetName(void *gpu, char *to, unsigned size) { return text(to, size, NAME); }
int nvmlDeviceGetUUID(void *gpu, char *to, unsigned size) { return text(to, size, UUID); }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *a, int *b) { *a = 8; *b = 9; return 0; }
int nvmlDeviceGetMemoryInfo(void *gpu, memory_t *to) {
    to->total = 24564ULL << 20; to->used = 1ULL << 20; to->free = to->total - to->used;
    return 0;
}
"""

MODULE = """
#define TAG(name, text) __attribute__((section(".modinfo"), used)) static const char name[] = text
TAG(version, "version=" VERSION);
TAG(license, "license=NVIDIA");
TAG(alias, "alias=pci:v000010DEd*sv*sd*bc03sc00i00*");
"""

# At boot: the module on disk is loaded and has the card. The container's mark goes, so that the
# host counts as what it stands for, a machine with a kernel and modules of its own.
HARDWARE = f"""#!/bin/sh -e
rm -f /run/systemd/container
for folder in /sys/module /sys/bus/pci/devices; do mount -t tmpfs tmpfs $folder; done
card=/sys/bus/pci/devices/0000:01:00.0
mkdir -p /sys/module/nvidia $card
modinfo -F version nvidia >/sys/module/nvidia/version
echo 0x10de >$card/vendor && echo 0x2684 >$card/device && echo 0x030000 >$card/class
ln -s ../../../bus/pci/drivers/nvidia $card/driver
mkdir -p /boot && touch /boot/vmlinuz-{KERNEL}
"""
HARDWARE_UNIT = """[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/fake-hardware
[Install]
WantedBy=sysinit.target
"""


def missing_compiler() -> list[str]:
    """What this machine lacks to make the driver's packages; empty: nothing."""
    return [tool for tool in ("gcc", "dpkg-deb") if shutil.which(tool) is None]


def nvidia_smi(driver: str, cuda: str) -> str:
    return NVIDIA_SMI.format(driver=driver, cuda=cuda, name=NAME, uuid=UUID)


def plant_nvidia_smi(host: BootedHost, driver: str, cuda: str) -> None:
    """nvidia-smi alone, as in a container that gets the host's driver."""
    _write(host.tree / "usr/bin/nvidia-smi", nvidia_smi(driver, cuda))


def plant_hardware(host: BootedHost) -> None:
    """A card, for a driver to be there from the next boot on."""
    _write(host.tree / "usr/local/sbin/fake-hardware", HARDWARE)
    _write(host.tree / "etc/systemd/system/fake-hardware.service", HARDWARE_UNIT, 0o644)
    done = host.run("apt-get update -qq && apt-get install -y -qq --no-install-recommends kmod")
    assert done.returncode == 0, done.stderr
    assert host.run("systemctl enable fake-hardware").returncode == 0


def packages(folder: Path, driver: str) -> dict[str, Path]:
    """The driver's packages, by Debian's names of them."""
    major, minor = CUDA[driver].split(".")
    figures = {"VERSION": f'"{driver}"', "NAME": f'"{NAME}"', "UUID": f'"{UUID}"'}
    number = {"CUDA": str(int(major) * 1000 + int(minor) * 10)}
    library = _compile(folder / "nvml.so", NVML, figures | number, "-shared", "-fPIC")
    module = _compile(folder / "nvidia.ko", MODULE, figures, "-c")
    soname = f"{LIBRARIES}/libnvidia-ml.so"
    contents: dict[str, tuple[dict[str, bytes | str], str]] = {
        "libnvidia-ml1": (
            {f"{soname}.{driver}": library, f"{soname}.1": f"libnvidia-ml.so.{driver}"},
            "ldconfig",
        ),
        "nvidia-smi": ({"usr/bin/nvidia-smi": nvidia_smi(driver, CUDA[driver]).encode()}, "true"),
        "nvidia-kernel-dkms": (
            {f"usr/lib/modules/{KERNEL}/updates/dkms/nvidia.ko": module},
            f"depmod {KERNEL}",
        ),
    }
    return {
        name: package(folder, name, f"{driver}-1", files, postinst)
        for name, (files, postinst) in contents.items()
    }


def package(
    folder: Path, name: str, version: str, files: Mapping[str, bytes | str], postinst: str
) -> Path:
    """A .deb of these files; a text is a link's target."""
    tree = folder / f"{name}-{version}"
    for path, content in files.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
            place.chmod(0o755)
    _write(
        tree / "DEBIAN/control",
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: nobody <nobody@example.com>\nDescription: part of a fake driver\n",
        0o644,
    )
    _write(tree / "DEBIAN/postinst", f"#!/bin/sh\n{postinst} 2>/dev/null\n")
    deb = folder / f"{name}_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return deb


def install(host: BootedHost, *debs: Path) -> None:
    """By dpkg, in one run."""
    for deb in debs:
        shutil.copy(deb, host.tree / "root" / deb.name)
    done = host.run(f"dpkg -i {' '.join(deb.name for deb in debs)}")
    assert done.returncode == 0, done.stdout + done.stderr


def plant_toolkit(host: BootedHost, version: str) -> None:
    """What a plan looks at of a CUDA Toolkit; it compiles nothing."""
    root = host.tree / f"usr/local/cuda-{version}"
    for path in ("include/cuda_runtime.h", "include/cublas_v2.h", "include/cub/cub.cuh"):
        _write(root / path, "", 0o644)
    for path in ("lib64/libcudart.so", "lib64/libcublas.so", "lib64/stubs/libcuda.so"):
        _write(root / path, "", 0o644)
    words = f"Cuda compilation tools, release {version}, V{version}.61"
    _write(root / "bin/nvcc", f"#!/bin/sh\necho '{words}'\n")


def plant_compiler(host: BootedHost) -> None:
    """What a plan looks at of g++ 12; it compiles nothing."""
    _write(host.tree / "usr/bin/g++-12", "#!/bin/sh\necho 12.2.0\n")


def _compile(target: Path, source: str, macros: dict[str, str], *options: str) -> bytes:
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    subprocess.run(
        ["gcc", "-w", *options, *defines, "-x", "c", "-", "-o", target],
        input=source.encode(),
        check=True,
    )
    return target.read_bytes()


def _write(path: Path, text: str, mode: int = 0o755) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
