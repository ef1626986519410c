"""The build and the switch to it, by the commands that a host gets."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from llamafleet.facts.reader import parse
from llamafleet.layout import Layout
from llamafleet.plans.make import make_plan
from llamafleet.plans.plan import BuildPlan
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BuildConfig, JobError, JobStatus, Progress
from llamafleet.settings import Settings
from operations import watch
from operations.build import activate, build, discard_builds
from tests.hosts.recorded import load
from tests.operations.fake import GPU, STATUS, FakeHost, answer_of, ended, fleet
from tests.operations.test_watch import Clock
from tests.plans.hosts import proven, there

pytestmark = pytest.mark.usefixtures("frozen_tables")
LAYOUT = Layout.system()
PYTHON = "/usr/bin/python3.12"


def planned(recorded: str = GPU) -> BuildPlan:
    made = load(recorded).plan.build
    assert made is not None
    return made


KEY = planned().fingerprint
FOLDER = f"/var/lib/llamafleet/build/{KEY}"
ZIPAPP = f"{PYTHON} -I {LAYOUT.zipapp}"
RUNNING = Progress(kind="build", key=KEY, pid=7, start_ticks=1, phase="compile", step=7, steps=135)


def after_the_build(host: FakeHost, name: str = KEY) -> FakeHost:
    """The same host with the planned build, not switched to; `name`: of its folder."""
    return host.build(there(planned(), name))


def after_the_verification(host: FakeHost, name: str = KEY) -> FakeHost:
    """The same, its build verified."""
    verify = load(GPU).plan.verify
    result = replace(proven(verify), prefix=LAYOUT.version(name))
    return after_the_build(host, name).file(
        "latest", "latest.json", text=json.dumps(asdict(result))
    )


def test_a_build_is_told_started_under_the_account_and_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = FakeHost()
    host.answers[STATUS] = answer_of(ended("build", KEY))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == []
        assert run.runs["a"].changes == [f"build {KEY[:8]} (nothing was built on this host yet)"]
    config = f"/etc/llamafleet/jobs/build-{KEY}.json"
    told = json.loads(host.uploads[config])
    assert decode(BuildConfig, told) == planned().config
    # What an earlier attempt left would be read as the end of this one.
    stale, start, asked = host.sent[-3:]
    assert f"rm -f -- {FOLDER}/stamp.json {FOLDER}/progress.json" in stale
    unit = f"llamafleet-build-{KEY}.service"
    assert start.startswith(f"systemctl stop {unit} 2>/dev/null; ")
    assert f"; systemd-run --quiet --collect --unit={unit} " in start
    assert " --property=User=llamafleet " in start
    assert f"{ZIPAPP} job --kind build --config {config} --dir {FOLDER}" in start
    assert f"{ZIPAPP} status --dir {FOLDER}" in asked


def test_what_a_build_says_though_it_ended_well_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = "built without the compiler cache: the wheelhouse has none"
    host = FakeHost()
    status = ended("build", KEY)
    assert status.stamp is not None
    told = replace(status, stamp=replace(status.stamp, notes=(note,)))
    host.answers[STATUS] = answer_of(told)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == []
        assert run.runs["a"].changes[1:] == [note]


def test_a_build_that_runs_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "time", Clock())
    host = FakeHost().job("build", KEY, RUNNING)
    status = JobStatus(state="running", progress=RUNNING)
    host.answers[STATUS] = answer_of(status, status, ended("build", KEY))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == []
        assert run.runs["a"].changes == [f"build {KEY[:8]} (this build runs already)"]
    assert len(host.sent) == 3 and all(f"status --dir {FOLDER}" in sent for sent in host.sent)


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


REFUSED = JobError(phase="configure", cause="too new", signature="unsupported-gnu-version")
TWO = "compiler=/usr/bin/g++-12 | gcc | 12.3.0"


@pytest.mark.parametrize("second", [True, False])
def test_a_compiler_that_nvcc_refuses_is_followed_by_another_in_the_same_run(
    monkeypatch: pytest.MonkeyPatch, second: bool
) -> None:
    host = FakeHost().found(TWO)
    failed = ended("build", KEY, ok=False, error=REFUSED)
    assert failed.stamp is not None
    asked = f"status --dir {FOLDER}"
    host.becomes[asked] = FakeHost().found(TWO).job("build", KEY, failed.stamp)
    settings = Settings.model_validate(load(GPU).settings)
    snapshot = parse(host.becomes[asked].text.split("\n"))
    other = make_plan("a", settings, snapshot, LAYOUT).build
    assert other and other.fingerprint != KEY == other.instead
    host.answers[asked] = answer_of(failed)
    told = {} if second else {"error": REFUSED}
    end = ended("build", other.fingerprint, ok=second, notes=other.config.notes, **told)
    host.answers[STATUS] = answer_of(end)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build) == ([] if second else ["@fake/a"])
        assert len(run.runs["a"].failures) == (not second)
        assert [other.config.notes[0] in one for one in run.runs["a"].changes] == [
            True
        ] * 2 * second
    started = [sent for sent in host.sent if "systemd-run" in sent]
    keys = (KEY, other.fingerprint)
    assert all(key in sent for key, sent in zip(keys, started, strict=True)), started


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


SWITCH = [
    f"ln -sfn /opt/llamafleet/versions/{KEY} /opt/llamafleet/current.partial",
    "mv -T /opt/llamafleet/current.partial /opt/llamafleet/current",
]


def test_the_switch_to_a_proven_build_is_a_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is replaced in place is gone for a moment, and people start by it."""
    host = after_the_verification(FakeHost()).found("current=older")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(build, activate) == []
        assert run.runs["a"].changes == [f"current -> {KEY}"]
    assert host.sent == SWITCH


