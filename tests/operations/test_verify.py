"""The verification's start and end, by the commands that a host gets."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import asdict
from types import SimpleNamespace
from typing import cast

import pytest

from llamafleet.layout import Layout
from llamafleet.protocol.job import JobStatus, Progress, Stamp
from operations import verify
from operations.run import TOOLS, HostRun
from tests.hosts.recorded import load
from tests.operations.fake import GPU, STATUS, FakeHost, answer_of, ended, fleet
from tests.plans.hosts import proven, there

pytestmark = pytest.mark.usefixtures("frozen_tables")
LAYOUT = Layout.system()
PYTHON = "/usr/bin/python3.12"
FOLDER = "/var/lib/llamafleet/verify/run"
FORGOTTEN = f"rm -f -- {FOLDER}/stamp.json {FOLDER}/progress.json"
"""A stamp of an earlier verification would be read as the end of this one."""


def started(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> list[str]:
    """What a host is sent that is to be verified, and whose verification ends well."""
    host.answers[STATUS] = answer_of(ended("verify", "k1"))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(verify.verify) == []
        assert run.runs["a"].changes == ["verified"]
    *commands, asked = host.sent
    assert f" {LAYOUT.zipapp} status --dir {FOLDER}" in asked
    return commands


def without_systemd() -> FakeHost:
    return FakeHost().changed(lines={"systemctl": []})


def test_a_verification_is_started_by_its_unit_and_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Restarted: one that the timer began with the settings of before is no answer."""
    forgotten, start = started(monkeypatch, FakeHost())
    assert forgotten.endswith(FORGOTTEN) and "setpriv --reuid=llamafleet " in forgotten
    assert start == "systemctl restart --no-block llamafleet-verify.service"


def test_without_systemd_it_is_detached_and_gives_root_up(monkeypatch: pytest.MonkeyPatch) -> None:
    build = load(GPU).plan.build
    assert build is not None
    _, start = started(monkeypatch, without_systemd())
    rights, _, script = start.partition(" sh -c ")
    assert "setpriv --reuid=llamafleet " in rights and " env -i " in rights
    assert shlex.split(script) == [
        f"umask 022; mkdir -p -- {FOLDER} && exec {build.config.prefix}/bin/python -I "
        f"{LAYOUT.zipapp} start --log {FOLDER}/start.log "
        "-- verify --config /etc/llamafleet/verify.json"
    ]


def test_in_a_home_it_is_a_unit_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost("rtx4090-580-ubuntu24-user")
    host.answers[STATUS] = answer_of(ended("verify", "k1"))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(verify.verify) == []
    _, start, _ = host.sent
    assert start.endswith(" systemctl --user restart --no-block llamafleet-verify.service")


def test_without_systemd_a_verification_of_something_else_is_ended_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress = Progress(kind="verify", key="k0", pid=4242, start_ticks=1)
    stop, *rest = started(monkeypatch, without_systemd().job("verify", "run", progress))
    assert "/proc/4242/stat" in stop and "kill -TERM" in stop
    assert "setpriv --reuid=llamafleet " in stop, "the account itself told the number"
    assert len(rest) == 2 and rest[0].endswith(FORGOTTEN)
    stamp = Stamp(kind="verify", key="k0", ok=True)
    for host in (
        without_systemd().job("verify", "run", stamp),
        FakeHost().job("verify", "run", progress),
    ):
        commands = started(monkeypatch, host)
        assert len(commands) == 2 and not any("kill" in command for command in commands)


def test_a_verification_of_this_very_plan_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = load(GPU).plan.verify
    assert wanted is not None
    progress = Progress(kind="verify", key=wanted.key, pid=4242, start_ticks=1)
    assert started(monkeypatch, FakeHost().job("verify", "run", progress)) == []


def test_one_whose_code_this_run_replaced_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Measured: its next worker is looked for in the new file, where it has another name."""
    wanted = load(GPU).plan.verify
    assert wanted is not None
    progress = Progress(kind="verify", key=wanted.key, pid=4242, start_ticks=1)
    for host, ended_first in ((FakeHost(), False), (without_systemd(), True)):
        host.job("verify", "run", progress)
        host.answers[STATUS] = answer_of(ended("verify", wanted.key))
        with fleet(monkeypatch, {"a": host}) as run:
            run.runs["a"].changes.append(TOOLS)
            assert run.run(verify.verify) == []
        assert any("verify" in sent and "start" in sent for sent in host.sent)
        assert any("/proc/4242/stat" in sent for sent in host.sent) is ended_first


def test_one_that_is_gone_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    host.answers[STATUS] = answer_of(JobStatus(state="dead"))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(verify.verify) == ["@fake/a"]
        assert run.runs["a"].changes == []
        assert "expected it to end with a stamp" in run.runs["a"].failures[0]


def test_what_was_verified_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    host, found = FakeHost(), load(GPU).plan
    assert found.build is not None
    host.build(there(found.build)).found(f"current={found.build.name}")
    host.file("latest", "latest.json", text=json.dumps(asdict(proven(found.verify))))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(verify.verify) == []
    assert host.sent == []


def test_it_is_ended_with_its_worker() -> None:
    script = "sleep 60 & echo $!; wait"
    parent = subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    run = SimpleNamespace(layout=lambda: Layout.user("/home/ada"))
    stop = str(verify.stop_verification(cast("HostRun", run), parent.pid))
    assert subprocess.run(["sh", "-c", stop], check=False).returncode == 0
    # The worker holds the pipe too, which ends with the last of both.
    parent.communicate(timeout=5)
    assert parent.returncode == -15
    assert subprocess.run(["sh", "-c", stop], check=False).returncode == 0, "gone already"
