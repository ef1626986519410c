"""Reboots for an updated driver, by the real command on booted hosts.

The driver is faked at its edges: a unit of the test "loads" the module on disk at boot, into a
/proc/driver of its own, and nvidia-smi compares it with the library. The unit also removes the
file that marks the host as a container, so that it counts as a machine. All else is real.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.booted import BootedHost, boot, missing_tools
from tests.e2e.fake_driver import plant_nvidia_smi
from tests.e2e.runs import Run, pyinfra, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-a"
OLD, NEW = "580.82.07", "580.95.05"

DRIVER = "usr/local/lib/driver"
LOAD = f"""#!/bin/sh
cd /{DRIVER}
date +%s.%N >>up
rm -f /run/systemd/container
mount -t tmpfs tmpfs /proc/driver && mkdir /proc/driver/nvidia
version=$(cat on-disk)
[ -e stuck ] && version=$(cat stuck)
echo "NVRM version: NVIDIA UNIX x86_64 Kernel Module  $version  Wed Sep 17 08:36:20 UTC 2025" \\
    >/proc/driver/nvidia/version
"""
UNIT = f"""[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/{DRIVER}/load
ExecStop=/bin/sh -c 'date +%%s.%%N >>/{DRIVER}/down'
[Install]
WantedBy=multi-user.target
"""
MODINFO = f"""#!/bin/sh
[ "$*" = '-F version nvidia' ] && cat /{DRIVER}/on-disk
"""
TOOLKIT = "/usr/local/cuda-13.0"
PARTS = (
    "include/cuda_runtime.h",
    "include/cublas_v2.h",
    "lib64/libcudart.so",
    "lib64/libcublas.so",
    "lib64/stubs/libcuda.so",
)


@dataclass(frozen=True)
class Boots:
    """When a host came up and went down, in seconds."""

    up: list[float]
    down: list[float]


def boots(host: BootedHost) -> Boots:
    def read(name: str) -> list[float]:
        file = host.tree / DRIVER / name
        return [float(line) for line in file.read_text().split()] if file.exists() else []

    return Boots(read("up"), read("down"))


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def plant(host: BootedHost) -> None:
    """A loaded driver OLD whose library and module on disk were updated to NEW since."""
    tree = host.tree
    program(tree / DRIVER / "load", LOAD)
    program(tree / "usr/local/sbin/modinfo", MODINFO)
    plant_nvidia_smi(host, NEW, "13.0")
    (tree / DRIVER / "on-disk").write_text(OLD)
    (tree / "etc/systemd/system/driver.service").write_text(UNIT)
    assert host.run("systemctl enable -q --now driver").returncode == 0
    library = next(tree.glob("usr/lib/*-linux-gnu")) / "libnvidia-ml.so.1"
    library.symlink_to(f"libnvidia-ml.so.{NEW}")
    library.with_name(f"libnvidia-ml.so.{NEW}").touch()
    (tree / DRIVER / "on-disk").write_text(NEW)


def plant_tools(host: BootedHost) -> None:
    """A compiler and a toolkit as far as a plan looks at them: no build gets to use them."""
    program(host.tree / "usr/bin/g++-12", "#!/bin/sh\necho 12.2.0\n")
    root = host.tree / TOOLKIT.lstrip("/")
    program(root / "bin/nvcc", "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    (root / "include/cccl").mkdir(parents=True)
    for part in PARTS:
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        (root / part).touch()


@pytest.fixture(scope="module")
def hosts(
    booted: BootedHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, BootedHost]]:
    other = boot("gpu-b", tmp_path_factory.mktemp("other"))
    for host in (booted, other):
        plant(host)
        plant_tools(host)
    yield {HOST: booted, "gpu-b": other}
    other.stop()


def deploy(folder: Path, hosts: dict[str, BootedHost], **settings: object) -> Run:
    """A run that ends at the first package that the build would fetch."""
    data = {
        name: host.data(toolkit_method="present", index_url="http://127.0.0.1:9/", **settings)
        for name, host in hosts.items()
    }
    return pyinfra(folder, "-y", write_inventory(folder, data), "deploy.py")


def lines(run: Run, host: str) -> str:
    return "\n".join(line for line in run.output.splitlines() if f"[{host}]" in line)


def test_without_leave_a_host_is_told_to_reboot_and_left_alone(
    hosts: dict[str, BootedHost], folder: Path
) -> None:
    run = deploy(folder, {HOST: hosts[HOST]})
    assert run.returncode != 0
    assert f"driver: found loaded kernel module {OLD}, library {NEW}" in run.output, run.output
    assert "next: sudo reboot" in run.output
    assert len(boots(hosts[HOST]).up) == 1 and boots(hosts[HOST]).down == []
    assert not (hosts[HOST].tree / "opt/llamafleet").exists()


def test_hosts_are_rebooted_once_one_after_the_other_and_the_run_goes_on(
    hosts: dict[str, BootedHost], folder: Path
) -> None:
    stuck = hosts["gpu-b"].tree / DRIVER / "stuck"
    stuck.write_text(OLD)
    run = deploy(folder, hosts, reboot="allow")
    first, second = (boots(hosts[name]) for name in (HOST, "gpu-b"))
    assert [len(b.up) for b in (first, second)] == [2, 2], run.output
    assert [len(b.down) for b in (first, second)] == [1, 1]
    order = sorted([(first.down[0], first.up[1]), (second.down[0], second.up[1])])
    assert order[0][1] < order[1][0], "both were down at the same time"
    # The first one's driver works: later stages of this very run have begun their work.
    said = lines(run, HOST)
    assert said.index("toolkit, build, verify: planned once") < said.index("build: build")
    assert "driver: found" not in said and "build failed in phase" in said, run.output
    assert hosts[HOST].run("test -e /opt/llamafleet/llamafleet-host.pyz").returncode == 0
    # The second one's does not, which stopped no other host.
    said = lines(run, "gpu-b")
    assert f"driver: found after the reboot of this run: loaded kernel module {OLD}" in said
    assert not (hosts["gpu-b"].tree / "opt/llamafleet").exists()
    assert run.returncode != 0


def test_the_next_run_has_nothing_to_reboot(hosts: dict[str, BootedHost], folder: Path) -> None:
    run = deploy(folder, {HOST: hosts[HOST]}, reboot="allow")
    assert "backend: cuda" in run.output and "rebooting" not in run.output, run.output
    assert len(boots(hosts[HOST]).up) == 2
