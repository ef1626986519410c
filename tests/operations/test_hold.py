"""The hold on the driver's packages and its files, by the commands that a host gets."""

from __future__ import annotations

import shlex

import pytest

from llamafleet.layout import HOLD_APT, Layout
from operations.hold import hold
from tests.operations.fake import FakeHost, fleet, rendered, written

pytestmark = pytest.mark.usefixtures("frozen_tables")
RECORD = Layout.system().hold_record
PARTS = ("libnvidia-compute-580:amd64", "libnvidia-gl-580:amd64", "nvidia-driver-580-open")
NAMES = " ".join(PARTS)


def with_driver(
    *, held: tuple[str, ...] = (), record: tuple[str, ...] = (), on: bool = True
) -> FakeHost:
    """A host with the driver's packages; `record`: what llamafleet has held of them."""
    states = [f"{'hold' if name in held else 'install'} installed {name}" for name in PARTS]
    host = FakeHost(hold_driver=on).changed(blocks={"parts": states})
    return host.changed(blocks={"hold_record": list(record)}) if record else host


def carried_out(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> list[str]:
    """The changes that a run records."""
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(hold) == []
        return run.runs["a"].changes


def again(monkeypatch: pytest.MonkeyPatch, host: FakeHost, **other: str) -> list[str]:
    """The same on a host that has the files of the hold; `other`: sha256 by path."""
    with fleet(monkeypatch, {"a": host}) as run:
        host.files({**rendered(run.runs["a"], "hold"), **other})
        run.runs["a"].reread()
        assert run.run(hold) == []
        return run.runs["a"].changes


def test_the_record_is_there_before_the_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    host = with_driver()
    assert carried_out(monkeypatch, host) == ["3 packages held"]
    first, *sent = host.commands
    assert shlex.split(first)[1] == "to=/opt/llamafleet", "the folder comes with its own record"
    assert sent == [*written(RECORD), *written(HOLD_APT), f"apt-mark hold {NAMES}"]
    assert host.uploads[RECORD].decode().split() == list(PARTS)
    assert b"libnvidia-gl-580" in host.uploads[HOLD_APT]


def test_without_a_record_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    host = with_driver()
    host.answers[f"PUT {RECORD}"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(hold) == ["@fake/a"]
    assert not any("apt-mark" in command for command in host.sent)


def test_the_second_run_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = with_driver(held=PARTS, record=PARTS)
    assert again(monkeypatch, host) == []
    assert host.sent == []


def test_a_file_that_was_changed_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    host = with_driver(held=PARTS, record=PARTS)
    assert again(monkeypatch, host, **{HOLD_APT: "0" * 64}) == ["files of the hold"]
    assert host.sent == written(HOLD_APT)


def test_release_removes_the_files_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the record a hold that could not be released would pass for the administrator's."""
    host = with_driver(held=PARTS, record=PARTS, on=False)
    host.files({RECORD: "0" * 64, HOLD_APT: "0" * 64})
    assert carried_out(monkeypatch, host) == ["hold released"]
    assert host.sent == [f"apt-mark unhold {NAMES}", f"rm -f {RECORD} {HOLD_APT}"]


def test_a_hold_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    host = with_driver(held=PARTS, on=False)
    assert carried_out(monkeypatch, host) == []
    assert host.sent == []


def test_dnf_has_no_list_of_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    host = with_driver().changed(lines={"package_manager": ["dnf"]}).found("dnf_locks=1")
    assert carried_out(monkeypatch, host) == ["3 packages held"]
    _, *files, command = host.sent
    assert files == written(RECORD)
    assert command.split()[0] == "dnf" and command.endswith(NAMES)
