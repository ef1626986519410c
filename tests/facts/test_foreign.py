"""What the script finds of files that no package brought, and of hosts that are no plain ones."""

from __future__ import annotations

import platform
import time

import pytest

from llamafleet.facts.host import DriverFile
from tests.facts.fakehost import FakeHost

KERNEL = platform.release()
DPKG = """case $1 in
-S) for path in "$2" "$3"; do case $path in
    {root}/usr/lib/libnvidia-ml.so.580.95.05) echo "libnvidia-compute-580:amd64: $path" ;;
    *) echo "dpkg-query: no path found matching pattern $path" >&2; no=1 ;;
    esac; done; exit ${no:-0} ;;
esac"""
"""As dpkg-query -S says it: what it finds on standard output, the rest on the other."""

RPM = """[ "$1" = -qf ] || exit 0
case $4 in
*libnvidia-ml.so.580.95.05) echo nvidia-driver-cuda-libs ;;
*) echo "file $4 is not owned by any package"; exit 1 ;;
esac"""

PACMAN = """[ "$1" = -Qqo ] || exit 0
case $2 in
*libnvidia-ml.so.580.95.05) echo nvidia-utils ;;
*) echo "error: No package owns $2" >&2; exit 1 ;;
esac"""


def libraries(fake: FakeHost, libcuda: str = "580.95.05") -> None:
    folder = fake.root / "usr/lib"
    lines = []
    for name, version in (("libnvidia-ml", "580.95.05"), ("libcuda", libcuda)):
        fake.write(folder / f"{name}.so.{version}", "")
        (folder / f"{name}.so.1").symlink_to(f"{name}.so.{version}")
        lines.append(f"	{name}.so.1 (libc6,x86-64) => {folder}/{name}.so.1")
        lines.insert(0, f"	{name}.so.1 (libc6) => /usr/lib/i386-linux-gnu/{name}.so.1")
    text = "\n".join(lines)
    fake.program("ldconfig", f"cat <<'X'\n{text}\nX")


@pytest.mark.parametrize(
    ("manager", "answer", "owner"),
    [
        ("dpkg-query", DPKG, "libnvidia-compute-580"),
        ("rpm", RPM, "nvidia-driver-cuda-libs"),
        ("pacman", PACMAN, "nvidia-utils"),
    ],
)
def test_whose_the_libraries_are(
    fake: FakeHost, shell: str, manager: str, answer: str, owner: str
) -> None:
    fake.shell = shell
    libraries(fake, "535.183.01")
    fake.program(manager, answer.replace("{root}", str(fake.root)))
    driver = fake.snapshot().driver
    folder = f"{fake.root}/usr/lib"
    assert driver.library_file == DriverFile(f"{folder}/libnvidia-ml.so.580.95.05", owner)
    assert driver.libcuda_file == DriverFile(f"{folder}/libcuda.so.535.183.01", "")
    assert (driver.library, driver.libcuda) == ("580.95.05", "535.183.01")


def test_without_a_package_manager_nobody_s_file_is_called_foreign(fake: FakeHost) -> None:
    libraries(fake)
    driver = fake.snapshot().driver
    assert driver.library_file and driver.library_file.owner is None


def test_a_package_manager_that_hangs_costs_little(fake: FakeHost) -> None:
    libraries(fake)
    fake.program("rpm", '[ "$1" = -qf ] && exec sleep 600')
    begin = time.monotonic()
    driver = fake.snapshot().driver
    assert driver.library_file and driver.library_file.owner is None
    assert time.monotonic() - begin < 60


def test_a_diverted_file_is_not_its_diversion_s(fake: FakeHost) -> None:
    libraries(fake)
    fake.program(
        "dpkg-query",
        '[ "$1" = -S ] || exit 0\necho "diversion by glx-diversions from: $2"\n'
        'echo "libcuda1:amd64, libcuda1:i386: $2"',
    )
    driver = fake.snapshot().driver
    assert driver.libcuda_file and driver.libcuda_file.owner == "libcuda1"


