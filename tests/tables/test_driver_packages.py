"""The driver's packages: real names with their roles, and that all rooms go by the one table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import pytest

from llamafleet import zipapps
from llamafleet.facts.host import Package
from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import Layout
from llamafleet.plans.driver.facts import package_versions
from llamafleet.plans.driver.hold import plan_hold
from llamafleet.plans.plan import HoldPlan
from llamafleet.settings import Settings
from llamafleet.tables import driver_packages, overlaid, text
from llamafleet.tables.driver_packages import Family, Role, has
from llamafleet.tables.rows import TableError
from tests.hosts.recorded import change, load

ROLES: tuple[Role, ...] = get_args(Role)

NONE = ""
REFUSED = "refused"
HELD = "held refused"
VERSION = f"{HELD} version"
LIBRARY = f"{VERSION} library"
DKMS = f"{VERSION} dkms"

# Roles -> names. Where they were seen is told in the table.
DEBIAN = {
    DKMS: "nvidia-kernel-dkms nvidia-open-kernel-dkms nvidia-tesla-535-kernel-dkms",
    LIBRARY: """
        libcuda1 libcuda1:i386 libnvidia-ml1 libnvidia-ml1:i386 libnvidia-tesla-535-cuda1
        libnvidia-legacy-390xx-ml1
    """,
    VERSION: """
        nvidia-driver nvidia-driver-libs nvidia-driver-bin nvidia-smi nvidia-kernel-source
        nvidia-kernel-support nvidia-kernel-common nvidia-open-kernel-support
        nvidia-tesla-535-driver nvidia-tesla-535-smi nvidia-legacy-390xx-driver nvidia-driver-full
    """,
    HELD: """
        libcudadebugger1 libnvcuvid1 libnvoptix1 libnvidia-cfg1 libnvidia-ptxjitcompiler1
        libnvidia-nvvm4 libglx-nvidia0 libgl1-nvidia-glvnd-glx libegl-nvidia-tesla-535-0
        nvidia-alternative nvidia-opencl-icd nvidia-vdpau-driver nvidia-support
        nvidia-installer-cleanup nvidia-cuda-mps nvidia-persistenced nvidia-settings
        nvidia-modprobe nvidia-xconfig libxnvctrl0 libxnvctrl-dev firmware-nvidia-gsp
        xserver-xorg-video-nvidia
    """,
    REFUSED: "nvidia-fs-dkms",
    NONE: """
        nvidia-cuda-toolkit nvidia-cuda-dev nvidia-cuda-gdb nvidia-cuda-toolkit-gcc
        nvidia-cuda-samples nvidia-cudnn nvidia-opencl-dev nvidia-openjdk-8-jre nvidia-profiler
        nvidia-visual-profiler libnvidia-ml-dev nvidia-cg-toolkit nvidia-vaapi-driver
        nvidia-primus-vk-common libnvidia-egl-wayland1 libnvidia-egl-gbm1 firmware-nvidia-graphics
        glx-alternative-nvidia nvtop libcudart12 libnvvm4 libnvrtc12 libnvjitlink12
        bumblebee-nvidia hashcat-nvidia linux-libc-dev
    """,
}
UBUNTU = {
    f"{HELD} prebuilt": """
        linux-modules-nvidia-580-6.8.0-45-generic
        linux-modules-nvidia-580-server-open-nvidia-hwe-24.04
    """,
    DKMS: "nvidia-dkms-580 nvidia-dkms-580-server-open",
    LIBRARY: "libnvidia-compute-580 libnvidia-compute-580-server:i386",
    VERSION: """
        nvidia-driver-580-server-open nvidia-kernel-source-580-open nvidia-utils-580
        nvidia-compute-utils-580-server nvidia-kernel-common-580 nvidia-headless-580-open
        nvidia-headless-no-dkms-580-server-open
    """,
    HELD: """
        libnvidia-gl-580 libnvidia-decode-580 libnvidia-extra-580 nvidia-firmware-580-580.95.05
        xserver-xorg-video-nvidia-580 nvidia-fabricmanager-580 libnvidia-nscq-580
        linux-objects-nvidia-580-6.8.0-45-generic linux-signatures-nvidia-6.8.0-45-generic
    """,
    REFUSED: "linux-modules-nvidia-fs-6.17.0-1032-nvidia",
    NONE: """
        linux-image-6.17.0-1032-nvidia linux-modules-6.17.0-1032-nvidia linux-nvidia-hwe-24.04
        nvidia-prime
    """,
}
NVIDIA_DEB = {
    f"{LIBRARY} dkms": "nvidia-linux-grid-535",
    DKMS: "nvidia-dkms nvidia-dkms-open nvidia-kernel-open-dkms",
    LIBRARY: "libnvidia-compute",
    VERSION: """
        cuda-drivers cuda-drivers-580 nvidia-open nvidia-open-580 nvidia-driver-cuda
        nvidia-driver-open nvidia-drivers nvidia-headless nvidia-headless-no-dkms-open
        nvidia-kernel-source-open nvidia-kernel-common
    """,
    HELD: """
        libnvidia-gl libnvidia-gpucomp libnvidia-nscq libnvsdm nvidia-firmware
        nvidia-fabricmanager nvidia-imex nvlink5
    """,
    REFUSED: """
        cuda-compat-13-0 nvidia-driver-pinning-580 nvidia-gds-13-2
        nvidia-driver-local-repo-ubuntu2404-580.95.05 nvidia-fs
    """,
    NONE: """
        nvidia-driver-assistant libnvidia-egl-wayland21 cuda-nvcc-13-0 cuda-driver-dev-13-0
        cuda-toolkit-13-0 libcublas-13-0 libnvjitlink-13-0 libnvptxcompiler-13-0 cuda
        cuda-cudart-13-0 nsight-compute-2026.1.0
    """,
}
BESIDE = {
    REFUSED: "nvidia-peer-memory-dkms",
    NONE: """
        nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container1:amd64
        libnvidia-container-tools nvidia-container-runtime nvidia-docker2 nvidia-system-core
        nvidia-kernel-defaults nvidia-mig-manager nvidia-pci-bridge-power
        nvidia-disable-numa-balancing
    """,
}
RPM = {
    f"{VERSION} kernel": """
        kmod-nvidia-6.11.0-0.rc5.43.fc41.x86_64 kmod-nvidia-535.54.03-4.18.0-477.15.1
    """,
    f"{VERSION} akmod": "akmod-nvidia akmod-nvidia-580xx",
    DKMS: "kmod-nvidia-open-dkms kmod-nvidia-latest-dkms dkms-nvidia",
    LIBRARY: """
        nvidia-driver-cuda-libs libnvidia-ml nvidia-compute-G06 xorg-x11-drv-nvidia-cuda-libs
        xorg-x11-drv-nvidia-470xx-cuda-libs
    """,
    VERSION: """
        nvidia-driver nvidia-driver-cuda nvidia-driver-libs nvidia-driver-NVML nvidia-kmod-common
        nvidia-x11-drv xorg-x11-drv-nvidia xorg-x11-drv-nvidia-cuda nvidia-compute-utils-G06
        cuda-drivers-fabricmanager-535 nvidia-open-driver-G06-signed-cuda-kmp-default
    """,
    HELD: """
        libnvidia-cfg libnvidia-fbc nvidia-libXNVCtrl nvidia-driver-selinux nvidia-fabric-manager
        xorg-x11-nvidia
    """,
    REFUSED: "nvidia-release nvidia-repo-s3",
    NONE: """
        nvidia-gpu-firmware nvidia-texture-tools egl-wayland cuda-driver-devel-13-0
        libcublas-devel-13-0
    """,
}
ARCH = {
    DKMS: "nvidia-dkms nvidia-open-dkms nvidia-580xx-dkms",
    LIBRARY: "nvidia-utils nvidia-580xx-utils",
    VERSION: "nvidia nvidia-lts nvidia-open nvidia-open-lts",
}
NAMES = {
    name: roles
    for names in (DEBIAN, UBUNTU, NVIDIA_DEB, BESIDE, RPM, ARCH)
    for roles, listed in names.items()
    for name in listed.split()
}


def first_row(name: str) -> Family | None:
    """The row that decides, found another way than by expression()."""
    bare = name.partition(":")[0]
    rows = driver_packages.families()
    return next((row for row in rows if any(fnmatchcase(bare, n) for n in row.names)), None)


@pytest.mark.parametrize("name", NAMES)
def test_roles(name: str) -> None:
    assert {role for role in ROLES if has(name, role)} == set(NAMES[name].split())


def test_a_name_means_the_same_wherever_it_is_from() -> None:
    origins = (DEBIAN, UBUNTU, NVIDIA_DEB, BESIDE, RPM, ARCH)
    for names in origins:
        for roles, listed in names.items():
            assert {NAMES[name] for name in listed.split()} == {roles}


@pytest.mark.parametrize("name", NAMES)
def test_the_first_row_decides(name: str) -> None:
    row = first_row(name)
    roles = row.roles if row else frozenset[Role]()
    assert {role for role in ROLES if has(name, role)} == roles


@pytest.mark.parametrize("role", ROLES)
def test_what_has_a_role_is_asked_for(role: Role) -> None:
    patterns = driver_packages.patterns(role)
    bare = {name.partition(":")[0] for name in NAMES if has(name, role)}
    assert bare and all(any(fnmatchcase(name, p) for p in patterns) for name in bare)


def test_every_row_is_of_use() -> None:
    """A row whose names all belong to rows before it decides nothing."""
    deciding = [first_row(name) for name in NAMES]
    assert all(row in deciding for row in driver_packages.families())


def test_roles_that_go_together() -> None:
    for row in driver_packages.families():
        assert "held" not in row.roles or "refused" in row.roles, row.names
        assert "version" not in row.roles or "held" in row.roles, row.names
        assert not row.roles & {"library", "kernel", "dkms", "akmod"} or "version" in row.roles


def test_every_row_says_where_it_is_from() -> None:
    starts = ("measured: ", "looked up: ")
    assert all(row.source.startswith(starts) for row in driver_packages.families())


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("kmod-nvidia-6.11.0-0.rc5.43.fc41.x86_64", "6.11.0-0.rc5.43.fc41.x86_64"),
        ("kmod-nvidia-535.54.03-4.18.0-477.15.1", "4.18.0-477.15.1"),
        ("kmod-nvidia", None),
        ("kmod-nvidia-open-dkms", None),
        ("nvidia-firmware-580-58.95.05-1", None),
    ],
)
def test_kernel_in_a_name(name: str, kernel: str | None) -> None:
    assert driver_packages.kernel_of(name) == kernel


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("linux-modules-nvidia-580-6.8.0-45-generic", "580"),
        ("linux-modules-nvidia-580-server-open-generic", "580-server-open"),
        ("linux-modules-nvidia-580-open-nvidia-hwe-24.04", "580-open"),
        ("linux-modules-nvidia-fs-6.8.0-45-generic", None),
        ("nvidia-dkms-580", None),
    ],
)
def test_branch_in_a_name(name: str, branch: str | None) -> None:
    assert driver_packages.prebuilt_branch(name) == branch


TABLE = "driver-packages.yaml"
ADDED = """\
- names: [acme-gpu-*]
  roles: [held, refused, version, library]
  why: A test.
  source: "measured: nowhere"
