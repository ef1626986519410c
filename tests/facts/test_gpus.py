"""GPUs and driver: each source, and each way in which nvidia-smi fails."""

from __future__ import annotations

import os
import time

import pytest

from llamafleet.facts.host import Driver, DriverFile, Gpu, Package, PciGpu
from tests.facts.fakehost import FakeHost

UUID = "GPU-4b7e1c9a-0d52-9a1f-6c3e-5a1d2f3b4c5d"
RTX_4090 = f"0, NVIDIA GeForce RTX 4090, {UUID}, 00000000:01:00.0, 24564, 580.95.05, 8.9"
RTX_3060 = f"1, NVIDIA GeForce RTX 3060, {UUID}1, 00000000:C1:00.0, 12288, 580.95.05, 8.6"
BANNER = "| NVIDIA-SMI 580.95.05      Driver Version: 580.95.05      CUDA Version: 13.0     |"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running."
)
MISMATCH = (
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95"
)


def nvidia_smi(fake: FakeHost, *rows: str, banner: str = BANNER, status: int = 0) -> None:
    """An nvidia-smi that answers the query with `rows`, else with its banner."""
    text = "\n".join(rows)
    fake.program(
        "nvidia-smi",
        f"""case "$1" in
--query-gpu=*) cat <<'END'
{text}
END
exit {status} ;;
"") cat <<'END'
Tue Nov 24 10:00:00 2026
{banner}
END
;;
*) exit 2 ;;
esac""",
    )


