"""The toolkit's installation, by the commands that a host gets."""

from __future__ import annotations

import json

import pytest

from llamafleet.layout import Layout
from llamafleet.protocol.job import (
    JobError,
    PackagesConfig,
    Progress,
    WheelsConfig,
    toolkit_config,
)
from operations import watch
from operations.toolkit import toolkit
from tests.operations.fake import GPU, STATUS, FakeHost, answer_of, ended, fleet
from tests.operations.test_watch import Clock

pytestmark = pytest.mark.usefixtures("frozen_tables")
ZIPAPP = Layout.system().zipapp
BY_APT, APT_KEY = "rtx4090-535-ubuntu22-bare", "apt-12.2"
APT_FOLDER = f"/opt/llamafleet/jobs/toolkit/{APT_KEY}"
APT_CONFIG = f"/etc/llamafleet/jobs/toolkit-{APT_KEY}.json"
WHEELS_CONFIG = "/etc/llamafleet/jobs/toolkit-13.0.json"
WHEELS_FOLDER = "/var/lib/llamafleet/toolkit/13.0"


def installing(recorded: str, key: str) -> FakeHost:
    """A host on which the installation ends well."""
    host = FakeHost(recorded)
    host.answers[STATUS] = answer_of(ended("toolkit", key))
    return host


def test_packages_are_installed_by_root_out_of_the_account_s_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = installing(BY_APT, APT_KEY)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(toolkit) == []
        assert run.runs["a"].changes == ["toolkit 12.2 from apt"]
    told = toolkit_config(json.loads(host.uploads[APT_CONFIG]))
    assert isinstance(told, PackagesConfig) and "cuda-nvcc-12-2" in told.packages
    assert told.record == "/opt/llamafleet/installed-packages"
    assert told.account == "llamafleet", "who tries what root installed"
    assert told.repository and told.repository.files, "rendered"
    start, asked = host.sent[-2:]
    assert f"--unit=llamafleet-toolkit-{APT_KEY}.service " in start and "User=" not in start
    # A package manager that is killed leaves half of a package.
    assert " --property=KillMode=mixed --property=TimeoutStopSec=30min " in start
    assert f"job --kind toolkit --config {APT_CONFIG} --dir {APT_FOLDER}" in start
    assert f" {ZIPAPP} status --dir {APT_FOLDER}" in asked and "setpriv" not in asked


def test_without_systemd_too_they_are_root_s(monkeypatch: pytest.MonkeyPatch) -> None:
    host = installing(BY_APT, APT_KEY).changed(lines={"systemctl": []})
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(toolkit) == []
    start = host.sent[-2]
    assert f" start --log {APT_FOLDER}/start.log -- job --kind toolkit " in start


def test_wheels_are_installed_by_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    host = installing(GPU, "13.0")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(toolkit) == []
        assert run.runs["a"].changes == ["toolkit 13.0 from wheels"]
    told = toolkit_config(json.loads(host.uploads[WHEELS_CONFIG]))
    assert isinstance(told, WheelsConfig) and told.root.startswith("/opt/llamafleet/toolkits/")
    start = host.sent[-2]
    assert " --property=User=llamafleet " in start
    assert "KillMode" not in start
    assert f"job --kind toolkit --config {WHEELS_CONFIG} --dir {WHEELS_FOLDER}" in start


def test_an_installation_that_runs_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "time", Clock())
    running = Progress(kind="toolkit", key="13.0", pid=7, start_ticks=1)
    host = installing(GPU, "13.0").job("toolkit", "13.0", running)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(toolkit) == []
    (asked,) = host.sent
    assert STATUS in asked


def test_one_that_fails_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    error = JobError(phase="install", lines=("E: no space",), log="/x/toolkit.log")
    host = FakeHost()
    host.answers[STATUS] = answer_of(ended("toolkit", "13.0", ok=False, error=error))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(toolkit) == ["@fake/a"]
        assert run.runs["a"].failures == [
            "toolkit failed in phase install: next: read the log; log on @fake/a: /x/toolkit.log"
        ]
        assert run.runs["a"].changes == []


@pytest.mark.parametrize("recorded", ["h100-ubuntu24", "cpu-debian12", "rtx4090-no-driver"])
def test_a_host_that_has_one_or_needs_none_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, recorded: str
) -> None:
    host = FakeHost(recorded)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(toolkit) == []
    assert host.sent == []
