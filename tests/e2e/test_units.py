"""Units that somebody changes by hand on a booted host: the next run finds and repairs them.

Driver and build are planted as for the driver's updates: see tests/e2e/test_driver_update.py.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from llamafleet.layout import DRIVER_CHECK_PATH, DRIVER_CHECK_UNIT, VERIFY_TIMER, VERIFY_UNIT
from llamafleet.managed import by_path
from tests.e2e import fake_driver
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import Run, pyinfra, write_inventory
from tests.e2e.test_driver_update import LAYOUT, OLD, GpuHost, plant_build

LACKING = missing_tools() + fake_driver.missing_compiler()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(LACKING), reason=f"to boot a host with a driver: {LACKING} missing"),
]
HOST = "gpu-u"
READ_BY_EXPORTER = "/var/lib/prometheus/node-exporter"
PAGE = f"{READ_BY_EXPORTER}/llamafleet.prom"


class UnitsHost:
    """A deployed GPU host whose last verdict counts as a PASS."""

    def __init__(self, booted: BootedHost, folder: Path, debs: Path) -> None:
        self.booted, self.folder = booted, folder
        gpu = GpuHost(booted, folder, debs)
        fake_driver.plant_hardware(booted)
        fake_driver.plant_compiler(booted)
        fake_driver.plant_toolkit(booted, "12.8")
        gpu.install(OLD)
        booted.reboot()
        plant_build(gpu)
        self.first = self.deploy()
        assert gpu.latest(), self.first.output
        gpu.passed()
        switched = self.deploy()
        assert switched.returncode == 0, switched.output

    def deploy(self, *options: str, **settings: object) -> Run:
        data = self.booted.data(model="synthetic:tiny-q4_0", **settings)
        fleet = write_inventory(self.folder, {HOST: data}, "units")
        return pyinfra(self.folder, *(options or ("-y", "--json")), fleet, "deploy.py")

    def sh(self, command: str) -> str:
        done = self.booted.run(command)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def show(self, unit: str) -> tuple[str, str, str]:
        """Is it enabled, does it run, has systemd yet to read its file."""
        asked = "--property=UnitFileState,ActiveState,NeedDaemonReload"
        lines = self.sh(f"systemctl show {asked} {unit}").split()
        values = dict(line.split("=", 1) for line in lines)
        # A service ends as its last verdict was.
        runs = "ended" if unit.endswith(".service") else values["ActiveState"]
        return values["UnitFileState"], runs, values["NeedDaemonReload"]

    def repaired(self) -> Run:
        """The next run, which must leave nothing for the one after."""
        run = self.deploy()
        assert run.returncode == 0, run.output
        again = self.deploy()
        assert again.unchanged, again.output
        return run


AS_WANTED = {
    VERIFY_UNIT: ("static", "ended", "no"),
    VERIFY_TIMER: ("enabled", "active", "no"),
    DRIVER_CHECK_UNIT: ("enabled", "ended", "no"),
    DRIVER_CHECK_PATH: ("enabled", "active", "no"),
}


@pytest.fixture(scope="module")
def host(booted: BootedHost, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> UnitsHost:
    return UnitsHost(booted, folder, tmp_path_factory.mktemp("debs"))


def test_a_deploy_leaves_each_unit_as_wanted(host: UnitsHost) -> None:
    assert {unit: host.show(unit) for unit in AS_WANTED} == AS_WANTED, host.first.output
    again = host.deploy()
    assert again.returncode == 0 and again.unchanged, again.output


def test_what_was_disabled_and_stopped_by_hand_is_repaired(host: UnitsHost) -> None:
    host.sh(f"systemctl disable --now {VERIFY_TIMER}; systemctl stop {DRIVER_CHECK_PATH}")
    dry = host.deploy("--dry")
    assert f"files: enable, start {VERIFY_TIMER} (found disabled, inactive)" in dry.output
    assert host.show(VERIFY_TIMER) == ("disabled", "inactive", "no"), "a dry run repairs nothing"
    run = host.repaired()
    assert f"files: start {DRIVER_CHECK_PATH} (found inactive)" in run.output
    assert f"{VERIFY_TIMER} enabled" in run.output, "the report's changes"
    assert {unit: host.show(unit) for unit in AS_WANTED} == AS_WANTED


def test_units_of_a_run_that_broke_after_the_upload_are_enabled(host: UnitsHost) -> None:
    """As such a run leaves them: files as rendered, not read, not enabled."""
    ours = f"{VERIFY_TIMER} {DRIVER_CHECK_UNIT} {DRIVER_CHECK_PATH}"
    host.sh(f"systemctl disable --now {ours} && cd {LAYOUT.units} && touch {ours} {VERIFY_UNIT}")
    run = host.repaired()
    assert f"enable {DRIVER_CHECK_UNIT} (found disabled)" in run.output
    assert {unit: host.show(unit) for unit in AS_WANTED} == AS_WANTED


def test_a_file_that_systemd_has_not_read_is_read(host: UnitsHost) -> None:
    host.sh(f"touch {LAYOUT.units}/{VERIFY_TIMER}")
    assert host.show(VERIFY_TIMER) == ("enabled", "active", "yes")
    assert "units read again" in host.repaired().output
    assert host.show(VERIFY_TIMER) == AS_WANTED[VERIFY_TIMER]


def test_another_schedule_counts_at_once(host: UnitsHost) -> None:
    """Of a timer that waits and of one that has elapsed for good."""
    for schedule, begins in (("2000-01-01", ""), ("Fri", "Fri"), ("weekly", "Mon")):
        run = host.deploy(verify_schedule=schedule)
        assert run.returncode == 0, run.output
        show = f"systemctl show --value --property=NextElapseUSecRealtime {VERIFY_TIMER}"
        assert host.sh(show).strip()[:3] == begins, (schedule, run.output)


def test_a_schedule_that_systemd_refuses_is_refused_before_any_host(host: UnitsHost) -> None:
    run = host.deploy("-y", verify_schedule="whenever")
    assert run.returncode == 2 and "verify_schedule" in run.output, run.output


def test_a_unit_that_systemd_refuses_fails_the_host_by_name(host: UnitsHost) -> None:
    """An administrator's own drop-in takes the timer's only time away."""
    drop_in = f"{LAYOUT.units}/{VERIFY_TIMER}.d"
    host.sh(
        f"mkdir {drop_in} && printf '[Timer]\\nOnCalendar=\\n' >{drop_in}/x.conf && "
        f"systemctl daemon-reload; systemctl stop {VERIFY_TIMER}"
    )
    run = host.deploy("-y")
    host.sh(f"rm -r {drop_in} && systemctl daemon-reload")
    assert run.returncode != 0
    assert f"{VERIFY_TIMER} (found bad-setting" in run.output, run.output
    assert f"next: systemctl status {VERIFY_TIMER}" in run.output
    host.repaired()


def test_files_that_others_may_write_or_the_account_can_t_read_are_written_again(
    host: UnitsHost,
) -> None:
    """verify.json made unreadable: the verification failed, and the next run said verified."""
    ours = (LAYOUT.verify_config, LAYOUT.env, f"{LAYOUT.units}/{VERIFY_TIMER}", LAYOUT.zipapp)
    config, env, timer, zipapp = ours
    host.sh(f"chmod 000 {config}; chown llamafleet {env}; chmod 666 {timer}; chgrp 12 {zipapp}")
    run = host.repaired()
    for said in ("mode 0000, not 0644", "owner llamafleet, not root", "mode 0666, not 0644"):
        assert said in run.output, run.output
    assert set(host.sh(f"stat -c '%U:%G %a' {' '.join(ours)}").splitlines()) == {"root:root 644"}


def test_a_masked_unit_stops_the_host_and_stays_masked(host: UnitsHost) -> None:
    host.sh(f"rm {LAYOUT.units}/{VERIFY_TIMER} && systemctl mask --now {VERIFY_TIMER}")
    run = host.deploy("-y")
    assert run.returncode != 0
    assert f"units: found {VERIFY_TIMER} is masked" in run.output, run.output
    assert f"next: sudo systemctl unmask {VERIFY_TIMER}" in run.output
    assert host.show(VERIFY_TIMER)[0] == "masked"
    host.sh(f"systemctl unmask {VERIFY_TIMER}")
    host.repaired()
    assert host.show(VERIFY_TIMER) == AS_WANTED[VERIFY_TIMER]


def test_node_exporter_finds_the_verdict_where_the_setting_says(host: UnitsHost) -> None:
    """It runs as an account of its own; uninstall, below, takes the page away."""
    missing = host.deploy("-y", metrics_folder=READ_BY_EXPORTER)
    assert missing.returncode == 1 and f"no folder {READ_BY_EXPORTER}" in missing.output
    host.sh(f"mkdir -p {READ_BY_EXPORTER}")
    run = host.deploy(metrics_folder=READ_BY_EXPORTER)
    assert run.returncode == 0 and "llamafleet.prom written" in run.output, run.output
    read = f"cd / && setpriv --reuid=65534 --clear-groups cat {PAGE}"
    passed = 'llamafleet_verdict{verdict="PASS"} 1.0\n'
    assert passed in host.sh(read), "at once, of the verdict that is there"
    # As a verification does when it starts; then what the account might do to who reads its file.
    forget = f"rm {LAYOUT.results}/latest.json; mv /tmp/new {LAYOUT.results}/llamafleet.prom"
    host.sh(f"cp -p {LAYOUT.results}/latest.json /tmp/kept; mkfifo /tmp/new; {forget}")
    shown = f"until grep -q '{{}}' {PAGE}; do sleep 0.2; done"
    host.sh(f"timeout 20 sh -c {shlex.quote(shown.format('NOT VERIFIED.. 1'))}")
    assert passed not in host.sh(read) and host.sh(f"test -f {PAGE} && echo plain") == "plain\n"
    host.sh(f"cp -p /tmp/kept {LAYOUT.results}/latest.json; rm {LAYOUT.results}/llamafleet.prom")
    host.sh(f"timeout 20 sh -c {shlex.quote(shown.format('PASS.. 1'))}")
    again = host.deploy(metrics_folder=READ_BY_EXPORTER)
    assert again.returncode == 0 and again.unchanged, again.output


def test_uninstall_leaves_none_of_it(host: UnitsHost) -> None:
    run = pyinfra(host.folder, "-y", "units", "uninstall.py")
    assert run.returncode == 0, run.output
    for path in by_path(LAYOUT):
        assert not (host.booted.tree / path.lstrip("/")).exists(), path
    left = host.sh("find /etc/systemd /var/lib/systemd /var/lib/prometheus -name '*llamafleet*'")
    assert left == "" and host.sh("systemctl list-units --all 'llamafleet*' --no-legend") == ""
