"""What of a host is llamafleet's: by its record, its own names, and nothing by a likeness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import DeployLock, HostSnapshot, Job, Owner, PlacedModel, Unit
from llamafleet.layout import APT_SOURCE, VERIFY_TIMER, VERIFY_UNIT, Layout
from llamafleet.managed import by_path, unit_names
from llamafleet.plans.account import ACCOUNT, GROUP
from llamafleet.plans.uninstall import plan_uninstall, traces
from llamafleet.protocol.job import Progress
from llamafleet.received import Unreadable
from tests.plans.hosts import CPU_HOST, LAYOUT
from tests.plans.test_account import BARE, HOME, ROOTS, at_home, deployed
from tests.plans.test_files import UNITS

FOLDER = Owner("folder", "root", "root", 0o755)
FILE = Owner("file", "root", "root", 0o644)


def job(kind: str, key: str, pid: int = 77, **changed: Any) -> Job:
    """One that runs."""
    told = Progress(kind="build", key=key, pid=pid, start_ticks=5)
    return replace(Job(kind, key, alive=True, progress=told), **changed)


def test_a_bare_host_has_no_trace() -> None:
    assert traces(BARE, LAYOUT) == [] and plan_uninstall(BARE, LAYOUT).found == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wheelhouse": "f" * 64}, "wheelhouse"),
        ({"current": "0123"}, "current"),
        ({"models": {"0123": PlacedModel("0123")}}, "model 0123"),
        ({"result": Unreadable("half written")}, "result"),
        ({"hold_record": ("libnvidia-compute-580",)}, "record of the hold"),
        ({"deploy_lock": DeployLock("a", "b", 1, 2, 3.0, 4)}, "lock of a run"),
        ({"owners": {"/opt/llamafleet.partial": FOLDER}}, "/opt/llamafleet.partial"),
        ({"owners": {f"{APT_SOURCE}.partial": FILE}}, f"{APT_SOURCE}.partial"),
        (
            {"owners": {"/opt/llamafleet": FOLDER}, "made": ("/opt/llamafleet",)},
            "/opt/llamafleet",
        ),
        (
            {"owners": {f"/etc/systemd/system/{VERIFY_UNIT}.partial": FILE}},
            f"/etc/systemd/system/{VERIFY_UNIT}.partial",
        ),
    ],
)
def test_what_a_run_left_that_was_cut_off_is_a_trace(change: dict[str, Any], said: str) -> None:
    assert said in traces(replace(BARE, **change), LAYOUT)


def test_a_home_in_which_a_run_was_cut_off_is_no_bare_one() -> None:
    """21 MB of pip and zipapp stayed with "No changes"."""
    host = at_home(owners={HOME.prefix: FOLDER, f"{HOME.pip}.partial": FILE}, made=(HOME.prefix,))
    assert HOME.prefix in traces(host, HOME)
    assert plan_uninstall(host, HOME).last == (HOME.prefix,)


def test_what_llamafleet_made_goes_whole_the_record_last() -> None:
    made = plan_uninstall(deployed(), LAYOUT)
    assert made.account and made.group and made.stays == ()
    assert {"/etc/llamafleet", "/var/lib/llamafleet"} <= set(made.folders)
    assert "/opt/llamafleet" not in made.folders and made.last == ("/opt/llamafleet",)
    for path in by_path(LAYOUT):
        assert path in made.files and f"{path}.partial" in made.files
    assert f"/var/lib/systemd/timers/stamp-{VERIFY_TIMER}" in made.files


def test_what_was_there_before_stays_and_is_named() -> None:
    """Folders and an account of an administrator's own are emptied of llamafleet's parts alone."""
    ours = tuple(line for line in deployed().made if line not in (*ROOTS, ACCOUNT, GROUP))
    host = replace(deployed(), made=(*ours, f"{LAYOUT.prefix}/versions"))
    made = plan_uninstall(host, LAYOUT)
    assert not made.account and not made.group
    assert not set(ROOTS) & {*made.folders, *made.last}
    assert f"{LAYOUT.prefix}/versions" in made.folders, "of its own making"
    assert f"{LAYOUT.prefix}/toolkits" not in made.folders, "not recorded: not its own"
    assert LAYOUT.zipapp in made.files and made.last == (LAYOUT.made,)
    assert [line.split(" (")[0] for line in made.stays] == [*ROOTS, "account llamafleet"]


def test_an_account_and_folders_without_any_sign_of_llamafleet_are_no_trace() -> None:
    host = replace(deployed(), made=())
    assert traces(host, LAYOUT) == []


def test_a_deployment_of_before_the_record_goes_too() -> None:
    host = replace(deployed(), made=(), files={LAYOUT.zipapp: "0" * 64})
    made = plan_uninstall(host, LAYOUT)
    assert made.account and made.last == ("/opt/llamafleet",) and made.stays == ()


def test_units_are_told_by_their_whole_name() -> None:
    theirs = {"llamafleet-dashboard.service": Unit("loaded", "active", "running", "enabled")}
    job_unit = {"llamafleet-build-0123.service": Unit("loaded", "active", "running", "")}
    host = replace(deployed(), units={**UNITS, **theirs, **job_unit}, jobs=(job("build", "0123"),))
    made = plan_uninstall(host, LAYOUT)
    assert set(made.units) == {*unit_names(), "llamafleet-build-0123.service"}
    assert "llamafleet-dashboard.service" not in made.found
    assert traces(replace(BARE, units=theirs), LAYOUT) == []


def test_only_what_a_job_told_of_itself_is_ended() -> None:
    running = (
        job("build", "0123", 10),
        job("toolkit", "apt-13.0", 11, root=True),
        job("toolkit", "wheels-13.0", 12),
        job("packages", "g++", 13, root=True),
        job("build", "4567", 14, alive=False),
        job("build", "89ab", 15, progress=None),
    )
    host = replace(deployed(), jobs=running, verifying=job("verify", "v", 16))
    made = plan_uninstall(host, LAYOUT)
    assert [(p.pid, p.root) for p in made.processes] == [
        *((10, False), (11, True), (12, False), (13, True), (16, False))
    ]
    assert all(p.seconds >= 1800 for p in made.processes if p.root), "apt is let end"
    at = plan_uninstall(at_home(jobs=running), HOME)
    assert not any(process.root for process in at.processes), "in a home nothing is root's"


def test_the_mask_of_an_administrator_stays() -> None:
    masked = Unit("masked", "inactive", "dead", "masked")
    path = f"/etc/systemd/system/{VERIFY_UNIT}"
    link = {path: Owner("link", "root", "root", 0o777)}
    host: HostSnapshot = replace(CPU_HOST, units={VERIFY_UNIT: masked}, owners=link, account=False)
    made = plan_uninstall(host, LAYOUT)
    assert path not in made.files and VERIFY_UNIT not in made.units and made.found == ()


def test_in_a_home_nothing_outside_of_it_is_spoken_of() -> None:
    made = plan_uninstall(at_home(account=True), Layout.user("/home/joe"))
    paths = (*made.files, *made.folders, *made.last)
    assert all(path.startswith("/home/joe/") for path in paths)
    assert not made.account and not made.group
