"""Figures as data: toolkits, GPUs and pinned requirements, each figure with its source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import yaml

UNVERIFIED = "UNVERIFIED"
"""How the source of a figure begins that was recalled, not measured or looked up."""

NVIDIA_URL = "https://developer.download.nvidia.com/compute/cuda"
"""repos/NAME/MACHINE/ holds a repository, the path of a Runfile the runfile."""

Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """The leading numbers of a dotted version: (580, 65, 6) of "580.65.06", () of "N/A"."""
    leading = re.match(r"(\d+\.)*\d+|", text)
    return tuple(int(part) for part in leading[0].split(".") if part) if leading else ()


@dataclass(frozen=True)
class ToolkitRow:
    """What one minor version of the CUDA Toolkit accepts."""

    version: str
    """major.minor."""
    gcc: int
    """Newest major version of gcc."""
    clang: int
    compilers_source: str
    glibc_below: str | None
    """First glibc whose headers clash; None: none known."""
    glibc_source: str
    sm: frozenset[int]
    """Architectures of its ptxas, as 89."""
    sm_source: str

    @property
    def order(self) -> Version:
        return parse_version(self.version)


@dataclass(frozen=True)
class DriverFloor:
    """From this driver version on, this CUDA version runs."""

    driver: str
    cuda: str
    source: str


@dataclass(frozen=True)
class WheelToolkit:
    """A toolkit that can be installed from Python wheels."""

    cuda: str
    machine: str
    """As uname -m names it."""
    source: str


@dataclass(frozen=True)
class CompilerPackage:
    """A g++ that a distribution offers."""

    major: int
    package: str
    path: str
    source: str
    default: bool = False
    """The one that the distribution itself is built with."""


@dataclass(frozen=True)
class RepositoryKey:
    """What NVIDIA signs a repository with."""

    id: str
    file: str
    """Beside the packages."""
    fingerprint: str
    source: str


@dataclass(frozen=True)
class Repository:
    """NVIDIA's network repository for one distribution."""

    name: str
    """Of its folder below repos/."""
    machines: dict[str, str]
    """Folder of each machine, as uname -m names it."""
    key: str
    """Id of its RepositoryKey."""
    toolkits: tuple[str, ...]
    """major.minor, oldest first."""
    source: str


@dataclass(frozen=True)
class OwnToolkit:
    """The CUDA Toolkit that a distribution packages itself."""

    cuda: str
    packages: tuple[str, ...]
    root: str
    """Where the snapshot finds it."""
    source: str


@dataclass(frozen=True)
class Distribution:
    """What the package manager of one release of a distribution can install."""

    id: str
    version: str
    """As VERSION_ID of /etc/os-release; of rhel the major version."""
    manager: Literal["apt", "dnf"]
    compilers: tuple[CompilerPackage, ...]
    repository: Repository | None
    own: OwnToolkit | None


@dataclass(frozen=True)
class PackageName:
    """The name of a package of NVIDIA's, with {v} as 12-8 and {major} as 12."""

    name: str
    since: str | None = None
    """First major.minor that has it; None: from the first on."""
    until: str | None = None
    """Last major.minor that has it; None: to the newest."""

    def of(self, cuda: str) -> str | None:
        """The name for that toolkit; None: it has no such package."""
        order = parse_version(cuda)
        if self.since and order < parse_version(self.since):
            return None
        if self.until and order > parse_version(self.until):
            return None
        return self.name.format(v=cuda.replace(".", "-"), major=order[0])


@dataclass(frozen=True)
class Runfile:
    """NVIDIA's installer for any distribution."""

    cuda: str
    machine: str
    """As uname -m names it."""
    version: str
    """major.minor.patch."""
    file: str
    sha256: str
    mib: int | None
    """Size, rounded up; None: not known."""
    source: str

    @property
    def path(self) -> str:
        """Below NVIDIA_URL."""
        return f"{self.version}/local_installers/{self.file}"


@dataclass(frozen=True)
class GpuRow:
    """A GPU by name; the driver's own word wins over every figure here."""

    name: str
    capability: str
    vram_gib: int
    bandwidth: int
    """GB/s of device memory."""
    pci: tuple[str, ...]
    """PCI device ids, four lower-case hex digits."""
    source: str
    """Of the bandwidth."""


@dataclass(frozen=True)
class Xids:
    """Which Xid errors of the kernel log speak against a GPU, and for how long."""

    fatal: frozenset[int]
    fatal_source: str
    recent_hours: int
    recent_source: str


