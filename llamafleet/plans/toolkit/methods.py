"""Where a CUDA Toolkit could be installed from on a host: wheels, packages, NVIDIA's runfile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import Layout
from llamafleet.plans.plan import Repository, Source
from llamafleet.protocol.job import METHODS, Method
from llamafleet.settings import Settings
from llamafleet.tables import NVIDIA_URL, parse_version
from llamafleet.tables.distributions import (
    Distribution,
    distribution,
    repository_key,
    toolkit_dependencies,
    toolkit_packages,
)
from llamafleet.tables.toolkits import runfile, toolkits, wheel_toolkits
from llamafleet.wheelhouse.manifest import Manifest


@dataclass(frozen=True)
class Offer:
    """One toolkit that could be installed."""

    version: str
    method: Method
    root: str
    libdir: str
    """As the snapshot will show it: it goes into the library and so into the fingerprint."""
    evidence: str
    """Source of the figures that say it is there."""
    source: Source | None = None
    """None: wheels."""
    lacking: str = ""
    """Why it can't be installed now, though it may have been: the wheelhouse is without it."""
    release: str = ""
    """As 13.2.1; "": of the same minor version what is newest there."""

    @property
    def key(self) -> str:
        """Key of the job that installs it."""
        return self.version if self.method == "wheels" else f"{self.method}-{self.version}"

    @property
    def of_root(self) -> bool:
        """A package manager installs it, so its job is root's, and root alone tells of it."""
        return self.source is not None and self.source.manager is not None


def offers(
    snapshot: HostSnapshot, settings: Settings, layout: Layout, house: Manifest | None
) -> tuple[Offer, ...]:
    """All toolkits that may be installed on this host, best first."""
    by_method: dict[Method, Iterator[Offer]] = {
        "wheels": _wheels(snapshot, layout, house),
        "apt": _repository(snapshot, settings),
        "dnf": _repository(snapshot, settings),
        "runfile": _runfiles(snapshot, settings, layout),
        "distro": _distro(snapshot),
    }
    found = [
        offer
        for method, offered in by_method.items()
        if not closed(method, snapshot, settings)
        for offer in offered
    ]
    return tuple(
        sorted(
            found, key=lambda o: (parse_version(o.version), -METHODS.index(o.method)), reverse=True
        )
    )


def closed(method: Method, snapshot: HostSnapshot, settings: Settings) -> str:
    """Why a method offers nothing on this host; "": it may be used."""
    if settings.toolkit_root:
        return f"toolkit_root = {settings.toolkit_root!r}"
    if settings.toolkit_method not in ("auto", method):
        return f"toolkit_method = {settings.toolkit_method!r}"
    if method == "wheels":
        return ""
    if settings.wheelhouse and method == "distro":
        return "wheelhouse: no network is used"
    if settings.wheelhouse and not settings.toolkit_url:
        return "wheelhouse: no network is used; toolkit_url may name a mirror"
    if method == "runfile":
        return ""
    if settings.scope == "user":
        return "scope = 'user'"
    if not settings.install_packages:
        return "install_packages = False"
    here = system(snapshot)
    if here is None:
        manager = snapshot.package_manager or "no known package manager"
        return f"not known for {snapshot.os_name or 'this system'} with {manager}"
    if method not in ("distro", here.manager):
        return f"{snapshot.os_name} has {here.manager}"
    if method == "distro" and here.own is None:
        return f"{snapshot.os_name} has no package of its own"
    if method == "distro" and not snapshot.driver.packages:
        return "its package would bring a driver's library, and the driver here is not of packages"
    if method != "distro" and here.repository is None:
        return f"NVIDIA has no repository for {snapshot.os_name}"
    if method != "distro" and here.repository and snapshot.arch not in here.repository.machines:
        return f"NVIDIA's repository {here.repository.name} has nothing for {snapshot.arch}"
    return ""


def unoffered(
    version: str, snapshot: HostSnapshot, settings: Settings, house: Manifest | None
) -> str:
    """Why no method installs that version on this host, method by method."""

    def why(method: Method) -> str:
        if method == "wheels" and has_wheels(version, snapshot):
            lacking = _lacking(version, house)
        else:
            lacking = f"has no CUDA {version} here"
        return closed(method, snapshot, settings) or lacking

    return "; ".join(f"{method}: {why(method)}" for method in METHODS)


def has_wheels(version: str, snapshot: HostSnapshot) -> bool:
    """There are wheels of that toolkit for the host's machine, in a wheelhouse or not."""
    return any((row.cuda, row.machine) == (version, snapshot.arch) for row in wheel_toolkits())


def _lacking(version: str, house: Manifest | None) -> str:
    if house is None or version in house.toolkits:
        return ""
    has = f"it has {', '.join(house.toolkits)}" if house.toolkits else "it has no toolkit"
    return f"CUDA {version} is not in the wheelhouse ({has})"


def system(snapshot: HostSnapshot) -> Distribution | None:
    """What is known of the distribution; None: not in the table, or with another manager."""
    here = distribution(snapshot.os_id, snapshot.os_version, snapshot.os_like)
    return here if here and here.manager == snapshot.package_manager else None


def _wheels(snapshot: HostSnapshot, layout: Layout, house: Manifest | None) -> Iterator[Offer]:
    for row in wheel_toolkits():
        if row.machine == snapshot.arch:
            root = layout.toolkit(row.cuda)
            lacking = _lacking(row.cuda, house)
            yield Offer(row.cuda, "wheels", root, f"{root}/lib", row.source, lacking=lacking)


def _runfiles(snapshot: HostSnapshot, settings: Settings, layout: Layout) -> Iterator[Offer]:
    for row in toolkits():
        file = runfile(row.version, snapshot.arch)
        if file:
            root = layout.toolkit(f"{row.version}-runfile")
            source = Source(url=f"{_base(settings)}/{file.path}", sha256=file.sha256)
            yield Offer(
                row.version,
                "runfile",
                root,
                f"{root}/lib64",
                file.source,
                source,
                release=file.version,
            )


def _repository(snapshot: HostSnapshot, settings: Settings) -> Iterator[Offer]:
    here = system(snapshot)
    if here is None or here.repository is None:
        return
    theirs = here.repository
    folder = f"{_base(settings)}/repos/{theirs.name}/{theirs.machines[snapshot.arch]}"
    key = repository_key(theirs.key)
    for version in theirs.toolkits:
        packages = toolkit_packages(here.manager, version)
        needed = toolkit_dependencies(here.manager, version)
        repository = Repository(
            url=f"{folder}/",
            key_url=f"{folder}/{key.file}",
            fingerprint=key.fingerprint,
            allowed=(*packages, *needed),
            machine=snapshot.arch,
        )
        source = Source(here.manager, packages, None if snapshot.cuda_repository else repository)
        root = f"/usr/local/cuda-{version}"
        yield Offer(version, here.manager, root, f"{root}/lib64", theirs.source, source)


def _distro(snapshot: HostSnapshot) -> Iterator[Offer]:
    here = system(snapshot)
    if here and here.own:
        libdir = f"{here.own.root}/lib/{snapshot.arch}-linux-gnu"
        yield Offer(
            here.own.cuda,
            "distro",
            here.own.root,
            libdir,
            here.own.source,
            Source(here.manager, here.own.packages),
        )


def _base(settings: Settings) -> str:
    return (settings.toolkit_url or NVIDIA_URL).rstrip("/")
