"""What the script finds of the driver beside its version: kernels, signature, log, packages."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import pytest

from llamafleet.facts.host import Package
from tests.facts.fakehost import FakeHost
from tests.facts.test_gpus import pci

RUNNING = platform.release()
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

KERNEL_LOG = """\
[    1.000000] Linux version 6.16.3-76061603-generic
[   12.259769] NVRM: API mismatch: the client has the version 515.48.07, but
               NVRM: this kernel module has the version 510.73.05.  Please
               NVRM: make sure that this kernel module and all NVIDIA driver
               NVRM: components have the same version.
[   20.000000] NVRM: Xid (PCI:0000:06:00): 79, pid=1, GPU has fallen off the bus.
[   21.000000] usb 1-1: new high-speed USB device
[   22.000000] Loading of module with unavailable key is rejected
"""
"""Lines of saharmor/dalle-playground#104 and linux-surface/linux-surface#906 among others."""

FOUND = [
    "[   12.259769] NVRM: API mismatch: the client has the version 515.48.07, but",
    "               NVRM: this kernel module has the version 510.73.05.  Please",
    "[   20.000000] NVRM: Xid (PCI:0000:06:00): 79, pid=1, GPU has fallen off the bus.",
    "[   22.000000] Loading of module with unavailable key is rejected",
]


def kernel(fake: FakeHost, name: str, module: str | None = None, boots: bool = True) -> Path:
    """A kernel on disk; `module`: path of the driver's module below its folder."""
    folder = fake.root / "lib/modules" / name
    folder.mkdir(parents=True)
    if boots:
        fake.write(fake.root / "boot" / f"vmlinuz-{name}", "")
    if module:
        fake.write(folder / module, "")
    return folder


def test_no_kernel_on_disk(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    driver = fake.snapshot().driver
    assert (driver.next_kernel, driver.module_next) == (None, None)
    assert (driver.secure_boot, driver.kernel_log, driver.dkms) == (None, None, ())
    assert not driver.nouveau and driver.module_signer is None


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.1.0-9-amd64", "6.1.0-25-amd64"),
        ("6.8.0-45-generic", "6.11.0-9-generic"),
        ("5.14.0-427.el9.x86_64", "5.14.0-427.13.1.el9_4.x86_64"),
        ("6.12.0-rc7-amd64", "6.12.0-1-amd64"),
        ("6.10.3-200.fc40.x86_64", "6.10.3-201.fc40.x86_64"),
        ("6.4.0-150600.21-default", "6.4.0-150700.51-default"),
    ],
)
def test_the_newest_kernel_boots_next(fake: FakeHost, shell: str, older: str, newer: str) -> None:
    fake.shell = shell
    kernel(fake, newer)
    kernel(fake, older, "updates/dkms/nvidia.ko.zst")
    driver = fake.snapshot().driver
    assert (driver.next_kernel, driver.module_next) == (newer, None)


def test_a_kernel_without_image_does_not_boot(fake: FakeHost) -> None:
    kernel(fake, "6.1.0-25-amd64", boots=False)
    kernel(fake, "6.1.0-9-amd64")
    assert fake.snapshot().driver.next_kernel == "6.1.0-9-amd64"


def test_debugging_kernels_do_not_boot_by_themselves(fake: FakeHost) -> None:
    kernel(fake, "5.14.0-427.el9.x86_64")
    kernel(fake, "5.14.0-427.el9.x86_64+debug")
    assert fake.snapshot().driver.next_kernel == "5.14.0-427.el9.x86_64"


def test_an_image_in_the_kernel_s_own_folder(fake: FakeHost) -> None:
    folder = kernel(fake, "6.12.8-arch1-1", boots=False)
    fake.write(folder / "vmlinuz", "")
    assert fake.snapshot().driver.next_kernel == "6.12.8-arch1-1"


def test_without_any_image_the_running_kernel_counts(fake: FakeHost) -> None:
    kernel(fake, "99.0.0-1-amd64", boots=False)
    kernel(fake, RUNNING, boots=False)
    assert fake.snapshot().driver.next_kernel == RUNNING