"""


@contextmanager
def table(folder: Path, content: str) -> Iterator[None]:
    """Another content of driver-packages.yaml, which is written to `folder`."""
    (folder / TABLE).write_text(content)
    caches = (driver_packages._compiled, zipapps.host_zipapp)
    for cache in caches:
        cache.cache_clear()
    with overlaid(folder):
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def added(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A row more in the table."""
    more = text(TABLE).replace("families:\n", f"families:\n{ADDED}")
    with table(tmp_path_factory.mktemp("tables"), more):
        yield


NEW_NAME = "acme-gpu-core"


@pytest.mark.usefixtures("added")
def test_the_snapshot_asks_for_a_name_that_was_added() -> None:
    script = render(Layout.system(), ())
    parameters = script[: script.index("#!/bin/sh")]
    assert parameters.count("acme-gpu-*") == 2


@pytest.mark.usefixtures("added")
def test_reader_verdict_and_hold_know_a_name_that_was_added() -> None:
    blocks = {
        "packages": [f"{NEW_NAME} 580.159.04-1", "nvidia-smi 590.1.1", "acme-other 1.0"],
        "parts": [f"install installed {NEW_NAME}:amd64", "install installed acme-other"],
    }
    host = load("rtx4090-580-ubuntu24")
    snapshot = parse(change(host.text, {"blocks": blocks}).split("\n"))
    assert snapshot.driver.packages[0] == Package(NEW_NAME, "580.159.04-1")
    assert snapshot.driver.package == "580.159.04"
    assert package_versions(snapshot) == {"590.1.1": ["nvidia-smi"], "580.159.04": [NEW_NAME]}
    held = plan_hold(Settings(hold_driver=True), snapshot)
    assert isinstance(held, HoldPlan) and held.hold == (f"{NEW_NAME}:amd64",)


