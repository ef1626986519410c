"""GPUs and driver: each source, and each way in which nvidia-smi fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

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


ERR_TABLE = """\
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |
|=========================================+========================+======================|
|   0  NVIDIA GeForce RTX 4090        On  |   00000000:01:00.0 Off |                  {ecc} |
|{fan}   68C    P2             99W /  130W |       1MiB /  20475MiB |     93%{mode:>13} |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
|    0   N/A  N/A            1234      C   ERR!                                      1MiB |
"""
"""In the form of utkuozdemir/nvidia_gpu_exporter#393."""


def table(fan: str = " 30%", ecc: str = "Off", mode: str = "Default") -> str:
    return ERR_TABLE.format(fan=fan, ecc=ecc, mode=mode)


@pytest.mark.parametrize(
    ("banner", "fault"),
    [
        (
            table("ERR!"),
            "nvidia-smi's table: ERR! 68C P2 99W / 130W | 1MiB / 20475MiB | 93% Default",
        ),
        (table(ecc="  2"), "uncorrected ECC errors since the driver was loaded: 2"),
        (table(), ""),
        (table(ecc="  0"), ""),
        (table("N/A "), ""),
    ],
)
def test_words_in_the_table_in_place_of_figures(fake: FakeHost, banner: str, fault: str) -> None:
    nvidia_smi(fake, RTX_4090, banner=banner)
    assert fake.snapshot().gpus[0].faults == ((fault,) if fault else ())


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        ("Default", "Default"),
        ("E. Process", "Exclusive_Process"),
        ("E. Thread", "Exclusive_Thread"),
        ("Prohibited", "Prohibited"),
    ],
)
def test_compute_mode_by_the_table(fake: FakeHost, word: str, mode: str) -> None:
    nvidia_smi(fake, RTX_4090, banner=table(mode=word))
    assert fake.snapshot().gpus[0].compute_mode == mode


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (RTX_4090.replace("24564", "[GPU requires reset]"), "memory.total: [GPU requires reset]"),
        (RTX_4090.replace("8.9", "[Unknown Error]"), "compute_cap: [Unknown Error]"),
        (RTX_4090.replace("24564", "[GPU is lost]"), "memory.total: [GPU is lost]"),
        (RTX_4090.replace("24564", "[N/A]"), ""),
        (RTX_4090.replace("8.9", "[Not Supported]"), ""),
    ],
)
def test_words_in_the_query_in_place_of_figures(fake: FakeHost, row: str, fault: str) -> None:
    nvidia_smi(fake, row)
    snapshot = fake.snapshot()
    assert snapshot.driver.smi_state == "ok"
    assert snapshot.gpus[0].faults == ((fault,) if fault else ())


def test_a_row_without_a_uuid_is_a_complaint(fake: FakeHost) -> None:
    row = "1, [Unknown Error], [Unknown Error], 00000000:C1:00.0, [Unknown Error], 580.95.05, 8.6"
    nvidia_smi(fake, RTX_4090, row)
    snapshot = fake.snapshot()
    assert len(snapshot.gpus) == 1 and snapshot.driver.complaints == (row,)


@pytest.mark.parametrize("status", [0, 15, 255])
def test_a_complaint_whatever_the_exit_status(fake: FakeHost, status: int) -> None:
    lost = "Unable to determine the device handle for GPU0000:C1:00.0: Unknown Error"
    nvidia_smi(fake, RTX_4090, lost, status=status)
    assert fake.snapshot().driver.complaints == (lost,)


