"""What uninstall sees of llamafleet on a host, and the commands that the host gets."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.facts.host import Unit
from llamafleet.layout import HOLD_APT, VERIFY_TIMER, VERIFY_UNIT, Layout
from llamafleet.managed import by_path, unit_names
from llamafleet.protocol.job import Stamp
from llamafleet.received import Unreadable
from operations.uninstall import KILL_ACCOUNT, STOP_JOBS, traces, uninstall
from tests.facts.fakehost import FakeHost
from tests.operations import fake
from tests.operations.fake import fleet
from tests.plans.hosts import CPU_HOST
from tests.plans.test_files import UNITS

LAYOUT = Layout.system()
FOLDERS = "rm -rf /opt/llamafleet /etc/llamafleet /var/lib/llamafleet"
INSTALLED = "installed-packages && cat"
"""Part of the command that reads which packages were installed."""


def test_a_run_that_ended_with_its_packages_is_seen(tmp_path: Path) -> None:
    """The record of packages comes before the account, the tools and any job."""
    host = FakeHost(tmp_path)
    host.files = tuple(by_path(host.layout))
    assert traces(host.snapshot(), host.layout) == []
    record = Path(host.layout.installed_packages)
    host.write(record, "g++\n")
    assert traces(host.snapshot(), host.layout) == [str(record)]


def deployed() -> fake.FakeHost:
    """A host with all that a deploy puts there."""
    host = fake.FakeHost().found("account=1", "built=0123").units(UNITS)
    host.files(dict.fromkeys(by_path(LAYOUT), "0" * 64))
    host.answers[INSTALLED] = "ninja-build\ng++\nninja-build"
    return host


def sent(monkeypatch: pytest.MonkeyPatch, host: fake.FakeHost) -> list[str]:
    """What it gets, less the question for the packages that stay."""
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(uninstall) == []
    return [command for command in host.sent if INSTALLED not in command]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wheelhouse": "f" * 64}, "wheelhouse"),
        ({"current": "0123"}, "current"),
        ({"result": Unreadable("half written")}, "result"),
        ({"hold_record": ("libnvidia-compute-580",)}, "record of the hold"),
    ],
)
def test_what_an_interrupted_run_left_is_a_trace(change: dict[str, Any], said: str) -> None:
    bare = replace(CPU_HOST, account=False)
    assert traces(bare, LAYOUT) == [] and traces(replace(bare, **change), LAYOUT) == [said]


def test_all_is_stopped_before_it_is_removed_and_the_account_goes_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *units, stop, jobs, account, files, reload, folders, user = sent(monkeypatch, deployed())
    assert units == [
        f"systemctl disable --now --quiet {unit} 2>/dev/null || true" for unit in unit_names()
    ]
    assert stop == "systemctl stop 'llamafleet-*' || true"
    assert shlex.split(jobs) == ["sh", "-c", f"{STOP_JOBS}true"]
    assert shlex.split(account) == ["sh", "-c", KILL_ACCOUNT]
    assert files.startswith("rm -f ")
    removed = files.split()
    for path in by_path(LAYOUT):
        assert path in removed and f"{path}.partial" in removed
    assert f"/var/lib/systemd/timers/stamp-{VERIFY_TIMER}" in removed
    assert f"/etc/systemd/system/*.wants/{VERIFY_TIMER}" in removed
    assert reload == "systemctl daemon-reload; systemctl reset-failed 'llamafleet-*' || true"
    assert (folders, user) == (FOLDERS, "userdel llamafleet")


def test_what_stays_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = deployed()
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(uninstall) == []
        assert run.runs["a"].changes == ["removed"]
    assert "packages that were installed and stay: g++ ninja-build" in capsys.readouterr().err


def test_a_hold_is_released_before_its_record_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no hold that was not llamafleet's."""
    host = deployed().changed(
        blocks={
            "parts": ["hold installed nvidia-driver-580-open", "hold installed libnvidia-gl-580"],
            "hold_record": ["libnvidia-gl-580"],
        }
    )
    commands = sent(monkeypatch, host)
    (release,) = (command for command in commands if "apt-mark" in command)
    assert release == "apt-mark unhold libnvidia-gl-580"
    (files,) = (command for command in commands if f" {LAYOUT.hold_record} " in command)
    assert HOLD_APT in files
    order = [commands.index(command) for command in (release, files, FOLDERS)]
    assert order == sorted(order)


def test_a_hold_that_can_t_be_released_keeps_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed().changed(blocks={"parts": ["hold installed nvidia-driver-580-open"]})
    host.changed(blocks={"hold_record": ["nvidia-driver-580-open"]})
    host.answers["apt-mark"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(uninstall) == ["@fake/a"]
    assert not any(command.startswith("rm ") for command in host.sent)


def test_a_bare_host_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = fake.FakeHost()
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(uninstall) == []
        assert run.runs["a"].changes == []
    assert host.sent == []


def test_without_an_account_or_systemd_neither_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = fake.FakeHost().changed(lines={"systemctl": []})
    stamp = Stamp(kind="toolkit", key="13.0", ok=True)
    jobs, files, folders = sent(monkeypatch, host.job("toolkit", "13.0", stamp))
    assert jobs.startswith("sh -c ") and files.startswith("rm -f ") and folders == FOLDERS


def test_the_mask_of_an_administrator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = Unit("masked", "inactive", "dead", "masked")
    commands = sent(monkeypatch, deployed().units({**UNITS, VERIFY_UNIT: masked}))
    (files,) = (command for command in commands if command.startswith("rm -f "))
    assert f"/etc/systemd/system/{VERIFY_UNIT} " not in f"{files} "
    assert not any(f"disable --now --quiet {VERIFY_UNIT}" in command for command in commands)


def test_in_a_home_no_account_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    host = fake.FakeHost("rtx4090-580-ubuntu24-user").found("account=1", "built=0123")
    commands = sent(monkeypatch, host)
    assert not any("userdel" in command or "kill -KILL" in command for command in commands)
    share, config, state = (f"/home/ada/{at}" for at in (".local/share", ".config", ".local/state"))
    assert commands[-1] == f"rm -rf {share}/llamafleet {config}/llamafleet {state}/llamafleet"
    assert all("/opt/" not in command for command in commands)


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")
JOB = """
trap 'sleep 14; touch {folder}/ended; exit' TERM
touch {folder}/running
while :; do sleep 0.1; done
"""
SCRIPT = """
sh {folder}/llamafleet-host.pyz job --kind toolkit --dir /opt/llamafleet/jobs/toolkit/apt-13.0 &
until [ -e {folder}/running ]; do sleep 0.1; done
{stop}
test -e {folder}/ended
"""


def no_namespace() -> bool:
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(no_namespace(), reason="a namespace of processes needs root")
def test_without_systemd_too_a_package_manager_is_let_end(tmp_path: Path) -> None:
    """In a namespace of its own: jobs of this machine are none of the test's."""
    (tmp_path / "llamafleet-host.pyz").write_text(JOB.format(folder=tmp_path))
    script = tmp_path / "script"
    script.write_text(SCRIPT.format(folder=tmp_path, stop=STOP_JOBS))
    inside = [*NAMESPACE, "sh", str(script)]
    done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