@lru_cache
def text(name: str) -> str:
    """A file of this folder. Raises FileNotFoundError."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


@lru_cache
def _toolkits_yaml() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text("toolkits.yaml"))
    return loaded


@lru_cache
def toolkits() -> tuple[ToolkitRow, ...]:
    """All known toolkits, newest first."""
    data = _toolkits_yaml()
    rows = [
        ToolkitRow(
            version=version,
            **{**row, "sm": frozenset(row["sm"])},
            glibc_source=data["sources"]["glibc"],
        )
        for version, row in data["toolkits"].items()
    ]
    return tuple(sorted(rows, key=lambda row: row.order, reverse=True))


def toolkit(version: str) -> ToolkitRow | None:
    """The row of major.minor; None: not in the table."""
    return next((row for row in toolkits() if row.version == version), None)


@lru_cache
def driver_floors() -> tuple[DriverFloor, ...]:
    """Newest first."""
    return tuple(DriverFloor(**row) for row in _toolkits_yaml()["driver_floors"])


@lru_cache
def wheel_toolkits() -> tuple[WheelToolkit, ...]:
    """Newest first."""
    return tuple(WheelToolkit(**row) for row in _toolkits_yaml()["wheels"])


@lru_cache
def _distributions_yaml() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text("distributions.yaml"))
    return loaded


@lru_cache
def repository_keys() -> tuple[RepositoryKey, ...]:
    return tuple(RepositoryKey(**row) for row in _distributions_yaml()["keys"])


def repository_key(id: str) -> RepositoryKey:
    """The key of that id. Raises KeyError."""
    return {key.id: key for key in repository_keys()}[id]


@lru_cache
def distributions() -> tuple[Distribution, ...]:
    return tuple(_distribution(row) for row in _distributions_yaml()["distributions"])


def _distribution(row: dict[str, Any]) -> Distribution:
    repository, own = row["repository"], row["own"]
    return Distribution(
        **{
            **row,
            "compilers": tuple(CompilerPackage(**compiler) for compiler in row["compilers"]),
            "repository": repository
            and Repository(**{**repository, "toolkits": tuple(repository["toolkits"])}),
            "own": own and OwnToolkit(**{**own, "packages": tuple(own["packages"])}),
        }
    )


def distribution(os_id: str, version: str, os_like: tuple[str, ...] = ()) -> Distribution | None:
    """The row for ID, VERSION_ID and ID_LIKE of /etc/os-release; None: not in the table."""
    # Oracle Linux, a rebuild of RHEL, says only that it is like Fedora.
    if "rhel" in (os_id, *os_like) or os_id == "ol":
        os_id, version = "rhel", version.partition(".")[0]
    rows = distributions()
    return next((row for row in rows if (row.id, row.version) == (os_id, version)), None)


def _names(manager: str, kind: str, cuda: str) -> tuple[str, ...]:
    rows = _distributions_yaml()["packages"][manager][kind]
    return tuple(name for row in rows if (name := PackageName(**row).of(cuda)))


def apt_packages(cuda: str) -> tuple[str, ...]:
    """What to install from NVIDIA's repository for that toolkit."""
    return _names("apt", "names", cuda)


def apt_dependencies(cuda: str) -> tuple[str, ...]:
    """What apt_packages() depend on in NVIDIA's repository."""
    return _names("apt", "dependencies", cuda)


def dnf_packages(cuda: str) -> tuple[str, ...]:
    """What to install from NVIDIA's repository for that toolkit."""
    return _names("dnf", "names", cuda)


def dnf_dependencies(cuda: str) -> tuple[str, ...]:
    """What dnf_packages() depend on in NVIDIA's repository."""
    return _names("dnf", "dependencies", cuda)


@lru_cache
def runfiles() -> tuple[Runfile, ...]:
    """Oldest first."""
    return tuple(Runfile(**row) for row in yaml.safe_load(text("runfiles.yaml"))["runfiles"])


def runfile(cuda: str, machine: str) -> Runfile | None:
    """The runfile of major.minor for that machine; None: not in the table."""
    return next((r for r in runfiles() if (r.cuda, r.machine) == (cuda, machine)), None)


@lru_cache
def xids() -> Xids:
    row = yaml.safe_load(text("xids.yaml"))
    return Xids(**{**row, "fatal": frozenset(row["fatal"])})


@lru_cache
def gpus() -> tuple[GpuRow, ...]:
    rows = yaml.safe_load(text("gpus.yaml"))["gpus"]
    return tuple(GpuRow(**{**row, "pci": tuple(row["pci"])}) for row in rows)


def gpu_by_pci(device_id: str) -> GpuRow | None:
    """The GPU with that PCI device id, if it is in the table."""
    return next((row for row in gpus() if device_id.lower() in row.pci), None)


def gpu_by_name(name: str) -> GpuRow | None:
    """The GPU that the driver calls `name`, as "NVIDIA GeForce RTX 4090"."""
    bare = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((row for row in gpus() if row.name == bare), None)
