"""The packages job by the real apt and dpkg on a booted host: a compiler, and nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.layout import USER, Layout
from llamafleet.plans.packages import plan_packages_job
from llamafleet.plans.plan import PackagesPlan
from llamafleet.settings import Settings
from llamafleet.zipapps import host_zipapp
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.cuda_repository import index, package
from tests.hosts.recorded import load

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "pkg-a"
LAYOUT = Layout.system()
HOLD = """\
import fcntl, sys, time
lock = open("/var/lib/apt/lists/lock", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def host(booted: BootedHost) -> BootedHost:
    """One with the account and the zipapp, and with one source: a driver's packages alone."""
    assert booted.run(f"useradd --system --create-home {USER}").returncode == 0
    zipapp = booted.tree / LAYOUT.zipapp.lstrip("/")
    zipapp.parent.mkdir(parents=True)
    zipapp.write_bytes(host_zipapp())
    (booted.tree / "etc/llamafleet/jobs").mkdir(parents=True)
    (booted.tree / "root/hold.py").write_text(HOLD)
    booted.run("mv /etc/apt/sources.list /root/debian.list; rm -rf /var/lib/apt/lists/*")
    cuda = booted.tree / "srv/cuda"
    cuda.mkdir()
    for name in ("libnvidia-gl-580", "nvidia-driver-580"):
        package(cuda, booted.tree / "srv" / name, name, "580.95")
    (cuda / "Packages").write_text(index(cuda))
    source = booted.tree / "etc/apt/sources.list.d/cuda.list"
    source.write_text("deb [trusted=yes] file:/srv/cuda ./\n")
    return booted


def job(host: BootedHost, *names: str) -> dict[str, Any]:
    """The stamp of the job of root that installs these."""
    snapshot = replace(load("cpu-debian12").snapshot, package_manager="apt", jobs=())
    made = plan_packages_job(
        PackagesPlan(names), Settings(), snapshot, LAYOUT, snapshot.pythons[0].path
    )
    assert isinstance(made, PackagesPlan) and made.config and made.job
    config = host.tree / made.job.config.lstrip("/")
    config.write_text(json.dumps(asdict(made.config)))
    stamp = host.tree / made.job.folder.lstrip("/") / "stamp.json"
    stamp.unlink(missing_ok=True)
    told = f"--kind packages --config {made.job.config} --dir {made.job.folder}"
    done = host.run(
        f"systemd-run --quiet --collect --unit=llamafleet-packages-test --wait "
        f"python3 -I {LAYOUT.zipapp} job {told}"
    )
    assert stamp.exists(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(stamp.read_text())
    return found


def failed(host: BootedHost, *names: str) -> str:
    stamp = job(host, *names)
    assert not stamp["ok"], stamp
    return str(stamp["error"]["lines"][0])


def test_g_plus_plus_is_no_pattern_that_a_driver_matches(host: BootedHost) -> None:
    """With a CUDA repository alone readable, `apt-get install g++` installed driver packages."""
    lax = host.run("apt-get update -qq; apt-get install -s -y g++").stdout
    assert "Inst libnvidia-gl-580" in lax, lax
    said = failed(host, "g++")
    assert said.startswith("apt: found no package g++; expected it in the host's repositor"), said
    assert host.run("dpkg-query -W '*nvidia*'").stdout == ""
    assert not (host.tree / LAYOUT.installed_packages.lstrip("/")).exists()


def test_lists_that_can_t_be_read_are_told(host: BootedHost) -> None:
    source = host.tree / "etc/apt/sources.list.d/gone.list"
    source.write_text("deb http://127.0.0.1:9/debian bookworm main\n")
    said = failed(host, "g++")
    assert "apt: found no package g++ (of its lists: " in said
    assert "Could not connect to 127.0.0.1:9" in said, said
    source.unlink()


def test_an_interrupted_dpkg_is_told_by_its_own_words(host: BootedHost) -> None:
    updates = host.tree / "var/lib/dpkg/updates/0001"
    updates.touch()
    said = failed(host, "g++")
    assert "dpkg was interrupted" in said and said.endswith("sudo dpkg --configure -a"), said
    updates.unlink()


def test_locked_lists_are_waited_for_and_a_compiler_runs(host: BootedHost) -> None:
    """As by the updates of a host that has just booted."""
    host.run("mv /root/debian.list /etc/apt/sources.list")
    host.run("systemd-run --quiet python3 /root/hold.py 20; sleep 1")
    begun = time.monotonic()
    stamp = job(host, "g++")
    assert stamp["ok"], stamp
    assert time.monotonic() - begun > 15
    assert stamp["packages"][0].startswith("g++ 4:12")
    assert list(stamp["phases"]) == ["start", "index", "simulate", "install", "check"]
    assert host.run("g++ --version").returncode == 0
    record = host.tree / LAYOUT.installed_packages.lstrip("/")
    assert record.read_text() == "g++\n" and record.stat().st_uid == 0
    assert host.run("dpkg-query -W '*nvidia*'").stdout == ""
    log = Path(host.tree / "opt/llamafleet/jobs/packages/gxx/packages.log").read_text()
    assert "held by process" in log and "python3" in log


def test_it_is_asked_again_and_changes_nothing(host: BootedHost) -> None:
    stamp = job(host, "g++")
    assert stamp["ok"] and stamp["packages"][0].startswith("g++ 4:12")
    assert (host.tree / LAYOUT.installed_packages.lstrip("/")).read_text() == "g++\n"


def test_a_compiler_that_the_account_can_t_run_is_none(host: BootedHost) -> None:
    host.run("chmod 700 /usr/bin/g++-12 /usr/bin/x86_64-linux-gnu-g++-12")
    said = failed(host, "g++")
    assert said.startswith("compiler: found can't run /usr/bin/g++"), said
    host.run("chmod 755 /usr/bin/g++-12 /usr/bin/x86_64-linux-gnu-g++-12")
