"""A host that the code of 2026-11-25 deployed, taken over by today's: nothing is built again.

before.tar.xz is that code (deploy.py, uninstall.py, llamafleet/, operations/, templates/ of commit
cc0f004): it deploys the host itself, so that units, zipapp, settings, stamp and result are its own.
The build is planted, with the stamp that it writes, as one takes minutes; so the verification of
then finds no llama_cpp, and its verdict is set to what it would have been.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from llamafleet.layout import VERIFY_TIMER, Layout
from tests.e2e import fake_driver
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import Run, environment, pyinfra, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-t"
LAYOUT = Layout.system()
SETTINGS: dict[str, object] = {"accelerator": "auto", "model": "synthetic:tiny-q4_0"}
STAMP: dict[str, Any] = {
    "version": 1, "kind": "build", "started": 1795654821.05, "finished": 1795655134.57,
    "wall_s": 313.518, "cpu_s": 392.16, "max_rss_mib": 616.9,
    "phases": {"start": 0.0, "resolve": 9.615, "configure": 1.034, "compile": 300.98, "link": 0.16,
               "install": 1.532, "check": 0.197},
    "ok": True, "wheel_bytes": 4426211, "libraries": {}, "units": 135,
    "llama_cpp_python": "0.3.36", "system_info": "CPU : SSE3 = 1 | ", "import_s": 0.107,
}  # fmt: skip


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the code of then."""
    folder = tmp_path_factory.mktemp("then")
    with tarfile.open(Path(__file__).with_name("before.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / "before"


@pytest.fixture(scope="module")
def fleet(booted: BootedHost, folder: Path, before: Path) -> str:
    """The name of the inventory, the same in both checkouts."""
    fake_driver.plant_compiler(booted)
    name = write_inventory(folder, {HOST: booted.data(**SETTINGS)})
    shutil.copy(folder / name, before)
    return name


def in_tree(host: BootedHost, path: str) -> Path:
    return host.tree / path.lstrip("/")


def current(host: BootedHost) -> str:
    return host.run(f"readlink {LAYOUT.current}").stdout.strip()


@pytest.fixture(scope="module")
def deployed(booted: BootedHost, before: Path, fleet: str) -> str:
    """The build that the old code made current, by fingerprint."""
    command = [sys.executable, "-c", "from llamafleet.cli import main; main()", "plan", HOST]
    planned = subprocess.run(
        [*command, "--inventory", fleet, "--json"],
        cwd=before,
        env=environment(before),
        capture_output=True,
        text=True,
        check=True,
    )
    build = json.loads(planned.stdout)["plan"]["build"]
    prefix = LAYOUT.version(build["fingerprint"])
    done = booted.run(f"mkdir -p {prefix} && {build['python']} -m venv --without-pip {prefix}")
    assert done.returncode == 0, done.stderr
    folder = in_tree(booted, LAYOUT.job("build", build["fingerprint"]))
    folder.mkdir(parents=True)
    stamp = STAMP | {"key": build["fingerprint"], "inputs": build["inputs"]}
    (folder / "stamp.json").write_text(json.dumps(stamp, indent=1))
    run = pyinfra(before, "-y", fleet, "deploy.py")
    latest = in_tree(booted, f"{LAYOUT.results}/latest.json")
    result = json.loads(latest.read_text())
    assert result["version"] == 1 and result["verdict"] == "FAIL", run.output
    checks = [check | {"status": "pass"} for check in result["checks"]]
    latest.write_text(json.dumps(result | {"verdict": "CPU ONLY", "checks": checks}))
    booted.run("systemctl reset-failed llamafleet-verify.service")
    return str(build["fingerprint"])


@pytest.fixture(scope="module")
def taken(deployed: str, folder: Path, fleet: str) -> Run:
    return pyinfra(folder, "-y", fleet, "deploy.py")


def test_it_is_taken_over_without_a_build(booted: BootedHost, deployed: str, taken: Run) -> None:
    assert taken.returncode == 0, taken.output
    assert f"build: none {deployed}" in taken.output, taken.output
    assert "verify: not needed" in taken.output and "CPU ONLY" in taken.output
    assert current(booted) == LAYOUT.version(deployed)
    builds = in_tree(booted, f"{LAYOUT.state}/build")
    assert [path.name for path in builds.iterdir()] == [deployed]
    config = json.loads(in_tree(booted, LAYOUT.verify_config).read_text())
    assert "bench" not in config and config["inputs"]["bench"]["prompt"] == 512


def test_the_host_is_then_this_codes_own(
    booted: BootedHost, folder: Path, fleet: str, taken: Run
) -> None:
    again = pyinfra(folder, "-y", "--json", fleet, "deploy.py")
    assert again.returncode == 0 and again.unchanged, again.output
    assert booted.run(f"systemctl is-enabled {VERIFY_TIMER}").stdout.strip() == "enabled"
    booted.run("systemctl start llamafleet-verify.service")
    result = json.loads(in_tree(booted, f"{LAYOUT.results}/latest.json").read_text())
    assert result["version"] == 2, "the new verification runs with the new settings"


def test_it_leaves_no_trace(booted: BootedHost, folder: Path, fleet: str, taken: Run) -> None:
    run = pyinfra(folder, "-y", fleet, "uninstall.py")
    assert run.returncode == 0, run.output
    left = booted.run(
        "find / -xdev -name '*llamafleet*' -not -path '/proc/*' -not -path '/var/log/*'"
    )
    assert left.stdout == "", left.stdout
    assert booted.run("getent passwd llamafleet").returncode != 0
