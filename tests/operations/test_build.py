"""The build and the switch to it, by the commands that a host gets."""

from __future__ import annotations

import json

import pytest

from llamafleet.layout import Layout
from llamafleet.plans.plan import BuildPlan
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BuildConfig, JobError, JobStatus, Progress
from operations import watch
from operations.build import activate, build
from tests.hosts.recorded import load
from tests.operations.fake import GPU, STATUS, FakeHost, answer_of, ended, fleet
from tests.operations.test_watch import Clock
from tests.plans.hosts import built

pytestmark = pytest.mark.usefixtures("frozen_tables")
LAYOUT = Layout.system()
PYTHON = "/usr/bin/python3.12"


def planned(recorded: str = GPU) -> BuildPlan:
    made = load(recorded).plan.build
    assert made is not None
    return made


KEY = planned().fingerprint
FOLDER = f"/var/lib/llamafleet/build/{KEY}"
ASKED = f"{PYTHON} {LAYOUT.zipapp} status --dir {FOLDER}"
RUNNING = Progress(kind="build", key=KEY, pid=7, start_ticks=1, phase="compile", step=7, steps=135)


def after_the_build(host: FakeHost) -> FakeHost:
    """The same host with the planned build, not switched to."""
    stamp = built(planned()).stamp
    assert stamp is not None
    return host.found(f"built={KEY}").job("build", KEY, stamp)


def test_a_build_is_told_started_under_the_account_and_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = FakeHost()
    host.answers[STATUS] = answer_of(ended("build", KEY))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == []
        assert run.runs["a"].changes == [f"build {KEY[:8]} (nothing was built on this host yet)"]
    folder, config, mode, stale, start, asked = host.sent
    assert folder == f"install -d -m 755 -o llamafleet -g llamafleet {FOLDER}"
    assert config == f"PUT {FOLDER}/config.json"
    told = json.loads(host.uploads[f"{FOLDER}/config.json"])
    assert decode(BuildConfig, told) == planned().config
    assert mode == f"chmod 644 {FOLDER}/config.json"
    # What an earlier attempt left would be read as the end of this one.
    assert stale == f"rm -f {FOLDER}/stamp.json {FOLDER}/progress.json"
    assert start.startswith(f"systemd-run --quiet --collect --unit=llamafleet-build-{KEY} ")
    assert " --property=User=llamafleet " in start
    assert start.endswith(f" {PYTHON} {LAYOUT.zipapp} job --kind build --dir {FOLDER}")
    assert asked == ASKED


def test_without_systemd_it_is_detached_and_gives_root_up(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost().changed(lines={"systemctl": []})
    host.answers[STATUS] = answer_of(ended("build", KEY))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == []
    assert host.sent[-2] == (
        f"{PYTHON} {LAYOUT.zipapp} start --log {FOLDER}/start.log --user llamafleet "
        f"-- job --kind build --dir {FOLDER}"
    )


def test_in_a_home_it_is_the_user_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = "rtx4090-580-ubuntu24-user"
    key = planned(recorded).fingerprint
    folder = f"/home/ada/.local/state/llamafleet/build/{key}"
    host = FakeHost(recorded)
    host.answers[STATUS] = answer_of(ended("build", key))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == []
    assert host.sent[0].split() == ["install", "-d", "-m", "755", folder]
    assert f" start --log {folder}/start.log -- job --kind build " in host.sent[-2]


def test_a_build_that_runs_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "time", Clock())
    host = FakeHost().job("build", KEY, RUNNING)
    status = JobStatus(state="running", progress=RUNNING)
    host.answers[STATUS] = answer_of(status, status, ended("build", KEY))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == []
        assert run.runs["a"].changes == [f"build {KEY[:8]} (this build runs already)"]
    assert host.sent == [ASKED] * 3


def test_one_that_fails_fails_the_host_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    error = JobError(phase="configure", cause="no toolkit", fix="install one", log="/x/build.log")
    host = FakeHost()
    host.answers[STATUS] = answer_of(ended("build", KEY, ok=False, error=error))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == ["@fake/a"]
        assert run.runs["a"].failures == [
            "build failed in phase configure: cause: no toolkit; next: install one; "
            "log on @fake/a: /x/build.log"
        ]
        assert run.runs["a"].changes == []


def test_one_that_is_gone_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    host.answers[STATUS] = answer_of(JobStatus(state="dead", progress=RUNNING))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == ["@fake/a"]
        assert "gone without a stamp" in run.runs["a"].failures[0]


def test_one_that_can_t_be_started_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    host.answers["systemd-run"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == ["@fake/a"]
    assert not any(STATUS in command for command in host.sent), "nothing to wait for"


def test_the_switch_is_a_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is replaced in place is gone for a moment, and units start by it."""
    host = after_the_build(FakeHost()).found("current=older")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build, activate) == []
        assert run.runs["a"].changes == [f"current -> {KEY[:8]}"]
    assert host.sent == [
        f"ln -sfn /opt/llamafleet/versions/{KEY} /opt/llamafleet/current.partial",
        "mv -T /opt/llamafleet/current.partial /opt/llamafleet/current",
    ]


def test_a_switch_that_fails_stops_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = after_the_build(FakeHost())
    host.answers["ln -sfn"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(activate) == ["@fake/a"]
    assert len(host.sent) == 1


def test_the_same_run_builds_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    host.answers[STATUS] = answer_of(ended("build", KEY))
    host.becomes[STATUS] = after_the_build(FakeHost())
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build, activate) == []
    assert [command.split()[0] for command in host.sent[-2:]] == ["ln", "mv"]


def test_what_is_built_and_active_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    host = after_the_build(FakeHost()).found(f"current={KEY}")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build, activate) == []
    assert host.sent == [] and host.read == 1


def test_nothing_is_built_on_a_host_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost("rtx4090-no-driver")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build, activate) == []
    assert host.sent == []
