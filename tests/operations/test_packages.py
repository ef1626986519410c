"""Distribution packages, by the commands that a host gets."""

from __future__ import annotations

import json

import pytest

from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import CompilerConfig, JobError
from operations.packages import packages
from operations.preflight import refuse
from tests.operations.fake import STATUS, FakeHost, answer_of, ended, fleet

CONFIG = "/etc/llamafleet/jobs/packages-gxx.json"


def bare() -> FakeHost:
    host = FakeHost("rtx4090-580-ubuntu24-no-compiler")
    host.answers[STATUS] = answer_of(ended("packages", "gxx"))
    host.becomes["job --kind packages"] = FakeHost()
    return host


def test_a_missing_compiler_is_installed_by_a_job_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    host = bare()
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(packages) == []
        assert run.runs["a"].changes == ["packages g++"]
    told = decode(CompilerConfig, json.loads(host.uploads[CONFIG]))
    assert told.packages == ("g++",) and told.record == "/opt/llamafleet/installed-packages"
    (start,) = (sent for sent in host.sent if "job --kind packages" in sent)
    assert f"--config {CONFIG} --dir /opt/llamafleet/jobs/packages/gxx" in start
    assert "--unit=llamafleet-packages-gxx" in start and "User=" not in start
    # The package manager's own words stand in the job alone.
    assert not any("apt-get" in sent for sent in host.sent)


def test_a_package_that_can_t_be_installed_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = bare()
    error = JobError(phase="simulate", lines=("apt: found no package g++; next: look",))
    host.answers[STATUS] = answer_of(ended("packages", "gxx", ok=False, error=error))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(packages) == ["@fake/a"]
        assert run.runs["a"].changes == []
        assert "apt: found no package g++" in run.runs["a"].failures[0]


def test_a_host_with_a_compiler_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(packages) == []
    assert host.sent == []


def test_a_host_that_is_refused_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = FakeHost("rtx4090-no-driver"), bare()
    with fleet(monkeypatch, {"bad": bad, "good": good}) as run:
        assert run.run(refuse, packages) == ["@fake/bad"]
        assert run.runs["bad"].failures and not run.runs["good"].failures
    assert bad.sent == [] and any("job --kind packages" in sent for sent in good.sent)
