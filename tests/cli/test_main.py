"""The command itself."""

from __future__ import annotations

from importlib.metadata import version

from llamafleet import __version__
from tests.cli import run


def test_version_is_the_packages() -> None:
    result = run("--version")
    assert (result.output, result.exit_code) == (f"llamafleet, version {__version__}\n", 0)
    assert version("llamafleet") == __version__, "pyproject.toml and llamafleet/__init__.py differ"
