"""Files and units, by the commands that a host gets: in which order, and how it is judged after."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.facts.host import Unit
from llamafleet.layout import (
    DEVICES_UNIT,
    DRIVER_CHECK_PATH,
    DRIVER_CHECK_UNIT,
    VERIFY_TIMER,
    VERIFY_UNIT,
    Layout,
)
from llamafleet.managed import rows
from operations.files import settings, tools
from tests.operations.fake import CPU, GPU, FakeHost, fleet, rendered, written
from tests.plans.test_files import UNITS

pytestmark = pytest.mark.usefixtures("frozen_tables")
LAYOUT = Layout.system()
FILES = [row.path(LAYOUT) for row in rows(LAYOUT, "settings") if "metrics" not in row.needs]
DRIVER_CHECK = (DRIVER_CHECK_UNIT, DRIVER_CHECK_PATH)


def of(unit: str) -> str:
    """Where its file lies."""
    return f"/etc/systemd/system/{unit}"


def deployed(
    monkeypatch: pytest.MonkeyPatch,
    recorded: str = GPU,
    *,
    units: Mapping[str, Unit] = UNITS,
    without: tuple[str, ...] = (),
    changed: tuple[str, ...] = (),
    **data: object,
) -> FakeHost:
    """A host as a deploy leaves it, but for these units, and files with other content."""
    host = FakeHost(recorded, **data)
    with fleet(monkeypatch, {"a": host}) as run:
        files = rendered(run.runs["a"], "settings")
    files |= dict.fromkeys(changed, "0" * 64)
    host.files({path: sha256 for path, sha256 in files.items() if path not in map(of, without)})
    return host.units({name: unit for name, unit in units.items() if name not in without})


def carry_out(
    monkeypatch: pytest.MonkeyPatch, host: FakeHost, after: FakeHost
) -> tuple[list[str], list[str]]:
    """What the host gets, which is `after` by then, and the changes that the run records."""
    host.becomes["systemctl"] = after
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(settings) == [], run.runs["a"].failures
        return host.sent, run.runs["a"].changes


def failures(
    monkeypatch: pytest.MonkeyPatch, host: FakeHost, after: FakeHost | None = None
) -> list[str]:
    """Why the host fails, which stays as it is or is `after` by then."""
    if after:
        host.becomes["systemctl"] = after
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(settings) == ["@fake/a"]
        return run.runs["a"].failures


def test_a_first_deploy_enables_and_starts_what_is_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, changes = carry_out(monkeypatch, FakeHost(), deployed(monkeypatch))
    assert sent == [
        *(command for path in FILES for command in written(path)),
        "systemctl daemon-reload",
        f"systemctl enable --quiet {VERIFY_TIMER} {' '.join(DRIVER_CHECK)} || true",
        f"systemctl restart {VERIFY_TIMER} {DRIVER_CHECK_PATH} || true",
    ]
    assert changes == [f"settings llamafleet.env verify.json {' '.join(UNITS)}"]


def test_what_is_written_is_what_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    host.becomes["systemctl"] = deployed(monkeypatch)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(settings) == []
    assert list(host.uploads) == FILES
    assert b"User=llamafleet\n" in host.uploads[of(VERIFY_UNIT)]
    assert b"@fake/a" in host.uploads["/etc/llamafleet/verify.json"]


def test_the_second_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed(monkeypatch)
    assert carry_out(monkeypatch, host, host) == ([], [])


def test_what_somebody_disabled_and_stopped_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    disabled = Unit("loaded", "inactive", "dead", "disabled")
    stopped = replace(UNITS[DRIVER_CHECK_PATH], active="inactive", sub="dead")
    units = {**UNITS, VERIFY_TIMER: disabled, DRIVER_CHECK_PATH: stopped}
    host = deployed(monkeypatch, units=units)
    sent, changes = carry_out(monkeypatch, host, deployed(monkeypatch))
    assert sent == [
        f"systemctl enable --quiet {VERIFY_TIMER} || true",
        f"systemctl restart {VERIFY_TIMER} {DRIVER_CHECK_PATH} || true",
    ]
    assert changes == [
        f"{VERIFY_TIMER} enabled",
        f"{VERIFY_TIMER} started",
        f"{DRIVER_CHECK_PATH} started",
    ]


def test_units_that_are_merely_read_again_are_a_change_too(monkeypatch: pytest.MonkeyPatch) -> None:
    units = {**UNITS, VERIFY_UNIT: replace(UNITS[VERIFY_UNIT], stale=True)}
    host = deployed(monkeypatch, units=units)
    sent, changes = carry_out(monkeypatch, host, deployed(monkeypatch))
    assert (sent, changes) == (["systemctl daemon-reload"], ["units read again"])


def test_without_a_gpu_the_driver_check_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed(monkeypatch, CPU, changed=(LAYOUT.verify_config,))
    gone = (DEVICES_UNIT, *DRIVER_CHECK)
    after = deployed(monkeypatch, CPU, without=gone)
    sent, changes = carry_out(monkeypatch, host, after)
    assert sent == [
        *written(LAYOUT.verify_config),
        f"systemctl stop {DRIVER_CHECK_PATH} || true",
        f"systemctl disable --quiet {' '.join(DRIVER_CHECK)} || true",
        f"rm -f {' '.join(map(of, gone))}",
        "systemctl daemon-reload",
    ]
    assert changes == ["settings verify.json", *(f"{unit} removed" for unit in gone)]


def test_without_a_schedule_the_timer_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed(monkeypatch)
    host.data["verify_schedule"] = None
    after = deployed(monkeypatch, without=(VERIFY_TIMER,), verify_schedule=None)
    sent, changes = carry_out(monkeypatch, host, after)
    assert sent == [
        # Which says that there is none: onhost/verify/metrics.py.
        *written(LAYOUT.verify_config),
        f"systemctl stop {VERIFY_TIMER} || true",
        f"systemctl disable --quiet {VERIFY_TIMER} || true",
        f"rm -f {of(VERIFY_TIMER)}",
        "systemctl daemon-reload",
    ]
    assert changes == ["settings verify.json", f"{VERIFY_TIMER} removed"]


def test_a_plan_with_problems_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed(monkeypatch).changed(lines={"compiler": []})
    host.data |= {"install_packages": False, "verify_schedule": None}
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.runs["a"].plan().problems
        assert run.run(settings) == []
    assert host.sent == []


def test_a_unit_that_does_not_start_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemctl may fail, or succeed and the unit ends at once."""
    failed = Unit("loaded", "failed", "failed", "enabled")
    host = deployed(monkeypatch, units={**UNITS, DRIVER_CHECK_PATH: failed})
    assert failures(monkeypatch, host) == [
        f"units: found still to do: start {DRIVER_CHECK_PATH} (found failed); expected files and "
        "units as planned, now that they were written and started; "
        f"next: systemctl status {DRIVER_CHECK_PATH}"
    ]
    assert host.sent == [f"systemctl restart {DRIVER_CHECK_PATH} || true"]


