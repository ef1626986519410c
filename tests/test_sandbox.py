"""What units may do, as systemd judges it; on booted hosts: tests/e2e/test_sandbox.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from llamafleet import sandbox
from llamafleet.layout import Layout
from llamafleet.sandbox import OLDEST, Kind, Property

SYSTEM, USER = Layout.system(), Layout.user("/home/ada")
LIMITS: dict[Kind, float] = {
    **{"verify": 2.5, "driver-check": 2.5, "metrics": 2.5, "build": 4.0, "packages": 4.0},
    **{"serve": 2.5, "serve-public": 2.5},
}
"""Of systemd-analyze security's exposure, 0 to 10."""


def exposure(properties: tuple[Property, ...], folder: Path) -> float:
    """Of a service with these properties, as systemd-analyze judges it from the file alone."""
    unit = folder / "one.service"
    unit.write_text("\n".join(["[Service]", "ExecStart=/bin/true", *map(str, properties), ""]))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "", "systemd understands every line"
    said = re.search(r"Overall exposure level for one.service: ([\d.]+)", done.stdout)
    assert said, done.stdout
    return float(said[1])


offline = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine"
)


@offline
@pytest.mark.parametrize("kind", LIMITS)
def test_exposure_is_within_its_limit(kind: Kind, tmp_path: Path) -> None:
    assert exposure(sandbox.of(kind, SYSTEM), tmp_path) <= LIMITS[kind]


@offline
@pytest.mark.parametrize("kind", ["verify", "driver-check", "build", "serve"])
def test_it_is_so_with_what_the_oldest_systemd_knows(kind: Kind, tmp_path: Path) -> None:
    known = tuple(one for one in sandbox.of(kind, SYSTEM) if one.since <= OLDEST)
    assert exposure(known, tmp_path) <= LIMITS[kind]


@offline
def test_a_user_s_own_manager_gets_what_it_can_do(tmp_path: Path) -> None:
    ours = sandbox.of("verify", USER)
    assert exposure(ours, tmp_path) < exposure((Property("NoNewPrivileges", "yes"),), tmp_path)
    names = {one.name for one in ours}
    assert {"NoNewPrivileges", "SystemCallFilter"} <= names
    assert not {"User", "DeviceAllow", "ProtectSystem", "PrivateNetwork"} & names


@pytest.mark.parametrize("kind", get_args(Kind))
def test_systemd_run_is_told_nothing_that_it_would_refuse(kind: Kind) -> None:
    every = [f"--property={one}" for one in sandbox.of(kind, SYSTEM)]
    assert list(sandbox.transient(kind, SYSTEM, 252)) == every
    for unknown in (0, OLDEST):
        told = sandbox.transient(kind, SYSTEM, unknown)
        assert set(told) <= set(every)
        # First in 242, 244, 245, 247 and 248: systemd.exec(5).
        newer = (
            "PrivateIPC|ProtectHostname|RestrictSUIDSGID|ProtectKernelLogs|ProtectClock|ProtectProc"
        )
        assert not re.search(newer, " ".join(told))
    assert len(sandbox.transient(kind, SYSTEM, 245)) <= len(every)


def test_a_verification_alone_sees_whose_a_process_is() -> None:
    """Of one that holds a GPU it names the user. Hidden are all others' processes to a build."""
    values = {
        kind: [one.value for one in sandbox.of(kind, SYSTEM) if one.name == "ProtectProc"]
        for kind in ("verify", "driver-check", "build")
    }
    assert values == {"verify": ["noaccess"], "driver-check": ["invisible"], "build": ["invisible"]}


def test_root_and_the_account_are_told_apart() -> None:
    account = ("verify", "driver-check", "build", "serve", "serve-public")
    for kind in get_args(Kind):
        assert (Property("User", "llamafleet") in sandbox.of(kind, SYSTEM)) is (kind in account)


def test_only_its_own_folders_are_written_by_the_account() -> None:
    def written(kind: Kind) -> list[str]:
        (one,) = (p.value for p in sandbox.of(kind, SYSTEM) if p.name == "ReadWritePaths")
        return one.split()

    assert written("verify") == written("driver-check") == ["-/var/lib/llamafleet"]
    assert written("build") == [
        *("-/var/lib/llamafleet", "-/opt/llamafleet/versions", "-/opt/llamafleet/toolkits"),
        "-/opt/llamafleet/serve",
    ]
    assert written("serve") == ["-/var/lib/llamafleet/serve", "-/var/lib/llamafleet/cuda-cache"]


def test_a_service_reaches_beyond_its_host_only_where_it_is_to() -> None:
    def network(kind: Kind) -> list[str]:
        return [str(p) for p in sandbox.of(kind, SYSTEM) if p.name.startswith("IPAddress")]

    assert network("serve") == ["IPAddressDeny=any", "IPAddressAllow=localhost"]
    assert network("serve-public") == []