def test_version_of_the_module_for_each_kernel(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    kernel(fake, "6.1.0-25-amd64")
    kernel(fake, "6.1.0-9-amd64")
    fake.program(
        "modinfo",
        """case "$*" in
'-k 6.1.0-25-amd64 -F version nvidia-current') echo 535.261.03 ;;
'-k 6.1.0-9-amd64 -F version nvidia') echo 535.183.01 ;;
*) exit 1 ;;
esac""",
    )
    assert fake.snapshot().driver.module_next == "535.261.03"


@pytest.mark.parametrize(
    ("module", "version"),
    [
        ("updates/dkms/nvidia.ko.zst", ""),
        ("updates/dkms/nvidia-current.ko", ""),
        ("extra/nvidia/nvidia.ko.xz", ""),
        ("extra/drivers/video/nvidia/nvidia.ko.xz", ""),
        ("kernel/nvidia-580/nvidia.ko", ""),
        ("kernel/drivers/video/nvidia.ko", ""),
        ("updates/dkms/nvidia-uvm.ko.zst", None),
        ("kernel/drivers/gpu/drm/nouveau/nouveau.ko", None),
        (None, None),
    ],
)
def test_the_module_s_file_where_modinfo_is_not_there(
    fake: FakeHost, module: str | None, version: str | None
) -> None:
    kernel(fake, "6.8.0-45-generic", module)
    assert fake.snapshot().driver.module_next == version


def test_many_kernels_are_bounded(fake: FakeHost) -> None:
    for number in range(30):
        kernel(fake, f"6.1.0-{number}-amd64")
    calls = fake.folder / "calls"
    fake.program("modinfo", f'echo "$*" >> {calls}; exit 1')
    rows = [line for line in fake.lines() if line.startswith("kernel_module=")]
    assert 1 < len(rows) <= 8
    assert len(calls.read_text().splitlines()) <= 20


def test_signer(fake: FakeHost) -> None:
    fake.program(
        "modinfo",
        """case "$*" in
'-F version nvidia') echo 580.95.05 ;;
'-F signer nvidia') echo 'DKMS module signing key' ;;
*) exit 1 ;;
esac""",
    )
    driver = fake.snapshot().driver
    assert (driver.module_on_disk, driver.module_signer) == ("580.95.05", "DKMS module signing key")


def test_unsigned(fake: FakeHost) -> None:
    fake.program("modinfo", '[ "$*" = "-F version nvidia" ] && echo 580.95.05')
    assert fake.snapshot().driver.module_signer == ""


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("SecureBoot enabled", True),
        ("SecureBoot disabled", False),
        ("SecureBoot disabled\nPlatform is in Setup Mode", False),
        ("SecureBoot enabled\nSecureBoot validation is disabled in shim", False),
        ("EFI variables are not supported on this system", None),
    ],
)
def test_secure_boot_by_mokutil(fake: FakeHost, shell: str, said: str, state: bool | None) -> None:
    fake.shell = shell
    fake.program("mokutil", f"echo '{said}'")
    assert fake.snapshot().driver.secure_boot is state


@pytest.mark.parametrize(("value", "state"), [(b"\1", True), (b"\0", False)])
def test_secure_boot_by_the_firmware_s_variable(
    fake: FakeHost, shell: str, value: bytes, state: bool
) -> None:
    fake.shell = shell
    fake.write(fake.root / SECURE_BOOT, b"\x06\0\0\0" + value)
    assert fake.snapshot().driver.secure_boot is state


def test_nouveau(fake: FakeHost) -> None:
    (fake.root / "sys/module/nouveau").mkdir(parents=True)
    assert fake.snapshot().driver.nouveau


