"""What is in a wheelhouse: a folder with everything that hosts would need from the registries."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from llamafleet.protocol.pythons import minor

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
CMAKE_FLOOR = "3.24"
"""CMake before 3.24 knows no architecture lists as llama.cpp's CUDA backend uses them."""


class WheelhouseError(Exception):
    """A wheelhouse can't be made or read; the text is one line."""


@dataclass(frozen=True)
class File:
    sha256: str
    bytes: int
    source_sha256: str | None = None
    """sha256 of the published file that this one was cut from."""


@dataclass(frozen=True)
class Llama:
    """The source archive of llama-cpp-python."""

    version: str
    sha256: str
    """Of the file in the wheelhouse; another one than `source_sha256` where it was cut."""
    source_sha256: str
    """Of the published file."""


@dataclass(frozen=True)
class Manifest:
    """What is in a wheelhouse."""

    created: int
    """Seconds since 1970."""
    files: dict[str, File]
    pythons: tuple[str, ...]
    arches: tuple[str, ...]
    toolkits: tuple[str, ...]
    slim: bool
    llama: Llama

    @property
    def cmake(self) -> bool:
        """Hosts need none of their own."""
        return any(name.startswith("cmake-") for name in self.files)


@dataclass(frozen=True)
class Wheelhouse:
    """A folder on the controller, and what its manifest says."""

    folder: str
    manifest: Manifest
    sha256: str
    """Of the manifest, which stands for the whole wheelhouse."""


def read(folder: Path) -> Wheelhouse:
    """Raises WheelhouseError."""
    return Wheelhouse(str(folder), load(folder), sha256_of(folder / MANIFEST))


def load(directory: Path) -> Manifest:
    """The manifest of a wheelhouse. Raises WheelhouseError."""
    path = directory / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WheelhouseError(f"{path} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise WheelhouseError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("version") != MANIFEST_VERSION:
        raise WheelhouseError(f"{path} is not a manifest of version {MANIFEST_VERSION}")
    try:
        return _manifest(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WheelhouseError(f"{path} is damaged ({error!r})") from error


def _manifest(data: dict[str, Any]) -> Manifest:
    return Manifest(
        created=int(data["created"]),
        files={str(name): File(**entry) for name, entry in data["files"].items()},
        pythons=tuple(data["pythons"]),
        arches=tuple(data["arches"]),
        toolkits=tuple(data["toolkits"]),
        slim=bool(data["slim"]),
        llama=Llama(**data["llama"]),
    )


def verify(directory: Path) -> list[str]:
    """What is wrong with a wheelhouse, one line for each file; none: all is as listed."""
    if not directory.is_dir():
        return [f"no folder {directory}"]
    try:
        listed = load(directory).files
    except WheelhouseError as error:
        return [str(error)]
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    problems += [f"{name} is not in {MANIFEST}" for name in sorted(present - listed.keys())]
    for name in sorted(listed.keys() & present):
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is no file")
        elif (found := sha256_of(path)) != listed[name].sha256:
            problems.append(
                f"{name} is altered: its sha256 is {found}, listed is {listed[name].sha256}"
            )
    return problems


def misfits(
    manifest: Manifest, *, python: str, arch: str, host_cmake: str | None, toolkit: str | None
) -> list[str]:
    """Why a host can't build from this wheelhouse alone, one line each; empty: it can.

    `python` is the version of the host's interpreter, `arch` as of uname -m, `host_cmake` the
    version of its CMake, `toolkit` that of the CUDA Toolkit that wheels have to bring.
    """
    lines = []
    if minor(python) not in manifest.pythons:
        lines.append(f"Python {minor(python)}: the wheelhouse is for {', '.join(manifest.pythons)}")
    if arch not in manifest.arches:
        lines.append(f"machine {arch}: the wheelhouse is for {', '.join(manifest.arches)}")
    if not manifest.cmake:
        known = Version(host_cmake) if host_cmake else None
        if known is None or known < Version(CMAKE_FLOOR):
            lines.append(
                f"CMake {host_cmake or 'none'} on the host and none in the wheelhouse: "
                f"{CMAKE_FLOOR} or newer is needed"
            )
    if toolkit is not None and toolkit not in manifest.toolkits:
        lines.append(
            f"CUDA {toolkit}: the wheelhouse has {', '.join(manifest.toolkits) or 'no toolkit'} "
            f"(add --toolkit {toolkit}, or set toolkit_version to one that it has)"
        )
    return lines


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
