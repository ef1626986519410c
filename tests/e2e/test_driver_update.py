"""Driver updates on a booted host, from the package manager's run to the next deploy.

The driver is faked at its edges (tests/e2e/fake_driver.py), and a finished CUDA build is planted
with the plan's own inputs: to make one takes 70 CPU minutes. Without a GPU the verification ends in
FAIL; what is seen here is when it runs, under which driver, and what that leaves to be done.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import files as files_of
from pathlib import Path
from typing import Any

import pytest

from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import DRIVER_CHECK_PATH, DRIVER_CHECK_UNIT, VERIFY_UNIT, Layout
from llamafleet.plans.make import make_plan, to_read
from llamafleet.plans.plan import Plan
from llamafleet.protocol.job import BUILD, BuildProduct, Stamp
from llamafleet.settings import Settings
from tests.e2e import fake_driver
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import pyinfra, write_inventory

LACKING = missing_tools() + fake_driver.missing_compiler()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(LACKING), reason=f"to boot a host with a driver: {LACKING} missing"),
]
HOST = "gpu-c"
LAYOUT = Layout.system()
SETTINGS = {"model": "synthetic:tiny-q4_0", "verify_schedule": None}
OLDEST, OLD, NEW, NEWEST = fake_driver.CUDA
NO_LIBRARIES = BuildProduct(
    wheel_bytes=None,
    wheel_sha256=None,
    libraries={},
    units=0,
    llama_cpp_python="0.3.36",
    system_info="",
    import_s=0.0,
)


class GpuHost:
    """The booted host, its driver's packages, and what llamafleet has on it."""

    def __init__(self, booted: BootedHost, folder: Path, debs: Path) -> None:
        self.booted, self.folder = booted, folder
        self.fleet = write_inventory(folder, {HOST: booted.data(**SETTINGS)})
        self.results = booted.tree / LAYOUT.results.lstrip("/")
        self.debs = {}
        for driver in fake_driver.CUDA:
            (debs / driver).mkdir()
            self.debs[driver] = fake_driver.packages(debs / driver, driver)

    def install(self, driver: str, *names: str) -> None:
        """All packages of that driver, or those of these names."""
        debs = self.debs[driver]
        fake_driver.install(self.booted, *(debs[name] for name in names or debs))

    def plan(self) -> Plan:
        settings = Settings.model_validate(SETTINGS)
        script = self.booted.tree / "root/snapshot.sh"
        script.write_text(render(*to_read(settings)))
        snapshot = parse(self.booted.run("sh snapshot.sh").stdout.splitlines())
        return make_plan(HOST, settings, snapshot, LAYOUT)

    def deploy(self, *options: str) -> tuple[int, str]:
        run = pyinfra(self.folder, *(options or ("-y",)), self.fleet, "deploy.py")
        return run.returncode, run.output

    def latest(self) -> dict[str, Any] | None:
        file = self.results / "latest.json"
        return json.loads(file.read_text()) if file.exists() else None

    def stale(self) -> dict[str, Any] | None:
        file = self.results / "stale.json"
        return json.loads(file.read_text()) if file.exists() else None

    def verifications(self) -> int:
        """How many have ended."""
        return len(list(self.results.glob("2*.json")))

    def builds(self) -> set[str]:
        return {path.name for path in (self.booted.tree / LAYOUT.versions.lstrip("/")).iterdir()}

    def passed(self) -> None:
        """Take the last verdict for a PASS: this host has no GPU to earn one."""
        result = self.latest()
        assert result is not None
        inputs = result["inputs"]["gpus"]
        row = {"bus_id": "", "compute_capability": "8.9", "vram_mib": 24564, "verdict": "PASS"}
        rows = [row | dict(zip(("name", "uuid"), g.rsplit(" ", 1), strict=True)) for g in inputs]
        checks = [check | {"status": "pass"} for check in result["checks"]]
        proven = result | {"verdict": "PASS", "gpus": rows, "checks": checks}
        (self.results / "latest.json").write_text(json.dumps(proven))
        self.booted.run(f"systemctl reset-failed {VERIFY_UNIT}")

    def journal(self) -> str:
        units = f"-u {DRIVER_CHECK_UNIT} -u {DRIVER_CHECK_PATH} -u {VERIFY_UNIT}"
        return self.booted.run(f"journalctl --no-pager -o cat {units}").stdout

    def wait(self, until: Callable[[], object], limit: float = 30) -> None:
        deadline = time.monotonic() + limit
        while not until():
            assert time.monotonic() < deadline, self.journal()
            time.sleep(0.2)

    def settled(self) -> None:
        """No check and no verification runs or is about to."""
        jobs = f"systemctl list-jobs; systemctl is-active {DRIVER_CHECK_UNIT} {VERIFY_UNIT}"
        self.wait(lambda: "ing" not in self.booted.run(jobs).stdout.replace("No jobs running.", ""))