DETAILS = """\
==============NVSMI LOG==============

Driver Version                            : 580.95.05
Attached GPUs                             : 2
GPU 00000000:01:00.0
    Product Name                          : NVIDIA GeForce RTX 4090
    Compute Mode                          : Default
    MIG Mode
        Current                           : N/A
        Pending                           : N/A
    GPU Reset Status
        Reset Required                    : Requested functionality has been deprecated
    GPU Recovery Action                   : None
    ECC Mode
        Current                           : Enabled
        Pending                           : Enabled
    Remapped Rows
        Correctable Error                 : 0
        Uncorrectable Error               : 1
        Pending                           : Yes
        Remapping Failure Occurred        : No
    Fabric
        State                             : N/A
        Status                            : N/A
GPU 00000000:C1:00.0
    Compute Mode                          : Prohibited
    MIG Mode
        Current                           : Disabled
    GPU Recovery Action                   : Drain and Reset
    Temperature
        GPU Current Temp                  : Unknown Error
    Remapped Rows
        Pending                           : No
        Remapping Failure Occurred        : Yes
    Fabric
        State                             : Completed
        Status                            : Success
"""
"""The lines of nvidia-smi -q that a verdict looks at, as in Project-HAMi/HAMi#1422."""


def detailed(fake: FakeHost, details: str, listed: str = "", *rows: str) -> None:
    fake.program(
        "nvidia-smi",
        f"""case "$1" in
--query-gpu=*) cat <<'END'
{chr(10).join(rows or (RTX_4090, RTX_3060))}
END
;;
-q) cat <<'END'
{details}
END
;;
-L) cat <<'END'
{listed}
END
;;
*) echo '{BANNER}' ;;
esac""",
    )