def test_the_module_s_file(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    file = fake.write(fake.root / "lib/modules" / KERNEL / "updates/dkms/nvidia.ko.zst", "")
    fake.program(
        "modinfo",
        f"""case "$*" in
'-F version nvidia') echo 580.95.05 ;;
'-n nvidia') echo {file} ;;
esac""",
    )
    fake.program("rpm", RPM)
    found = fake.snapshot().driver.module_file
    assert found == DriverFile(str(file), "", int(file.stat().st_ctime))


def test_a_module_without_a_file_is_none(fake: FakeHost) -> None:
    fake.program("modinfo", '[ "$*" = "-F version nvidia" ] && echo 580.95.05')
    driver = fake.snapshot().driver
    assert driver.module_on_disk == "580.95.05" and driver.module_file is None


def test_what_nvidia_s_installer_leaves(fake: FakeHost) -> None:
    assert fake.snapshot().driver.runfile == ()
    for path in ("usr/bin/nvidia-uninstall", "var/log/nvidia-installer.log"):
        fake.write(fake.root / path, "")
    assert fake.snapshot().driver.runfile == (
        "/usr/bin/nvidia-uninstall",
        "/var/log/nvidia-installer.log",
    )


@pytest.mark.parametrize("inherited", [True, False])
def test_what_a_container_was_given(fake: FakeHost, inherited: bool) -> None:
    assert fake.snapshot().driver.capabilities == ""
    if inherited:
        fake.environment = {"NVIDIA_DRIVER_CAPABILITIES": "utility"}
    else:
        fake.borrow("tr")
        environ = "PATH=/usr/bin\0NVIDIA_DRIVER_CAPABILITIES=utility\0HOME=/root\0"
        fake.write(fake.root / "proc/1/environ", environ)
    assert fake.snapshot().driver.capabilities == "utility"


def test_a_host_of_virtual_gpus(fake: FakeHost) -> None:
    assert not fake.snapshot().driver.vgpu_host
    (fake.root / "sys/module/nvidia_vgpu_vfio").mkdir(parents=True)
    assert fake.snapshot().driver.vgpu_host


def test_a_jetson(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.borrow("tr")
    assert (fake.snapshot().board, fake.snapshot().tegra) == ("", "")
    fake.write(fake.root / "proc/device-tree/model", b"NVIDIA Jetson Orin Nano\0")
    fake.write(fake.root / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3\n")
    snapshot = fake.snapshot()
    assert snapshot.board == "NVIDIA Jetson Orin Nano"
    assert snapshot.tegra == "# R36 (release), REVISION: 4.3"


def test_an_image_that_is_booted(fake: FakeHost) -> None:
    assert not fake.snapshot().ostree
    fake.write(fake.root / "run/ostree-booted", "")
    assert fake.snapshot().ostree


@pytest.mark.parametrize(
    ("uid", "sudo", "came_by_sudo", "none"),
    [
        (0, True, True, False),
        (0, True, False, True),
        (0, False, False, True),
        (1000, True, False, False),
        (1000, False, False, True),
    ],
)
def test_who_types_sudo(
    fake: FakeHost, uid: int, sudo: bool, came_by_sudo: bool, none: bool
) -> None:
    fake.program("id", f'case "$*" in -u) echo {uid} ;; -un) echo somebody ;; *) exit 1 ;; esac')
    if sudo:
        fake.program("sudo", "exit 1")
    if came_by_sudo:
        fake.environment = {"SUDO_UID": "1000"}
    assert fake.snapshot().no_sudo is none


def test_yum_is_seen_where_there_is_no_dnf(fake: FakeHost) -> None:
    fake.program("yum", "")
    assert fake.snapshot().package_manager == "yum"
    fake.program("dnf", "")
    assert fake.snapshot().package_manager == "dnf"
