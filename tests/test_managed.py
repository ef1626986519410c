"""The catalogue: what stands in it, and that a row is all that a new file or unit needs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import DictLoader

from llamafleet import managed, render
from llamafleet.facts.host import Unit
from llamafleet.facts.snapshot import render as script
from llamafleet.layout import Layout
from llamafleet.plans.files import plan_files
from llamafleet.plans.make import to_read
from llamafleet.plans.uninstall import managed as removed
from llamafleet.plans.uninstall import plan_uninstall, traces
from llamafleet.settings import Settings
from tests.facts.fakehost import FakeHost
from tests.plans.hosts import GPU_HOST, LAYOUT
from tests.test_render import PLAN

USER = Layout.user("/home/joe")


def test_where_all_of_it_lies() -> None:
    assert list(managed.by_path(LAYOUT)) == [
        "/opt/llamafleet/llamafleet-host.pyz",
        "/opt/llamafleet/pip.pyz",
        "/etc/llamafleet/netrc",
        "/etc/llamafleet/llamafleet.env",
        "/etc/llamafleet/verify.json",
        "/etc/systemd/system/llamafleet-devices.service",
        "/etc/systemd/system/llamafleet-verify.service",
        "/etc/systemd/system/llamafleet-verify.timer",
        "/etc/systemd/system/llamafleet-driver-check.service",
        "/etc/systemd/system/llamafleet-driver-check.path",
        "/etc/systemd/system/llamafleet-metrics.service",
        "/etc/systemd/system/llamafleet-metrics.path",
        "/etc/systemd/system/llamafleet-serve.target",
        "/opt/llamafleet/held-packages",
        "/etc/apt/apt.conf.d/52llamafleet-hold-driver",
        # There alone where a run ended early: uninstall must see them.
        "/opt/llamafleet/installed-packages",
        "/opt/llamafleet/images",
        "/run/cdi/llamafleet.json",
        "/etc/apt/sources.list.d/llamafleet-cuda.sources",
        "/etc/apt/preferences.d/00llamafleet-cuda",
        "/etc/apt/keyrings/llamafleet-cuda.asc",
        "/etc/apt/auth.conf.d/llamafleet-cuda.conf",
        "/etc/yum.repos.d/llamafleet-cuda.repo",
        "/etc/pki/rpm-gpg/RPM-GPG-KEY-llamafleet-cuda",
    ]


def test_a_user_s_own_deployment_manages_nothing_outside_the_home() -> None:
    for path, row in managed.by_path(USER).items():
        assert all(p.startswith("/home/joe/") for p in (path, *row.leftovers(USER)))


def test_each_place_is_one_row_s() -> None:
    assert len(managed.by_path(LAYOUT)) == len(managed.rows(LAYOUT))
    assert len(managed.by_path(USER)) == len(managed.rows(USER))


def test_a_timer_leaves_its_last_time_with_systemd() -> None:
    stamps = {row.leftovers(LAYOUT) for row in managed.CATALOGUE} - {()}
    assert stamps == {("/var/lib/systemd/timers/stamp-llamafleet-verify.timer",)}
    (row,) = (row for row in managed.CATALOGUE if row.leftovers(USER))
    stamp = "/home/joe/.local/share/systemd/timers/stamp-llamafleet-verify.timer"
    assert row.leftovers(USER) == (stamp,)


NAME = "llamafleet-planted.timer"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> managed.Managed:
    """One row more, and its template."""
    row = managed.Managed(
        lambda at: f"{at.units}/{NAME}", "settings", f"{NAME}.j2", unit=NAME, state="active"
    )
    monkeypatch.setattr(managed, "CATALOGUE", (*managed.CATALOGUE, row))
    monkeypatch.setattr(render._jinja, "loader", DictLoader({row.source: "of {{ layout.etc }}"}))
    return row


def test_a_row_more_is_rendered_and_written_enabled_and_started(planted: managed.Managed) -> None:
    assert render.content(planted, PLAN, Settings(), LAYOUT) == b"of /etc/llamafleet"
    path = planted.path(LAYOUT)
    made = plan_files("settings", PLAN, Settings(), GPU_HOST, LAYOUT)
    assert path in made.write and NAME in made.enable and NAME in made.restart


def test_a_row_more_is_read_and_compared(planted: managed.Managed, tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    layout = host.layout
    host.files = tuple(managed.by_path(layout))
    assert planted.path(Layout.system()) in to_read(Settings())[1]
    content = render.content(planted, PLAN, Settings(), layout)
    host.write(Path(planted.path(layout)), content)
    (host.root / "run/systemd/system").mkdir(parents=True)
    host.program("systemctl", f'echo "$*" >> {host.folder}/asked')
    snapshot = host.snapshot()
    assert snapshot.files == {planted.path(layout): hashlib.sha256(content).hexdigest()}
    assert f" {NAME} " in (host.folder / "asked").read_text()


def test_a_row_more_is_removed(planted: managed.Managed, tmp_path: Path) -> None:
    layout = replace(LAYOUT, units=str(tmp_path))
    snapshot = replace(GPU_HOST, account=False, files={planted.path(layout): ""})
    assert traces(snapshot, layout) == [planted.path(layout)]
    made = plan_uninstall(snapshot, layout)
    assert NAME in made.units
    assert {planted.path(layout), f"{planted.path(layout)}.partial"} <= set(made.files)
    assert f"/var/lib/systemd/timers/stamp-{NAME}" in made.files


def test_a_mask_stays_as_its_administrator_s(planted: managed.Managed) -> None:
    masked = replace(GPU_HOST, units={NAME: Unit("masked", "inactive", "dead", "masked")})
    assert planted in removed(GPU_HOST, LAYOUT) and planted not in removed(masked, LAYOUT)


def test_the_script_names_each_unit_of_the_catalogue() -> None:
    (line,) = (
        line for line in script(*to_read(Settings())).splitlines() if line.startswith("LF_UNITS=")
    )
    assert line == f"LF_UNITS='{' '.join(managed.unit_names())}'"
