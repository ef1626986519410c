"""What pip installs on a host: pinned, each file with its sha256."""

from __future__ import annotations

from llamafleet.settings import Settings
from llamafleet.tables import text
from llamafleet.tables.pinned import CACHE, HOST, SERVE, pins, pip_line, toolkit_file
from llamafleet.wheelhouse.manifest import Manifest


def host_requirements(house: Manifest | None = None) -> str:
    """Build backend and run-time packages of a build's environment; of a wheelhouse what it has.

    Hashes and packages that are not in it are left out.
    """
    return _served(HOST, house)


def cache_requirements(house: Manifest | None = None) -> str:
    """The compiler cache itself; "" where the wheelhouse has none."""
    return _served(CACHE, house)


def serve_requirements(house: Manifest | None = None) -> str:
    """The server's own packages, of a wheelhouse what it has."""
    return _served(SERVE, house)


def _served(file: str, house: Manifest | None) -> str:
    if house is None:
        return text(file)
    there = {row.sha256 for row in house.files.values()}
    served = [(pin, [value for value in pin.sha256 if value in there]) for pin in pins(file)]
    return "".join(pip_line(str(pin.requirement), hashes) for pin, hashes in served if hashes)


def toolkit_requirements(version: str) -> str:
    """Wheels of a CUDA Toolkit; install them with --no-deps.

    Raises FileNotFoundError where none are pinned for `version` (major.minor).
    """
    return text(toolkit_file(version))


def llama_requirement(settings: Settings, house: Manifest | None = None) -> str:
    """One line for pip --require-hashes: the source archive of llama-cpp-python.

    The one in a wheelhouse may be cut, and has another hash then.
    """
    sha256 = house.llama.sha256 if house else settings.llama_sha256
    return f"llama-cpp-python=={settings.llama_version} --hash=sha256:{sha256}"
