"""Units on a booted host: how exposed systemd finds them, what they can't do, that they work.

Exposure is measured of the units that systemd runs, transient ones while they run.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamafleet import sandbox
from llamafleet.layout import AS_ACCOUNT, DEVICES_UNIT, DRIVER_CHECK_UNIT, VERIFY_UNIT, Layout
from llamafleet.managed import by_path
from llamafleet.render import content
from llamafleet.sandbox import Kind
from llamafleet.settings import Settings
from tests.e2e.booted import BootedHost, boot, missing_tools
from tests.e2e.runs import Run, latest, pyinfra, write_inventory
from tests.test_render import PLAN
from tests.test_sandbox import LIMITS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-s"
LAYOUT = Layout.system()
JOBS: dict[str, Kind] = {"build": "build", "toolkit": "build", "packages": "packages"}
"""By the kind of a job, which its unit's name tells. That of a toolkit by apt or dnf is root's."""
JOB = rf"^llamafleet-(?:{'|'.join(JOBS)})-\S+"

# Users and groups, capabilities of files, alternatives, triggers that run as another user, units
# that are started, the message bus told to read again; g++ is what a build misses.
PACKAGES = "g++ man-db libcap2-bin cron polkitd dnsmasq"


def systemd_of(host: BootedHost) -> int:
    return int(host.run("systemctl --version").stdout.split()[1])


def exposure(host: BootedHost, unit: str) -> float | None:
    """None: the unit is gone."""
    said = host.run(f"systemd-analyze security --no-pager {unit}").stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    return float(found[1]) if found else None


class Watch:
    """Measures each unit of a job that is seen to run."""

    def __init__(self, host: BootedHost) -> None:
        self.seen: dict[str, float] = {}
        self._host, self._done = host, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.5):
            listed = self._host.run("systemctl list-units --plain --no-legend 'llamafleet-*'")
            for unit in re.findall(
                r"^llamafleet-(?:build|toolkit|packages)-\S+", listed.stdout, re.M
            ):
                if unit not in self.seen and (found := exposure(self._host, unit)) is not None:
                    self.seen[unit] = found


def run_as(host: BootedHost, kind: Kind, command: str, unit: str, *more: str) -> tuple[int, str]:
    """Exit status and output of a command in a transient unit of this kind."""
    options = shlex.join((*sandbox.transient(kind, LAYOUT, systemd_of(host)), *more))
    done = host.run(
        f"systemd-run --quiet --collect --wait --pipe --unit={unit} {options} "
        f"sh -c {shlex.quote(command)} 2>&1"
    )
    return done.returncode, done.stdout


@contextmanager
def real_device_rules(name: str) -> Iterator[None]:
    """Let the systemd of a host named so rule devices: by BPF, in the unified hierarchy."""
    settings = Path(f"/run/systemd/nspawn/{name}.nspawn")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[Exec]\nCapability=CAP_BPF CAP_NET_ADMIN\nSystemCallFilter=bpf\n")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            yield
    finally:
        settings.unlink()


@pytest.fixture(scope="module", params=["bookworm", pytest.param("trixie", marks=pytest.mark.long)])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedHost]:
    """With the account and its folders, as the pipeline makes them: systemd 252 and 257."""
    with real_device_rules(HOST):
        booted = boot(HOST, tmp_path_factory.mktemp("hosts"), suite=request.param)
    yield prepared(booted)
    booted.stop()


def prepared(booted: BootedHost) -> BootedHost:
    done = booted.run(
        "useradd --system --user-group --no-create-home llamafleet && "
        f"install -d -o llamafleet {LAYOUT.state} && install -d {LAYOUT.prefix} {LAYOUT.etc} && "
        f"install -d -o llamafleet {LAYOUT.versions} {LAYOUT.toolkits} && "
        "install -d -o llamafleet /home/ada /var/crash && touch /home/ada/model.gguf && "
        "chmod 666 /dev/net/tun"
    )
    assert done.returncode == 0, done.stderr
    return booted


TRACE = "import ctypes; raise SystemExit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0)"
FORBIDDEN: dict[Kind, dict[str, str]] = {
    "build": {
        "write in a home, its own too": "touch /home/ada/x",
        "write in /var": "touch /var/crash/x",
        "see a process of another account": "cat /proc/1/cmdline",
        "make a file that gives its rights away": f"cd {LAYOUT.state} && touch s && chmod 4755 s",
        "make a namespace": "unshare --user true",
        "trace a process": f"python3 -c {shlex.quote(TRACE)}",
        "use a device": "exec 3<>/dev/net/tun",
    },
    "verify": {
        "write a build": f"touch {LAYOUT.versions}/x",
        "use the network": "python3 -c 'import socket; socket.socket()'",
        "see a process of another account": "cat /proc/1/cmdline",
        "change an owner": f"touch {LAYOUT.state}/o && chown llamafleet {LAYOUT.state}/o",
        "use a device that is no GPU": "exec 3<>/dev/net/tun",
    },
    "packages": {
        "write in a home": "touch /home/ada/x",
        "mount": "mount -t tmpfs none /mnt && umount /mnt",
        "make a namespace": "unshare --uts true",
        "rename the host": 'hostname "$(hostname)"',
        "trace a process": f"python3 -c {shlex.quote(TRACE)}",
    },
}


@pytest.mark.parametrize(
    ("kind", "what"), [(kind, what) for kind, cases in FORBIDDEN.items() for what in cases]
)
def test_what_it_can_not_do(host: BootedHost, kind: Kind, what: str) -> None:
    """It is done by the same account outside."""
    command = FORBIDDEN[kind][what]
    rights = () if kind == "packages" else AS_ACCOUNT
    outside = host.run(shlex.join((*rights[:-1], "sh", "-c", command)))
    assert outside.returncode == 0, outside.stderr
    status, said = run_as(host, kind, command, "probe")
    assert status != 0, said


def test_what_the_account_needs_it_can(host: BootedHost) -> None:
    """A compiler runs what it made below its TMPDIR; a model may lie in a home."""
    status, said = run_as(
        host,
        "build",
        f"set -e; cp /bin/true {LAYOUT.state}/t; {LAYOUT.state}/t; cp /bin/true /tmp/t; /tmp/t; "
        f"touch {LAYOUT.versions}/n {LAYOUT.toolkits}/n; nproc; cat /home/ada/model.gguf; "
        "python3 -c 'import socket; socket.create_server((\"127.0.0.1\", 0))'; test $(id -u) != 0",
        "probe",
    )
    assert status == 0, said


def test_a_verification_is_told_whose_a_process_is(host: BootedHost) -> None:
    """Of one that holds a GPU it names the user; a build need not know."""
    whose = "stat --format=%U /proc/1"
    assert run_as(host, "verify", whose, "probe") == (0, "root\n")
    assert run_as(host, "build", whose, "probe")[0] != 0


def test_devices_are_let_in_by_class(host: BootedHost) -> None:
    """As GPUs are, whose class the kernel numbers when their driver is loaded."""
    use = "exec 3<>/dev/net/tun"
    assert run_as(host, "verify", use, "probe")[0] != 0
    assert run_as(host, "verify", use, "probe", "--property=DeviceAllow=char-mis* rw") == (0, "")


def test_packages_are_installed_for_real(host: BootedHost) -> None:
    command = (
        "export DEBIAN_FRONTEND=noninteractive; apt-get -q update && "
        f"apt-get -qy --no-install-recommends install {PACKAGES} && "
        "cp /bin/true /usr/local/bin/t && setcap cap_net_raw=ep /usr/local/bin/t"
    )
    with Watch(host) as watch:
        status, said = run_as(host, "packages", command, "llamafleet-packages-test")
    assert status == 0, said
    assert not re.search("(?i)not permitted|denied|read-only", said), said
    assert 0 < watch.seen["llamafleet-packages-test.service"] <= LIMITS["packages"], watch.seen
    checks = (
        "dpkg --audit",
        f"dpkg-query -W -f '${{Status}}\\n' {PACKAGES} | sort -u",
        "getcap /usr/local/bin/t",
        "getent passwd polkitd",
        "systemctl is-active cron",
        "echo 'int main(){}' | g++ -x c++ - -o /tmp/a && /tmp/a && c++ --version | head -n 1",
        "test -s /var/cache/man/index.db && echo indexed",
    )
    found = [host.run(check).stdout.strip() for check in checks]
    assert found[:3] == ["", "install ok installed", "/usr/local/bin/t cap_net_raw=ep"], found
    assert found[3].startswith("polkitd:x:") and found[4] == "active", found
    assert found[5].startswith("c++ ") and found[6] == "indexed", found


@pytest.fixture(scope="module")
def deployed(host: BootedHost, folder: Path) -> tuple[Run, Watch]:
    """A real build and a real verification on the CPU."""
    if systemd_of(host) > 252:
        pytest.skip("a build takes minutes: once is enough")
    fleet = write_inventory(
        folder, {HOST: host.data(accelerator="cpu", model="synthetic:tiny-q4_0")}, "sandbox"
    )
    with Watch(host) as watch:
        run = pyinfra(folder, "-y", fleet, "deploy.py", limit=2400)
    return run, watch


@pytest.mark.long
def test_a_build_and_a_verification_end_well(
    deployed: tuple[Run, Watch], folder: Path, host: BootedHost
) -> None:
    run, _ = deployed
    assert run.returncode == 0, run.output
    assert latest(folder, HOST)["verdict"] == "CPU ONLY"


@pytest.mark.long
def test_jobs_are_measured_while_they_run(deployed: tuple[Run, Watch]) -> None:
    _, watch = deployed
    kinds = {unit: unit.split("-")[1] for unit in watch.seen}
    assert "build" in kinds.values(), watch.seen
    for unit, kind in kinds.items():
        assert watch.seen[unit] <= LIMITS[JOBS[kind]], watch.seen


@pytest.mark.long
def test_the_verification_is_within_its_limit(
    deployed: tuple[Run, Watch], host: BootedHost
) -> None:
    found = exposure(host, VERIFY_UNIT)
    assert found is not None and found <= LIMITS["verify"]
    # By hand too, as the README says.
    again = host.run(f"systemctl start {VERIFY_UNIT}; journalctl -u {VERIFY_UNIT} -n 20")
    assert host.run(f"systemctl is-failed {VERIFY_UNIT}").stdout.strip() == "inactive", again.stdout


def test_the_driver_s_modules_are_loaded_before_a_gpu_is_used(host: BootedHost) -> None:
    """Device classes count that are there when a unit starts; the tool that makes them is faked."""
    tree = host.tree
    for path, row in by_path(LAYOUT).items():
        if row.unit in (DEVICES_UNIT, DRIVER_CHECK_UNIT):
            text = content(row, PLAN, Settings(), LAYOUT)
            (tree / path.lstrip("/")).write_bytes(text)
    tool = tree / "usr/bin/nvidia-modprobe"
    tool.write_text('#!/bin/sh\necho "$@" > /run/modprobe.txt\n')
    tool.chmod(0o755)
    host.run(f"systemctl daemon-reload; systemctl start {DRIVER_CHECK_UNIT}")
    time.sleep(0.5)
    assert host.run("cat /run/modprobe.txt").stdout == "-u -c=0\n"
    found = exposure(host, DRIVER_CHECK_UNIT)
    assert found is not None and found <= LIMITS["driver-check"]
    rules = host.run(f"systemctl show -p DeviceAllow -p DevicePolicy {DRIVER_CHECK_UNIT}").stdout
    assert "DevicePolicy=closed" in rules and "char-nvidia*" in rules