REFUSE = """
import sys
sys.path.insert(0, sys.argv[1])
from llamafleet.onhost.toolkit.changes import Changes, refuse
refuse(Changes(new=tuple(sys.argv[2:])), ("g++",), "read the log")
"""


def refusal(folder: Path, *names: str) -> str:
    """What the guard says on a host, from the zipapp alone; "": nothing."""
    zipapp = folder / "host.pyz"
    zipapp.write_bytes(zipapps.host_zipapp())
    command = [sys.executable, "-I", "-S", "-c", REFUSE, str(zipapp), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    return done.stderr


@pytest.mark.usefixtures("added")
def test_the_guard_refuses_a_name_that_was_added(tmp_path: Path) -> None:
    assert f"install or replace {NEW_NAME}; expected" in refusal(tmp_path, NEW_NAME, "acme-other")


def test_the_guard_refuses_what_the_table_says(tmp_path: Path) -> None:
    bare = [name for name in NAMES if ":" not in name]
    named = [name for name in bare if has(name, "refused")]
    assert f"install or replace {' '.join(named)}; expected" in refusal(tmp_path, *bare)
    assert refusal(tmp_path, NEW_NAME, "cuda-nvcc-13-0", "nvidia2") == ""


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("{names: [a], roles: [hold], why: b, source: c}", "roles"),
        ("{names: [], roles: [], why: b, source: c}", "names"),
        ('{names: ["nvidia-?"], roles: [], why: b, source: c}', "names"),
        ("{names: [a], roles: [], why: '', source: c}", "why"),
        ("{names: [a], roles: [], why: b}", "source"),
        ("{names: [a], roles: [], why: b, source: c, role: held}", "role"),
    ],
)
def test_a_row_that_is_wrong(row: str, found: str, tmp_path: Path) -> None:
    expected = rf"{TABLE}: families\.0\.{found}"
    with table(tmp_path, f"families:\n- {row}\n"), pytest.raises(TableError, match=expected):
        driver_packages.families()
