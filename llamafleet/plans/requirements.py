"""What pip installs on a host: pinned, each file with its sha256."""

from __future__ import annotations

from llamafleet.settings import Settings
from llamafleet.tables import text


def host_requirements() -> str:
    """Build backend and run-time packages of a build's environment, for each supported Python."""
    return text("host-requirements.txt")


def toolkit_requirements(version: str) -> str:
    """Wheels of a CUDA Toolkit; install them with --no-deps.

    Raises FileNotFoundError where none are pinned for `version` (major.minor).
    """
    return text(f"toolkit-wheels-{version}.txt")


def llama_requirement(settings: Settings) -> str:
    """One line for pip --require-hashes: the sdist of llama-cpp-python."""
    return f"llama-cpp-python=={settings.llama_version} --hash=sha256:{settings.llama_sha256}"
