"""What is in a wheelhouse: a folder with everything that hosts would need from the registries."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from llamafleet.received import LIMIT, Unreadable, received
from llamafleet.tables.releases import releases

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


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
        data = json.loads(_text(path))
    except OSError as error:
        raise WheelhouseError(f"{path} can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise WheelhouseError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("version") != MANIFEST_VERSION:
        raise WheelhouseError(f"{path} is not a manifest of version {MANIFEST_VERSION}")
    found = received(Manifest, data)
    if isinstance(found, Unreadable):
        raise WheelhouseError(f"{path} is damaged ({found.reason})")
    return found


def _text(path: Path) -> str:
    """Raises OSError, and ValueError for what is no text, or more of it than any manifest has."""
    if not path.is_file():  # a pipe would never end
        path.stat()
        raise ValueError("no regular file")
    with path.open(encoding="utf-8") as file:
        text = file.read(LIMIT + 1)
    if len(text) > LIMIT:
        raise ValueError(f"more than {LIMIT} characters")
    return text


def verify(directory: Path) -> list[str]:
    """What is wrong with a wheelhouse, one line for each file; none: all is as listed."""
    try:
        return _compare(directory)
    except OSError as error:
        return [f"{error.filename or directory} can't be read ({error.strerror})"]


def _compare(directory: Path) -> list[str]:
    """Raises OSError."""
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


def build_command(
    house: Wheelhouse, *, python: str = "", arch: str = "", toolkit: str = "", cmake: bool = False
) -> str:
    """What to type to make that wheelhouse again with something added."""
    made = house.manifest
    options = {
        "--python": (*made.pythons, python),
        "--arch": (*made.arches, arch),
        "--toolkit": (*made.toolkits, toolkit),
    }
    words = ["llamafleet", "wheelhouse", "build", house.folder]
    for option, values in options.items():
        for value in dict.fromkeys(values):
            words += [option, value] if value else []
    if made.llama.version != releases()[0].version:
        words += ["--llama-version", made.llama.version]
    words += [] if made.slim else ["--no-slim"]
    words += [] if made.cmake or cmake else ["--no-cmake"]
    return shlex.join(words)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