def plant_build(host: GpuHost) -> None:
    """The end of a build as planned: its proof, and a venv with all but llama_cpp."""
    build = host.plan().build
    assert build is not None, host.plan().problems
    prefix = LAYOUT.version(build.fingerprint)
    done = host.booted.run(f"mkdir -p {prefix} && {build.python} -m venv --without-pip {prefix}")
    assert done.returncode == 0, done.stderr
    site = next((host.booted.tree / prefix.lstrip("/")).glob("lib/python3*/site-packages"))
    module = next(file for file in files_of("nvidia-ml-py") or () if file.name == "pynvml.py")
    shutil.copy(str(module.locate()), site)
    # By it the folder is known as one that llamafleet has made.
    (host.booted.tree / LAYOUT.zipapp.lstrip("/")).touch()
    inputs = asdict(build.inputs)
    stamp = Stamp(kind="build", key=build.fingerprint, ok=True, finished=1.0, inputs=inputs)
    proof = host.booted.tree / prefix.lstrip("/") / BUILD
    proof.write_text(json.dumps(asdict(stamp) | asdict(NO_LIBRARIES)))


@pytest.fixture(scope="module")
def host(booted: BootedHost, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> GpuHost:
    """Deployed under driver 570 with CUDA 12.8, its verdict taken for a PASS."""
    made = GpuHost(booted, folder, tmp_path_factory.mktemp("debs"))
    fake_driver.plant_hardware(booted)
    fake_driver.plant_compiler(booted)
    for version in ("12.2", "12.8"):
        fake_driver.plant_toolkit(booted, version)
    made.install(OLD)
    booted.reboot()
    plant_build(made)
    _, output = made.deploy()
    result = made.latest()
    assert result and result["inputs"]["driver"] == OLD, output
    assert "gpus_visible" in output, "it fails for want of a GPU, and for no other reason first"
    made.passed()
    code, output = made.deploy()
    assert code == 0 and made.verifications() == 1, output
    return made


def test_a_library_that_is_newer_than_the_module_makes_the_verdict_stale_at_once(
    host: GpuHost,
) -> None:
    host.install(NEW)
    host.wait(host.stale)
    stale = host.stale()
    assert stale and host.latest() is None
    assert stale["reason"] == f"reboot needed: loaded kernel module {OLD}, library {NEW}"
    host.settled()
    assert host.verifications() == 1, "half a driver is not verified"
    code, output = host.deploy()
    assert code != 0 and "next: sudo reboot" in output, output
    assert "a driver update takes effect at the next boot" in output


def test_after_the_boot_it_is_verified_once_by_itself(host: GpuHost) -> None:
    builds = host.builds()
    host.booted.reboot()
    host.wait(host.latest)
    host.settled()
    result, wanted = host.latest(), host.plan().verify
    assert result and wanted and host.verifications() == 2, host.journal()
    assert result["inputs"]["driver"] == NEW and result["verdict"] == "FAIL"
    assert (result["key"], result["inputs"]) == (
        wanted.key,
        json.loads(json.dumps(asdict(wanted.config.inputs))),
    )
    assert host.stale() is None
    assert f"the driver changed from {OLD} to {NEW}" in host.journal()
    host.passed()
    code, output = host.deploy()
    assert code == 0 and "verify: not needed" in output, output
    assert host.verifications() == 2 and host.builds() == builds


def test_packages_that_are_none_of_the_drivers_start_nothing(host: GpuHost, tmp_path: Path) -> None:
    """Many runs of dpkg in a short time, as those of one upgrade."""
    for number in range(8):
        fake_driver.install(
            host.booted, fake_driver.package(tmp_path, "other", f"{number}", {}, "true")
        )
    host.settled()
    assert host.journal().count(f"driver {NEW} is the one that was verified") > 1
    assert host.booted.run(f"systemctl is-active {DRIVER_CHECK_PATH}").stdout == "active\n"
    assert host.verifications() == 2 and host.latest() and host.stale() is None


SQLITE = """import sqlite3
db = sqlite3.connect("/{path}/rpmdb.sqlite")
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE IF NOT EXISTS packages (hnum INTEGER)")
db.execute("INSERT INTO packages VALUES (1)")
db.commit()"""


@pytest.mark.parametrize(
    ("path", "change"),
    [
        # rpm has an SQLite database with a write-ahead log, pacman a folder for each package.
        ("usr/lib/sysimage/rpm", f"python3 -c '{SQLITE}'"),
        ("var/lib/rpm", f"python3 -c '{SQLITE}'"),
        ("var/lib/pacman/local", "mkdir /{path}/nvidia-utils-580.95.05-1"),
    ],
)
def test_the_databases_of_other_package_managers_are_watched(
    host: GpuHost, path: str, change: str
) -> None:
    (host.booted.tree / path).mkdir(parents=True)
    host.settled()
    before = host.journal().count("is the one that was verified")
    assert host.booted.run(change.format(path=path)).returncode == 0
    host.wait(lambda: host.journal().count("is the one that was verified") > before)


def test_packages_that_disagree_are_named(host: GpuHost) -> None:
    host.install(NEWEST, "libnvidia-ml1")
    host.wait(host.stale)
    assert host.latest() is None
    code, output = host.deploy()
    assert code != 0 and "a reboot alone will not help" in output, output
    assert f"libnvidia-ml1 {NEWEST}" in output and f"nvidia-smi {NEW}" in output
    assert "next: sudo reboot" not in output


def test_a_driver_that_is_whole_again_is_verified_again(host: GpuHost) -> None:
    host.install(NEW, "libnvidia-ml1")
    host.wait(host.latest)
    host.settled()
    result = host.latest()
    assert result and result["inputs"]["driver"] == NEW and host.stale() is None
    assert host.verifications() == 3


def test_a_driver_too_old_for_the_toolkit_waits_for_a_deploy(host: GpuHost) -> None:
    host.passed()
    host.install(OLDEST)
    host.booted.reboot()
    host.settled()
    stale = host.stale()
    assert stale and host.latest() is None and host.verifications() == 3, host.journal()
    assert f"from {NEW} to {OLDEST}" in stale["reason"]
    said = "it runs CUDA up to 12.2, and the build's toolkit is 12.8: a new run is needed"
    assert said in stale["reason"] and said in host.journal()
    assert "pyinfra -y inventory deploy.py" in stale["next"]
    code, output = host.deploy("--dry")
    assert code == 0 and "toolkit: use CUDA 12.2 at /usr/local/cuda-12.2" in output, output
    assert "build: build" in output and "toolkit 12.8 -> 12.2" in output


def test_uninstall_leaves_no_unit(host: GpuHost) -> None:
    run = pyinfra(host.folder, "-y", host.fleet, "uninstall.py")
    assert run.returncode == 0, run.output
    listed = "systemctl list-unit-files 'llamafleet*' --no-legend; "
    listed += "systemctl list-units --all 'llamafleet*' --no-legend; "
    listed += "find /etc/systemd -name 'llamafleet*'"
    assert host.booted.run(listed).stdout == ""
