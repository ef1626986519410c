"""The hosts that the tests boot are apart from each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.booted import BootedHost, boot, missing_tools

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]

HIERARCHIES = ("name=systemd:", "::")


def groups_of(host: BootedHost) -> set[str]:
    """The control groups of its first process, in the hierarchies that systemd keeps."""
    lines = Path(f"/proc/{min(host.processes('systemd'))}/cgroup").read_text().splitlines()
    return {line for line in lines if any(name in line for name in HIERARCHIES)}


def test_two_hosts_share_no_control_group(tmp_path: Path) -> None:
    """Else one that ends a unit takes the other's group of that name away under its processes."""
    hosts = [boot(name, tmp_path) for name in ("apart-a", "apart-b")]
    try:
        one, other = map(groups_of, hosts)
        assert one and not one & other, (one, other)
    finally:
        for host in hosts:
            host.stop()
    assert not [group for host in hosts for group in host.groups if group.exists()]
