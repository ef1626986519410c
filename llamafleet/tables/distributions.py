"""Distributions: the compilers and the CUDA Toolkits that their package managers install."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llamafleet.tables import parse_version
from llamafleet.tables.rows import Cuda, Origin, Row, load

Manager = Literal["apt", "dnf"]


class CompilerPackage(Row):
    """A g++ that a distribution offers."""

    major: int
    package: str
    source: Origin
    default: bool = False
    """The one that the distribution itself is built with."""


class RepositoryKey(Row):
    """What NVIDIA signs a repository with."""

    id: str
    file: str
    """Beside the packages."""
    fingerprint: Annotated[str, Field(pattern=r"^[0-9A-F]{40}$")]
    source: Origin


class Repository(Row):
    """NVIDIA's network repository for one distribution."""

    name: str
    """Of its folder below repos/."""
    machines: dict[Annotated[str, Field(pattern="^(x86_64|aarch64)$")], Literal["x86_64", "sbsa"]]
    """Folder of each machine, as uname -m names it."""
    key: str
    """Id of its RepositoryKey."""
    toolkits: tuple[Cuda, ...]
    """Oldest first."""
    source: Origin


class OwnToolkit(Row):
    """The CUDA Toolkit that a distribution packages itself."""

    cuda: Cuda
    packages: tuple[str, ...]
    root: str
    """Where the snapshot finds it."""
    source: Origin


class Distribution(Row):
    """What the package manager of one release of a distribution can install."""

    id: str
    version: str
    """As VERSION_ID of /etc/os-release; of rhel the major version."""
    manager: Manager
    compilers: tuple[CompilerPackage, ...]
    repository: Repository | None
    own: OwnToolkit | None


class PackageName(Row):
    """The name of a package of NVIDIA's, with {v} as 12-8 and {major} as 12."""

    name: str
    since: Cuda | None = None
    """First major.minor that has it; None: from the first on."""
    until: Cuda | None = None
    """Last major.minor that has it; None: to the newest."""

    def of(self, cuda: str) -> str | None:
        """The name for that toolkit; None: it has no such package."""
        order = parse_version(cuda)
        if self.since and order < parse_version(self.since):
            return None
        if self.until and order > parse_version(self.until):
            return None
        return self.name.format(v=cuda.replace(".", "-"), major=order[0])


class _Names(Row):
    source: Origin
    names: tuple[PackageName, ...]
    dependencies: tuple[PackageName, ...]


class _Packages(Row):
    apt: _Names
    dnf: _Names


class _Distributions(Row):
    keys: tuple[RepositoryKey, ...]
    packages: _Packages
    distributions: tuple[Distribution, ...]


def _table() -> _Distributions:
    return load("distributions.yaml", _Distributions)


def repository_keys() -> tuple[RepositoryKey, ...]:
    return _table().keys


def repository_key(id: str) -> RepositoryKey:
    """The key of that id. Raises KeyError."""
    return {key.id: key for key in repository_keys()}[id]


def distributions() -> tuple[Distribution, ...]:
    return _table().distributions


def distribution(os_id: str, version: str, os_like: tuple[str, ...] = ()) -> Distribution | None:
    """The row for ID, VERSION_ID and ID_LIKE of /etc/os-release; None: not in the table."""
    # Oracle Linux, a rebuild of RHEL, says only that it is like Fedora.
    if "rhel" in (os_id, *os_like) or os_id == "ol":
        os_id, version = "rhel", version.partition(".")[0]
    rows = distributions()
    return next((row for row in rows if (row.id, row.version) == (os_id, version)), None)


def toolkit_packages(manager: Manager, cuda: str) -> tuple[str, ...]:
    """What to install from NVIDIA's repository for that toolkit."""
    return _of(cuda, _names(manager).names)


def toolkit_dependencies(manager: Manager, cuda: str) -> tuple[str, ...]:
    """What those depend on in NVIDIA's repository."""
    return _of(cuda, _names(manager).dependencies)


def _names(manager: Manager) -> _Names:
    packages = _table().packages
    return packages.apt if manager == "apt" else packages.dnf


def _of(cuda: str, names: tuple[PackageName, ...]) -> tuple[str, ...]:
    return tuple(name for package in names if (name := package.of(cuda)))