def test_a_unit_that_can_t_be_loaded_fails_the_host_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Unit("bad-setting", "inactive", "dead", "static")
    (why,) = failures(monkeypatch, deployed(monkeypatch, units={**UNITS, VERIFY_UNIT: bad}))
    assert f"reload {VERIFY_UNIT} (found bad-setting)" in why
    assert why.endswith("next: systemctl status 'llamafleet-*'")


def test_one_that_has_a_problem_by_now_fails_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = Unit("masked", "inactive", "dead", "masked")
    after = deployed(monkeypatch, units={**UNITS, VERIFY_TIMER: masked})
    (why,) = failures(monkeypatch, FakeHost(), after)
    assert f"{VERIFY_TIMER} is masked" in why


def test_an_upload_that_breaks_off_fails_the_host_and_replaces_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = FakeHost()
    host.answers[f"PUT {LAYOUT.env}"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(settings) == ["@fake/a"]
    assert host.sent == written(LAYOUT.env)


def test_zipapp_and_pip_are_brought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(tools) == []
        assert run.runs["a"].changes == ["tools"]
        assert host.sent == [*written(LAYOUT.zipapp), *written(LAYOUT.pip)]
        assert all(made.startswith((b"#!", b"PK")) for made in host.uploads.values())
        host.files(rendered(run.runs["a"], "tools"))
    again = FakeHost()
    again.text = host.text
    with fleet(monkeypatch, {"a": again}) as run:
        assert run.run(tools) == []
    assert again.sent == []


def test_a_user_s_systemd_is_found_without_a_login_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = FakeHost("rtx4090-580-ubuntu24-user")
    with fleet(monkeypatch, {"a": host}) as run:
        run.run(settings)
    (reload,) = (command for command in host.sent if command.endswith("daemon-reload"))
    user = reload.removesuffix(" daemon-reload")
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\necho "$XDG_RUNTIME_DIR $*"\n')
    program.chmod(0o755)
    said = []
    for environment in ({}, {"XDG_RUNTIME_DIR": "/run/other"}):
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        command = ["sh", "-c", f"{user} restart a.timer; id -u"]
        done = subprocess.run(
            command, env={**path, **environment}, capture_output=True, text=True, check=True
        )
        said.append(done.stdout.split("\n"))
    uid = said[0][1]
    assert said[0][0] == f"/run/user/{uid} --user restart a.timer"
    assert said[1][0] == "/run/other --user restart a.timer"
