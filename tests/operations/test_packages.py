"""Distribution packages, by the commands that a host gets."""

from __future__ import annotations

import pytest

from operations.packages import packages
from operations.preflight import refuse
from tests.operations.fake import FakeHost, fleet


def bare() -> FakeHost:
    return FakeHost("rtx4090-580-ubuntu24-no-compiler")


def test_a_missing_compiler_is_installed_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    host = bare()
    with fleet(monkeypatch, {"a": host}) as run:
        run.run(packages)
        assert run.runs["a"].changes == ["packages g++"]
    update, install, folder, record = host.sent
    assert " update" in update
    assert install.startswith("DEBIAN_FRONTEND=noninteractive apt-get ") and "g++" in install
    assert folder == "mkdir -p /opt/llamafleet"
    # What uninstall names as staying.
    assert record == "printf '%s\\n' g++ >> /opt/llamafleet/installed-packages"


def test_a_package_that_can_t_be_installed_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = bare()
    host.answers["install -y g++"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(packages) == ["@fake/a"]
        assert run.runs["a"].changes == []
    assert not any("printf" in command for command in host.sent), "nothing to record"


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
    assert bad.sent == [] and len(good.sent) == 4