def test_details(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    detailed(fake, DETAILS)
    well, ill = fake.snapshot().gpus
    assert (well.faults, well.warnings) == ((), ("Remapped Rows Pending: Yes",))
    assert (well.compute_mode, well.recovery, well.fabric) == ("Default", "None", "")
    assert ill.faults == (
        "Temperature GPU Current Temp: Unknown Error",
        "Remapped Rows Remapping Failure Occurred: Yes",
    )
    assert ill.compute_mode == "Prohibited"
    assert (ill.recovery, ill.fabric) == ("Drain and Reset", "Completed, Success")


def test_a_card_that_is_to_be_drained(fake: FakeHost, shell: str) -> None:
    """Before the driver has a recovery action (570 or so) it says this."""
    fake.shell = shell
    recommended = """\
GPU 00000000:01:00.0
    GPU Reset Status
        Reset Required                    : No
        Drain and Reset Recommended       : Yes
"""
    detailed(fake, recommended, "", RTX_4090)
    (gpu,) = fake.snapshot().gpus
    assert gpu.faults == ("GPU Reset Status Drain and Reset Recommended: Yes",)


def test_the_parts_of_a_card_for_virtual_machines_are_no_cards(fake: FakeHost, shell: str) -> None:
    """An SR-IOV host of vGPUs has up to 32 of them, bound to nvidia, and nvidia-smi lists none."""
    fake.shell = shell
    pci(fake, "0000:41:00.0", "0x2235", "nvidia")
    pci(fake, "0000:41:00.4", "0x2235", "nvidia")
    (fake.root / "sys/bus/pci/devices/0000:41:00.4/physfn").symlink_to("../0000:41:00.0")
    assert [card.address for card in fake.snapshot().pci_gpus] == ["0000:41:00.0"]


H200 = (Path(__file__).parent / "data/smi-q-h200-580.txt").read_text("utf-8")
"""nvidia-smi -q on a virtual machine with two H200s on NVSwitch, driver 580.159.04, 2026-11-26;
UUIDs and serial numbers replaced."""


def test_details_of_a_healthy_host(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    rows = (
        f"0, NVIDIA H200, {UUID}, 00000000:00:06.0, 143771, 580.159.04, 9.0",
        f"1, NVIDIA H200, {UUID}1, 00000000:00:07.0, 143771, 580.159.04, 9.0",
    )
    detailed(fake, H200, "", *rows)
    for gpu in fake.snapshot().gpus:
        assert (gpu.faults, gpu.warnings, gpu.parent, gpu.divided) == ((), (), "", False)
        assert (gpu.compute_mode, gpu.recovery) == ("Default", "None")
        assert gpu.fabric == "Completed, Success"


def test_details_of_many_gpus_are_bounded(fake: FakeHost) -> None:
    """Of each GPU there are 250 lines."""
    detailed(fake, DETAILS * 16 + "    Minor Number                          : 7\n" * 5000)
    lines = fake.lines()
    begin = lines.index("@begin smi_details")
    assert lines.index("@end", begin) - begin < 1000


def test_details_that_hang_are_a_hang(fake: FakeHost) -> None:
    fake.program("nvidia-smi", f"[ \"$1\" != -q ] || exec sleep 9; echo '{RTX_4090}'")
    assert fake.snapshot(smi_limit_s=1).driver.smi_state == "timeout"


LISTED = f"""\
GPU 0: NVIDIA GeForce RTX 4090 (UUID: {UUID})
GPU 1: NVIDIA GeForce RTX 3060 (UUID: {UUID}1)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1g.5gb      Device  1: (UUID: MIG-GPU-4b7e1c9a/9/0)
"""
DIVIDED = DETAILS.replace("Current                           : Disabled", "Current     : Enabled")


def test_instances_stand_in_the_place_of_a_divided_gpu(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    detailed(fake, DIVIDED, LISTED)
    whole, first, second = fake.snapshot().gpus
    assert (whole.uuid, whole.parent) == (UUID, "")
    assert first.uuid == "MIG-c7384736-a75d-5afc-978f-d2f1294409fd"
    assert second.uuid == "MIG-GPU-4b7e1c9a/9/0"
    for one in (first, second):
        assert (one.parent, one.pci_address, one.index) == (f"{UUID}1", "0000:c1:00.0", 1)
        assert one.faults and one.recovery == "Drain and Reset"
    assert (first.name, first.vram_mib) == ("NVIDIA GeForce RTX 3060 MIG 3g.20gb", 20 * 900)


def test_memory_of_instances_by_the_table(fake: FakeHost) -> None:
    """As in XuehaiPan/nvitop pull 8."""
    detailed(fake, DIVIDED, LISTED)
    body = (fake.bin / "nvidia-smi").read_text()
    devices = "|  1    9   0   1  |      7MiB /  4864MiB   | 14      0 |  1   0    0    0    0 |"
    fake.program("nvidia-smi", body.replace(f"*) echo '{BANNER}' ;;", f"*) echo '{devices}' ;;"))
    assert [gpu.vram_mib for gpu in fake.snapshot().gpus] == [24564, 18000, 4864]


def test_a_divided_gpu_without_instances(fake: FakeHost) -> None:
    bare = "\n".join(line for line in LISTED.splitlines() if "MIG" not in line)
    detailed(fake, DIVIDED, bare)
    assert [gpu.divided for gpu in fake.snapshot().gpus] == [False, True]


def test_the_table_s_word_for_no_instances(fake: FakeHost) -> None:
    enabled = table().replace("                  N/A |", "              Enabled |")
    nvidia_smi(fake, RTX_4090, banner=f"{enabled}\n|  No MIG devices found               |")
    assert [gpu.divided for gpu in fake.snapshot().gpus] == [True]


def test_instances_are_not_asked_for_where_there_are_none(fake: FakeHost) -> None:
    detailed(fake, DETAILS, LISTED)
    assert [gpu.parent for gpu in fake.snapshot().gpus] == ["", ""]


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
        "sleep 60",
        "exec sleep 60",
        "trap '' TERM HUP INT; while :; do sleep 1; done",
        # The killed program leaves a child that keeps the pipe open, as one stuck in the driver.
        "sleep 60 & wait",
        f"echo '{RTX_4090}'; sleep 60",
    ],
)
def test_hang(fake: FakeHost, body: str) -> None:
    fake.program("nvidia-smi", body)
    begin = time.monotonic()
    driver = fake.snapshot(smi_limit_s=1).driver
    assert 1 <= time.monotonic() - begin < 40
    assert driver.smi_state == "timeout"


def test_calls_share_one_limit(fake: FakeHost) -> None:
    """The query answers after 2 of 3 s; the banner gets the rest, not another 3 s."""
    fake.program("nvidia-smi", f'[ -n "$1" ] || exec sleep 60; sleep 2; echo "{RTX_4090}"')
    for _ in range(5):  # All else takes its time too: seconds, on a busy machine.
        begin = time.monotonic()
        snapshot = fake.snapshot(smi_limit_s=3)
        took = time.monotonic() - begin
        if took < 4.9 and snapshot.gpus:
            break
    assert took < 4.9
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


@pytest.mark.parametrize(
    "attributes", [{"revision": "0xff"}, {"class": "0xffffff"}, {"vendor": "0xffff"}]
)
def test_a_card_that_does_not_answer(fake: FakeHost, attributes: dict[str, str]) -> None:
    pci(fake, "0000:01:00.0", "0x2684", "nvidia", **attributes)
    unreadable = "class" not in attributes
    assert fake.snapshot().pci_gpus == (
        PciGpu("0000:01:00.0", "2684", "nvidia", unreadable=unreadable),
    )


@pytest.mark.parametrize(
    ("config", "unreadable"), [(b"\xff" * 64, True), (b"\xde\x10\x84\x26" * 16, False)]
)
def test_configuration_space(fake: FakeHost, shell: str, config: bytes, unreadable: bool) -> None:
    fake.shell = shell
    pci(fake, "0000:01:00.0", "0x2684", "nvidia", revision="0xa1")
    fake.write(fake.root / "sys/bus/pci/devices/0000:01:00.0/config", config)
    assert fake.snapshot().pci_gpus[0].unreadable is unreadable


def test_a_bridge_that_does_not_answer_is_no_card(fake: FakeHost) -> None:
    pci(fake, "0000:02:00.0", "0xffff", "pcieport", vendor="0xffff", **{"class": "0xffffff"})
    assert fake.snapshot().pci_gpus == ()


def node(fake: FakeHost, address: str, minor: int, there: bool, excluded: str = "No") -> None:
    text = f"Model: \t\t NVIDIA\nDevice Minor: \t {minor}\nGPU Excluded:\t {excluded}\n"
    fake.write(fake.root / f"proc/driver/nvidia/gpus/{address}/information", text)
    if there:
        fake.write(fake.root / f"dev/nvidia{minor}", "")


def test_which_cards_were_given_to_a_container(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    for address in ("0000:01:00.0", "0000:41:00.0", "0000:81:00.0"):
        pci(fake, address, "0x2684", "nvidia")
    node(fake, "0000:01:00.0", 0, there=True)
    node(fake, "0000:41:00.0", 10, there=False)
    fake.write(fake.root / "dev/nvidiactl", "")
    assert [card.given for card in fake.snapshot().pci_gpus] == [True, False, False]


def test_no_files_of_the_driver_tell_nothing_of_nodes(fake: FakeHost) -> None:
    pci(fake, "0000:01:00.0", "0x2684", "nvidia")
    assert fake.snapshot().pci_gpus[0].given is None


def test_a_card_that_the_driver_leaves_out(fake: FakeHost) -> None:
    pci(fake, "0000:01:00.0", "0x2684", "nvidia")
    node(fake, "0000:01:00.0", 0, there=True, excluded="Yes")
    assert fake.snapshot().pci_gpus[0].excluded


def test_nvswitches_and_their_manager(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    for address in ("0000:05:00.0", "0000:06:00.0"):
        pci(fake, address, "0x22a3", "nvidia-nvswitch", **{"class": "0x068000"})
    (fake.root / "run/systemd/system").mkdir(parents=True)
    state = "LoadState=loaded\nActiveState=failed"
    fake.program(
        "systemctl", f'case "$*" in *fabricmanager*) printf "{state}\\n" ;; *) exit 1 ;; esac'
    )
    driver = fake.snapshot().driver
    assert (driver.switches, driver.fabric_manager) == (2, "failed")


@pytest.mark.parametrize(
    ("version", "license", "opened"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05", "NVIDIA", True),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05", "Dual MIT/GPL", False),
        ("", "Dual MIT/GPL", True),
        ("", "NVIDIA", False),
        ("", "", None),
    ],
)
def test_which_kind_of_module(
    fake: FakeHost, version: str, license: str, opened: bool | None
) -> None:
    if version:
        fake.write(fake.root / "proc/driver/nvidia/version", f"{version}\n")
    fake.program("modinfo", f'[ "$2" = license ] && echo "{license}"')
    assert fake.snapshot().driver.open_module is opened


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