def test_a_build_that_is_not_proven_never_becomes_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, it was switched to as soon as it was built, and stayed whatever was found."""
    failed = after_the_build(FakeHost()).found("current=older")
    result = proven(load(GPU).plan.verify, "FAIL")
    failed.file("latest", "latest.json", text=json.dumps(asdict(result)))
    for host in (after_the_build(FakeHost()).found("current=older"), failed):
        with fleet(monkeypatch, {"a": host}) as run:
            assert run.run(build, activate) == []
            assert run.runs["a"].changes == []
        assert host.sent == []


def test_what_the_new_build_stands_for_is_removed_by_the_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = replace(there(planned()), libraries={})
    host = after_the_verification(FakeHost().build(damaged), f"{KEY}-2").found(f"current={KEY}")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(activate) == []
        assert run.runs["a"].changes == [f"current -> {KEY}-2"]
    assert not any("discard" in sent for sent in host.sent), "what is served has not answered yet"
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(discard_builds) == []
    *_, discard = host.sent
    assert "setpriv --reuid=llamafleet " in discard and " env -i " in discard
    assert discard.endswith(
        f" discard --versions /opt/llamafleet/versions --current /opt/llamafleet/current -- {KEY}"
    )


SERVED = {"serve": {"chat": {"model": "/srv/a.gguf"}}}


def rebuilt(**settings: Any) -> FakeHost:
    """A host that serves, with a newer build of the same fingerprint, which is proven."""
    old = there(planned(), finished=50.0)
    return after_the_verification(FakeHost(**settings).build(old), f"{KEY}-2")


@pytest.mark.parametrize(
    ("links", "kept"),
    [
        # What served is known to the next run, whenever this one is cut off.
        ((f"current={KEY}",), KEY),
        # Of a switch that no run has seen serve: not that is gone back to, but what was before it.
        (("current=newer", f"previous={KEY}"), KEY),
        # It never was whole, or is damaged: there is nothing to go back to.
        (("current=older",), ""),
        (("current=newer", f"previous={KEY}-2"), ""),
    ],
)
def test_what_served_is_kept_before_the_switch(
    monkeypatch: pytest.MonkeyPatch, links: tuple[str, ...], kept: str
) -> None:
    host = rebuilt(**SERVED).found("systemctl=0", "systemd=257", *links)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(activate) == [], run.runs["a"].failures
    keep = [
        f"ln -sfn /opt/llamafleet/versions/{kept} /opt/llamafleet/previous.partial",
        "mv -T /opt/llamafleet/previous.partial /opt/llamafleet/previous",
    ]
    switch = [sent.replace(f"/{KEY} ", f"/{KEY}-2 ") for sent in SWITCH]
    assert host.sent == [*(keep if kept else []), *switch]


def test_where_nothing_is_served_nothing_is_gone_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    host = rebuilt().found(f"current={KEY}")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(activate) == []
    assert len(host.sent) == 2


def test_a_switch_that_fails_stops_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = after_the_verification(FakeHost())
    host.answers["ln -sfn"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(activate) == ["@fake/a"]
    assert len(host.sent) == 1


def test_a_rebuild_is_made_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = after_the_build(FakeHost(rebuild=True)).found(f"current={KEY}")
    after = FakeHost().build(there(planned())).found(f"current={KEY}")
    before.becomes[STATUS] = after.build(there(planned(), f"{KEY}-2", finished=200.0))
    before.answers[STATUS] = answer_of(ended("build", KEY))
    with fleet(monkeypatch, {"a": before}) as run:
        assert run.run(build, build) == []
        assert run.runs["a"].changes == [f"build {KEY[:8]} (rebuild is set)"]
        plan = run.runs["a"].plan()
    assert plan.build and (plan.build.action, plan.build.name) == ("none", f"{KEY}-2")
    assert sum(STATUS in sent for sent in before.sent) == 1


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