def test_kernel_log(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.write(fake.folder / "log", KERNEL_LOG)
    fake.program("dmesg", f"cat {fake.folder}/log")
    fake.program("journalctl", "echo 'NVRM: Xid (PCI:0000:01:00): 62, not asked for'")
    assert list(fake.snapshot().driver.kernel_log or ()) == FOUND


def test_kernel_log_without_any_line_about_the_driver(fake: FakeHost) -> None:
    fake.program("dmesg", "echo '[    1.000000] Linux version'")
    assert fake.snapshot().driver.kernel_log == ()


def test_journal_where_the_buffer_may_not_be_read(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.write(fake.folder / "log", KERNEL_LOG)
    fake.program("dmesg", "echo 'dmesg: read kernel buffer failed: Not permitted' >&2; exit 1")
    fake.program("journalctl", f'[ "$1 $2" = "-k -b" ] && cat {fake.folder}/log')
    assert list(fake.snapshot().driver.kernel_log or ()) == FOUND


def test_log_that_may_not_be_read(fake: FakeHost) -> None:
    fake.program("dmesg", "exit 1")
    fake.program("journalctl", "echo 'No journal files were opened' >&2; exit 1")
    assert fake.snapshot().driver.kernel_log is None


def repeated(times: int, line: str) -> str:
    return f'n=0; while [ $n -lt {times} ]; do n=$((n + 1)); echo "{line}"; done'


def test_the_first_and_the_last_lines_of_a_kind(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    line = "NVRM: Xid (PCI:0000:01:00): 62, number $n"
    fake.program("dmesg", repeated(3000, line))
    log = fake.snapshot().driver.kernel_log
    numbers = [int(line.rpartition(" ")[2]) for line in log or ()]
    assert numbers == [1, 2, 3, 4, 5, 6, 2995, 2996, 2997, 2998, 2999, 3000]


FOLLOWING = "NVRM: GPU0 rpcSendMessage failed: [NV_ERR_GPU_IS_LOST] (0x0000000f) number $n"


def test_what_follows_a_fault_does_not_push_it_out(fake: FakeHost, shell: str) -> None:
    """Thousands of lines, as in NVIDIA/open-gpu-kernel-modules#979."""
    fake.shell = shell
    lost = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    harmless = "NVRM: Xid (PCI:0000:02:00): 13, Graphics Exception, number $n"
    script = f"echo '{lost}'; {repeated(5000, FOLLOWING)}; {repeated(500, harmless)}"
    fake.program("dmesg", script)
    log = fake.snapshot().driver.kernel_log or ()
    assert log[0] == lost and len(log) < 20


@pytest.mark.parametrize(
    "line",
    [
        "NVRM: This is a 64-bit BAR mapped above 4GB by the system",
        "nvidia: disagrees about version of symbol module_layout",
        "nvidia: version magic '6.8.0-87-generic SMP ' should be '6.8.0-88-generic SMP '",
        "nvidia: Unknown symbol drm_gem_object_free (err -2)",
    ],
)
def test_why_a_module_does_not_start_is_picked(fake: FakeHost, shell: str, line: str) -> None:
    fake.shell = shell
    fake.write(fake.folder / "log", f"usb 1-1: new device\n{line}\n")
    fake.program("dmesg", f"cat {fake.folder}/log")
    assert fake.snapshot().driver.kernel_log == (line,)


@pytest.mark.parametrize("noise", [13, 119])
def test_one_error_amid_thousands_of_another_card(fake: FakeHost, shell: str, noise: int) -> None:
    """Neither a program's Xids nor a card's that hangs hide it, nor what came after it."""
    fake.shell = shell
    for address in ("0000:01:00.0", "0000:41:00.0"):
        folder = fake.root / "sys/bus/pci/devices" / address
        for name, value in {"vendor": "0x10de", "class": "0x030200", "device": "0x2330"}.items():
            fake.write(folder / name, value + "\n")
    lost = "NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus."
    again = "nvidia-nvlink: Nvlink Core is being initialized, major device number 236"
    other = repeated(9000, f"NVRM: Xid (PCI:0000:01:00): {noise}, number $n")
    fake.program("dmesg", f"{other}; echo '{lost}'; {other}; echo '{again}'; {other}")
    log = fake.snapshot().driver.kernel_log or ()
    assert lost in log and log.index(again) > log.index(lost)


def test_every_card_has_its_window(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    for place in ("0000:01:00.0", "0000:41:00.0"):
        pci(fake, place, "0x2684", "nvidia")
    busy = "NVRM: Xid (PCI:0000:01:00): 119, number $n"
    once = "NVRM: Xid (PCI:0000:41:00): 119, pid=1, Timeout"
    fake.program("dmesg", f"{repeated(300, busy)}; echo '{once}'; {repeated(300, busy)}")
    assert once in (fake.snapshot().driver.kernel_log or ())


def test_a_failure_that_is_said_again_and_again_leaves_room(fake: FakeHost, shell: str) -> None:
    """As in NVIDIA/gpu-operator#1146."""
    fake.shell = shell
    lost = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    line = "NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x24:0x72:$n)"
    fake.program("dmesg", f"echo '{lost}'; {repeated(100, line)}")
    log = fake.snapshot().driver.kernel_log or ()
    assert log[0] == lost and log[-1] == line.replace("$n", "100") and len(log) == 13


def test_a_log_of_several_lines_a_message_is_kept_whole(fake: FakeHost, shell: str) -> None:
    """As in negativo17/nvidia-driver#158, after which the card is said not to start."""
    fake.shell = shell
    fake.write(fake.folder / "log", f"[    0.0] Linux version 6\n{REFUSED}")
    fake.program("dmesg", f"cat {fake.folder}/log")
    told = [line.strip() for line in fake.snapshot().driver.kernel_log or ()]
    whole = [line.strip() for line in REFUSED.splitlines()]
    assert told == [*whole[:4], *whole[8:]]


REFUSED = """\
[    9.1] NVRM: The NVIDIA GPU 0000:09:00.0 (PCI ID: 10de:1d01)
              NVRM: installed in this system is not supported by open
              NVRM: nvidia.ko because it does not include the required GPU
              NVRM: System Processor (GSP).
              NVRM: Please see the 'Open Linux Kernel Modules' and 'GSP
              NVRM: Firmware' sections in the driver README, available on
              NVRM: the Linux graphics driver download page at
              NVRM: www.nvidia.com.
[    9.2] nvidia 0000:09:00.0: probe with driver nvidia failed with error -1
[    9.3] NVRM: The NVIDIA probe routine failed for 1 device(s).
[    9.4] NVRM: None of the NVIDIA devices were initialized.
"""


def test_a_buffer_that_has_run_over_is_filled_up_from_the_journal(
    fake: FakeHost, shell: str
) -> None:
    fake.shell = shell
    fake.program("dmesg", "echo 'NVRM: GPU0 rpcSendMessage failed'")
    cause = "[ 12.3] host kernel: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    fake.program("journalctl", f"echo '{cause}'")
    assert fake.snapshot().driver.kernel_log == (cause,)


def test_a_buffer_that_has_run_over_and_no_journal(fake: FakeHost) -> None:
    fake.program("dmesg", "echo 'usb 1-1: new device'")
    fake.program("journalctl", "echo 'No journal files were opened' >&2; exit 1")
    assert fake.snapshot().driver.kernel_log == ()


@pytest.mark.parametrize("program", ["dmesg", "journalctl"])
def test_a_log_that_hangs(fake: FakeHost, program: str) -> None:
    fake.program("dmesg", "exit 1")
    (fake.bin / program).unlink(missing_ok=True)
    fake.program(program, "exec sleep 600")
    begin = time.monotonic()
    assert fake.snapshot().driver.kernel_log is None
    assert time.monotonic() - begin < 60


def test_uptime(fake: FakeHost) -> None:
    assert fake.snapshot().uptime_s is None
    fake.write(fake.root / "proc/uptime", "350735.47 234388.90\n")
    assert fake.snapshot().uptime_s == 350735


def test_dkms(fake: FakeHost) -> None:
    line = "nvidia/580.95.05, 6.8.0-45-generic, x86_64: installed"
    fake.program("dkms", f"echo '{line}'; echo 'zfs/2.2.2, 6.8.0-45-generic, x86_64: installed'")
    assert fake.snapshot().driver.dkms == ()
    (fake.root / "var/lib/dkms/nvidia").mkdir(parents=True)
    assert fake.snapshot().driver.dkms == (line,)


def test_a_dkms_that_hangs(fake: FakeHost) -> None:
    (fake.root / "var/lib/dkms/nvidia").mkdir(parents=True)
    fake.program("dkms", "exec sleep 600")
    begin = time.monotonic()
    assert fake.snapshot().driver.dkms == ()
    assert time.monotonic() - begin < 60


def test_packages(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.program(
        "dpkg-query",
        """cat <<'END'
installed libnvidia-compute-580 580.95.05-0ubuntu0.24.04.1
half-configured nvidia-dkms-580 580.95.05-0ubuntu0.24.04.1
unpacked nvidia-utils-580 580.95.05-0ubuntu0.24.04.1
triggers-pending nvidia-smi 580.95.05-1
config-files nvidia-utils-570 570.195.03-0ubuntu1
installed linux-modules-nvidia-580-generic 6.8.0-45.45
not-installed nvidia-driver
END""",
    )
    packages = fake.snapshot().driver.packages
    assert packages == (
        Package("libnvidia-compute-580", "580.95.05-0ubuntu0.24.04.1"),
        Package("nvidia-dkms-580", "580.95.05-0ubuntu0.24.04.1", "half-configured"),
        Package("nvidia-utils-580", "580.95.05-0ubuntu0.24.04.1", "unpacked"),
        Package("nvidia-smi", "580.95.05-1"),
        Package("linux-modules-nvidia-580-generic", "6.8.0-45.45"),
    )
    assert [package.driver for package in packages] == ["580.95.05"] * 4 + [None]


def test_packages_are_bounded(fake: FakeHost) -> None:
    fake.program(
        "rpm", 'n=0; while [ $n -lt 200 ]; do n=$((n + 1)); echo "kmod-nvidia-$n 580.1"; done'
    )
    assert len(fake.snapshot().driver.packages) == 60


UBUNTU_590 = """\
installed libnvidia-compute 595.71.05-1ubuntu1
installed libnvidia-compute 595.71.05-1ubuntu1
installed nvidia-dkms 595.71.05-1ubuntu1
installed nvidia-driver-pinning-595 595.71.05-1
installed nvidia-kernel-common 595.71.05-1ubuntu1
installed nvidia-openjdk-8-jre 9.+8u372-ga-1
"""
"""The driver for compute alone as NVIDIA packages it, and the library for i386 beside it."""

DPKG_QUERY = """
while read -r state name version; do
    for pattern in "$@"; do
        case $name in $pattern) echo "$state $name $version" && break ;; esac
    done
done <{file}
"""
"""Answers with what it is asked for."""


def test_names_without_a_branch(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    file = fake.write(fake.folder / "packages", UBUNTU_590)
    fake.program("dpkg-query", DPKG_QUERY.format(file=file))
    driver = fake.snapshot().driver
    version = "595.71.05-1ubuntu1"
    assert driver.packages == (
        Package("libnvidia-compute", version),
        Package("nvidia-dkms", version),
        Package("nvidia-kernel-common", version),
    )
    assert driver.package == "595.71.05"


def test_pacman_takes_no_patterns(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    said = "nvtop 3.2.0-1\nnvidia-580xx-utils 580.119.02-1\nnvidia-580xx-dkms 580.119.02-1\n"
    fake.program("pacman", f'[ "$*" = -Q ] && printf "{said}"')
    assert fake.snapshot().driver.packages == (
        Package("nvidia-580xx-utils", "580.119.02-1"),
        Package("nvidia-580xx-dkms", "580.119.02-1"),
    )
    assert fake.snapshot().driver.package == "580.119.02"
