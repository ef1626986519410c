"""What all tests share: frozen tables, and when they run in several processes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from _pytest.terminal import TerminalReporter

from llamafleet.tables import overlaid
from tests import compiled
from tests.frozen_tables import FROZEN

# Set, each python that a test starts would compile all that it imports; and no user has it set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture
def frozen_tables() -> Iterator[None]:
    with overlaid(FROZEN):
        yield


@pytest.fixture(autouse=True, scope="module")
def _unpatched() -> Iterator[None]:
    """pyinfra's command line patches the standard library, and pytest-xdist would hang up."""
    yield
    assert "pyinfra_cli" not in sys.modules, "run pyinfra's command line in a process of its own"


LONGEST = (
    *("test_ssh", "test_local", "test_cuda", "test_connection", "test_boundary", "test_sandbox"),
    *("test_home", "test_units", "test_install", "test_fleet", "test_build", "test_compilercache"),
    *("test_run", "test_loop", "test_wheelhouse", "test_secrets", "test_deploy", "test_plan"),
)
"""Files of a minute and more, end-to-end and others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that at the end no process works while the others are done.

    End-to-end files before others, then those of most tests; the order in a file stays.
    """
    sizes = Counter(item.path for item in items)
    whole = {item.path for item in items if item.get_closest_marker("e2e")}

    def rank(item: pytest.Item) -> tuple[bool, int, int, str]:
        path, last = item.path, len(LONGEST)
        listed = LONGEST.index(path.stem) if path.stem in LONGEST else last
        return path not in whole, listed, -sizes[path], str(path)

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """How many inputs the fuzz targets were given."""
    counts = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "inputs"
    ]
    if counts:
        terminalreporter.write_line(f"fuzz: {sum(counts)} inputs for {len(counts)} targets")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Two for each core, since many tests wait; fewer where hosts are booted, which build.

    There one more than cores where those builds find most of it compiled (tests/compiled.py). One
    where a GPU is measured, which must have the machine for itself.
    """
    cores = len(os.sched_getaffinity(0))
    if "not gpu" not in config.option.markexpr:
        return 0
    if "not e2e" in config.option.markexpr:
        return 2 * cores
    return cores + 1 if compiled.URL else max(2, cores // 2)
