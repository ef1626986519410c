"""What uninstall sees of llamafleet on a host."""

from __future__ import annotations

from pathlib import Path

from llamafleet.plans.plan import managed_paths
from operations.uninstall import traces
from tests.facts.fakehost import FakeHost


def test_a_run_that_ended_with_its_packages_is_seen(tmp_path: Path) -> None:
    """The record of packages comes before the account, the tools and any job."""
    host = FakeHost(tmp_path)
    host.files = managed_paths(host.layout)
    assert traces(host.snapshot(), host.layout) == []
    record = Path(host.layout.installed_packages)
    host.write(record, "g++\n")
    assert traces(host.snapshot(), host.layout) == [str(record)]
