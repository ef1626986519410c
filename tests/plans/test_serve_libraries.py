"""Which packages the server of a host gets."""

from __future__ import annotations

from llamafleet.layout import Layout
from llamafleet.plans.network import Network
from llamafleet.plans.serve_libraries import plan_libraries
from llamafleet.protocol.job import LibrariesConfig
from llamafleet.settings import Settings

LAYOUT = Layout.system()


def planned(version: str = "3.12.3") -> LibrariesConfig:
    return plan_libraries(
        Settings(), LAYOUT, Network({}, None, None), python="/usr/bin/python3", version=version
    )


def test_a_folder_is_of_one_minor_version_of_python() -> None:
    assert planned().root == f"/opt/llamafleet/serve/{planned().key}"
    assert planned("3.12.9") == planned()
    assert planned("3.13.1").key != planned().key


def test_each_package_is_pinned_by_its_hash() -> None:
    wanted = planned().requirements
    assert "uvicorn==" in wanted
    assert "--hash=sha256:" in wanted
    assert planned().find_links is None