def pci(fake: FakeHost, address: str, device: str, bound: str | None, **attributes: str) -> None:
    folder = fake.root / "sys/bus/pci/devices" / address
    values = {"vendor": "0x10de", "class": "0x030000", "device": device, **attributes}
    for name, value in values.items():
        fake.write(folder / name, value + "\n")
    if bound:
        (folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{bound}")


def test_none(fake: FakeHost) -> None:
    snapshot = fake.snapshot()
    assert snapshot.driver == Driver()
    assert (snapshot.gpus, snapshot.pci_gpus) == ((), ())


def test_one(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    nvidia_smi(fake, RTX_4090)
    pci(fake, "0000:01:00.0", "0x2684", "nvidia")
    snapshot = fake.snapshot()
    assert snapshot.gpus == (Gpu(0, "NVIDIA GeForce RTX 4090", UUID, "0000:01:00.0", "8.9", 24564),)
    assert snapshot.pci_gpus == (PciGpu("0000:01:00.0", "2684", "nvidia"),)
    assert snapshot.driver == Driver(smi="580.95.05", cuda="13.0", smi_state="ok")


def test_two_of_different_kind(fake: FakeHost) -> None:
    nvidia_smi(fake, RTX_4090, RTX_3060)
    gpus = fake.snapshot().gpus
    assert [gpu.compute_capability for gpu in gpus] == ["8.9", "8.6"]
    assert gpus[1].pci_address == "0000:c1:00.0"


def test_name_with_a_comma_and_memory_that_is_not_told(fake: FakeHost) -> None:
    nvidia_smi(fake, f"0, NVIDIA GB10, rev 2, {UUID}, 0000000F:01:00.0, [N/A], 580.95.05, 12.1")
    gpu = fake.snapshot().gpus[0]
    assert (gpu.name, gpu.vram_mib) == ("NVIDIA GB10, rev 2", 0)
    assert gpu.pci_address == "000f:01:00.0"


def test_banner_of_newer_drivers(fake: FakeHost) -> None:
    banner = "| NVIDIA-SMI 610.43.02    KMD Version: 610.43.02     CUDA UMD Version: 13.3     |"
    nvidia_smi(fake, RTX_4090, banner=banner)
    assert fake.snapshot().driver.cuda == "13.3"


@pytest.mark.parametrize(
    ("column", "mig"),
    [
        ("             Disabled", False),
        ("                  N/A", False),
        ("              Enabled", True),
        ("             Enabled*", True),
    ],
)
def test_banner_tells_of_mig(fake: FakeHost, column: str, mig: bool) -> None:
    """As in Project-HAMi/HAMi#1903; with * the change is pending."""
    banner = (
        "| NVIDIA-SMI 580.119.02       Driver Version: 580.119.02     CUDA Version: 13.0     |\n"
        "|   0  NVIDIA A800 80GB PCIe   Off |   00000000:01:00.0 Off |                    0 |\n"
        f"|                                  |                        |{column} |"
    )
    nvidia_smi(fake, RTX_4090, banner=banner)
    assert fake.snapshot().driver.mig is mig


def test_banner_without_cuda_version(fake: FakeHost) -> None:
    nvidia_smi(fake, RTX_4090, banner="| NVIDIA-SMI 390.157   Driver Version: 390.157 |")
    driver = fake.snapshot().driver
    assert (driver.cuda, driver.smi_state) == (None, "ok")


def test_old_nvidia_smi_without_compute_capability(fake: FakeHost) -> None:
    old = RTX_4090.replace("580.95.05", "470.256.02").removesuffix(", 8.9")
    fake.program(
        "nvidia-smi",
        f"""case "$1" in
*compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2 ;;
--query-gpu=*) echo '{old}' ;;
esac""",
    )
    snapshot = fake.snapshot()
    assert snapshot.gpus[0].compute_capability is None
    assert snapshot.driver.smi == "470.256.02"
    assert (snapshot.driver.smi_state, snapshot.driver.smi_error) == ("ok", "")


def test_corrupted_inforom_is_told_but_no_failure(fake: FakeHost) -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:01:00.0"
    nvidia_smi(fake, warning, RTX_4090, status=14)
    driver = fake.snapshot().driver
    assert (driver.smi_state, driver.smi_error) == ("ok", warning)


def test_one_gpu_lost(fake: FakeHost) -> None:
    lost = "Unable to determine the device handle for GPU0000:C1:00.0: Unknown Error"
    nvidia_smi(fake, RTX_4090, lost, status=15)
    snapshot = fake.snapshot()
    assert len(snapshot.gpus) == 1
    assert (snapshot.driver.smi_state, snapshot.driver.smi_error) == ("failed", lost)


@pytest.mark.parametrize(
    ("text", "status"),
    [(NO_DRIVER, 9), (MISMATCH, 18), ("No devices were found", 6), ("No devices were found", 0)],
)
def test_failure(fake: FakeHost, text: str, status: int) -> None:
    nvidia_smi(fake, text, status=status)
    snapshot = fake.snapshot()
    assert snapshot.gpus == ()
    assert snapshot.driver.smi_state == "failed"
    assert snapshot.driver.smi_error == "; ".join(text.splitlines())


@pytest.mark.parametrize("text", ["", "0, 1, 2", "<html>", RTX_4090.replace("GPU-", "")])
def test_garbage(fake: FakeHost, text: str) -> None:
    nvidia_smi(fake, text)
    snapshot = fake.snapshot()
    assert snapshot.gpus == ()
    assert snapshot.driver.smi_state == "garbage"
    assert snapshot.driver.smi_error == text


def test_output_that_looks_like_the_script_s_own(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.program("nvidia-smi", "printf '#end\\n@end\\n@begin x\\npci=a\\tb\\tc\\n@rc oops\\n'")
    snapshot = fake.snapshot()
    assert snapshot.pci_gpus == ()
    assert snapshot.driver.smi_state != "ok"


def test_program_that_can_not_run(fake: FakeHost) -> None:
    fake.program("nvidia-smi", "", interpreter="/nonexistent")
    assert fake.snapshot().driver.smi_state == "failed"


def test_output_without_line_end(fake: FakeHost) -> None:
    fake.program("nvidia-smi", f"printf '%s' '{RTX_4090}'")
    assert len(fake.snapshot().gpus) == 1


@pytest.mark.parametrize(
    "body",
    [
        "sleep 9",
        "exec sleep 9",
        "trap '' TERM HUP INT; while :; do sleep 1; done",
        # The killed program leaves a child that keeps the pipe open, as one stuck in the driver.
        "sleep 9 & wait",
        f"echo '{RTX_4090}'; sleep 9",
    ],
)
def test_hang(fake: FakeHost, body: str) -> None:
    fake.program("nvidia-smi", body)
    begin = time.monotonic()
    driver = fake.snapshot(smi_limit_s=1).driver
    assert 1 <= time.monotonic() - begin < 8
    assert driver.smi_state == "timeout"


def test_calls_share_one_limit(fake: FakeHost) -> None:
    """The query answers after 2 of 3 s; the banner gets the rest, not another 3 s."""
    fake.program("nvidia-smi", f'[ -n "$1" ] || exec sleep 9; sleep 2; echo "{RTX_4090}"')
    begin = time.monotonic()
    snapshot = fake.snapshot(smi_limit_s=3)
    assert time.monotonic() - begin < 4.9
    assert snapshot.driver.smi_state == "timeout"
    assert len(snapshot.gpus) == 1


def test_a_hanging_program_is_killed(fake: FakeHost) -> None:
    fake.program("nvidia-smi", f"echo $$ > {fake.folder}/pid; exec sleep 9")
    fake.snapshot(smi_limit_s=1)
    pid = int((fake.folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(20):
            os.kill(pid, 0)
            time.sleep(0.1)


def test_what_was_said_before_the_hang_is_kept(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.program("nvidia-smi", "echo 'GPU is lost'; exec sleep 9")
    assert fake.snapshot(smi_limit_s=1).driver.smi_error == "GPU is lost"


@pytest.mark.parametrize(
    "folder", ["usr/bin", "usr/local/nvidia/bin", "opt/nvidia/bin", "usr/lib/wsl/lib"]
)
def test_nvidia_smi_off_the_path(fake: FakeHost, folder: str) -> None:
    nvidia_smi(fake, RTX_4090)
    (fake.root / folder).mkdir(parents=True)
    (fake.bin / "nvidia-smi").rename(fake.root / folder / "nvidia-smi")
    assert fake.snapshot().driver.smi_state == "ok"


@pytest.mark.parametrize("bound", ["nouveau", "vfio-pci", None])
def test_card_without_driver(fake: FakeHost, bound: str | None) -> None:
    pci(fake, "0000:01:00.0", "0x2684", bound)
    snapshot = fake.snapshot()
    assert snapshot.pci_gpus == (PciGpu("0000:01:00.0", "2684", bound),)
    assert snapshot.driver.smi_state == "absent"


def test_only_nvidia_s_display_controllers_count(fake: FakeHost) -> None:
    pci(fake, "0000:00:02.0", "0x4680", "i915", vendor="0x8086")
    pci(fake, "0000:01:00.1", "0x22ba", "snd_hda_intel", **{"class": "0x040300"})
    pci(fake, "0000:41:00.0", "0x2330", "nvidia", **{"class": "0x030200"})
    assert [gpu.device_id for gpu in fake.snapshot().pci_gpus] == ["2330"]


def test_damaged_sysfs(fake: FakeHost) -> None:
    (fake.root / "sys/bus/pci/devices/0000:01:00.0").mkdir(parents=True)
    assert fake.snapshot().pci_gpus == ()


def test_driver_by_every_source(fake: FakeHost) -> None:
    """All four differ here, as after an update without reboot."""
    fake.write(fake.root / "sys/module/nvidia/version", "535.261.03\n")
    fake.program("modinfo", '[ "$2 $3" = "version nvidia" ] && echo 580.95.05')
    library = fake.write(fake.root / "usr/lib64/libnvidia-ml.so.580.82.07", "")
    (library.parent / "libnvidia-ml.so.1").symlink_to(library.name)
    fake.program("ldconfig", f"echo '	libnvidia-ml.so.1 (libc6,x86-64) => {library}'")
    fake.program(
        "dpkg-query",
        """[ "$1" = -S ] && echo "dpkg-query: no path found matching pattern $2" >&2 && exit 1
echo 'installed libnvidia-compute-570 570.195.03-0ubuntu1'""",
    )
    driver = fake.snapshot().driver
    assert driver == Driver(
        module="535.261.03",
        module_on_disk="580.95.05",
        library="580.82.07",
        library_file=DriverFile(str(library), "", None),
        package="570.195.03",
        packages=(Package("libnvidia-compute-570", "570.195.03-0ubuntu1"),),
        module_signer="",
    )


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Tue Jun  3 12:00:00 UTC 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.261.03  Release Build",
    ],
)
def test_module_by_proc(fake: FakeHost, line: str) -> None:
    fake.write(fake.root / "proc/driver/nvidia/version", line + "\nGCC version: gcc 12.2.0\n")
    assert fake.snapshot().driver.module == "535.261.03"


def test_module_of_debian_s_package(fake: FakeHost) -> None:
    fake.program("modinfo", '[ "$3" = nvidia-current ] && echo 535.261.03')
    assert fake.snapshot().driver.module_on_disk == "535.261.03"


def test_no_module_on_disk(fake: FakeHost) -> None:
    fake.program("modinfo", 'echo "modinfo: ERROR: Module nvidia not found." >&2; exit 1')
    assert fake.snapshot().driver.module_on_disk is None


@pytest.mark.parametrize("name", ["libnvidia-ml", "libcuda"])
def test_library_without_ldconfig(fake: FakeHost, name: str) -> None:
    folder = fake.root / "usr/lib/x86_64-linux-gnu"
    fake.write(folder / "nvidia/current" / f"{name}.so.535.261.03", "")
    (folder / f"{name}.so.1").symlink_to(f"nvidia/current/{name}.so.535.261.03")
    assert fake.snapshot().driver.library == "535.261.03"


def test_library_of_wsl_has_no_version(fake: FakeHost) -> None:
    fake.write(fake.root / "usr/lib/wsl/lib/libnvidia-ml.so.1", "")
    assert fake.snapshot().driver.library is None


def test_management_library_decides(fake: FakeHost) -> None:
    folder = fake.root / "usr/lib64"
    for name, version in (("libcuda", "535.1.1"), ("libnvidia-ml", "580.2.2")):
        fake.write(folder / f"{name}.so.{version}", "")
        (folder / f"{name}.so.1").symlink_to(f"{name}.so.{version}")
    fake.program(
        "ldconfig",
        f"echo 'libcuda.so.1 (libc6) => {folder}/libcuda.so.1'\n"
        f"echo 'libnvidia-ml.so.1 (libc6) => {folder}/libnvidia-ml.so.1'",
    )
    assert fake.snapshot().driver.library == "580.2.2"


@pytest.mark.parametrize(
    ("program", "line", "version"),
    [
        ("dpkg-query", "installed nvidia-driver 535.261.03-1~deb12u1", "535.261.03"),
        (
            "dpkg-query",
            "installed nvidia-driver-580-open 1:580.95.05-0ubuntu0.24.04.1",
            "580.95.05",
        ),
        ("dpkg-query", "config-files nvidia-driver-580 580.95.05-0ubuntu1", None),
        ("dpkg-query", "installed nvidia-driver-local-repo-ubuntu2404-580.95.05 1.0-1", None),
        ("rpm", "nvidia-driver 580.95.05", "580.95.05"),
        ("rpm", "xorg-x11-drv-nvidia 570.195.03", "570.195.03"),
        ("rpm", "nvidia-open-driver-G06-kmp-default 580.95.05_k6.4.0_150700.51", "580.95.05"),
        ("dpkg-query", "half-configured nvidia-driver-580 580.95.05-0ubuntu1", "580.95.05"),
        ("pacman", "nvidia-utils 580.95.05-1", "580.95.05"),
    ],
)
def test_package(fake: FakeHost, program: str, line: str, version: str | None) -> None:
    fake.program(program, f"echo '{line}'")
    assert fake.snapshot().driver.package == version


def test_newest_of_several_packages_by_number(fake: FakeHost) -> None:
    fake.program(
        "dpkg-query",
        "echo 'installed nvidia-driver-580 580.95.05-0ubuntu1'\n"
        "echo 'installed libnvidia-compute-570 570.86.15-0ubuntu1'\n"
        "echo 'installed libnvidia-compute-570-server 570.195.03-0ubuntu1'",
    )
    assert fake.snapshot().driver.package == "570.195.03"
