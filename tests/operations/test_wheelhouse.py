"""The wheelhouse is brought as the plan says, by the commands that a host gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from operations.wheelhouse import wheelhouse
from tests.operations.fake import CPU, FakeHost, fleet
from tests.test_settings import make_wheelhouse

pytestmark = pytest.mark.usefixtures("frozen_tables")
TARGET = "/opt/llamafleet/wheelhouse"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return make_wheelhouse(tmp_path / "w", pythons=["3.11"])


def test_its_files_are_brought_the_manifest_last(
    monkeypatch: pytest.MonkeyPatch, house: Path
) -> None:
    host = FakeHost(CPU, accelerator="cpu", wheelhouse=str(house))
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(wheelhouse) == []
        assert run.runs["a"].changes == ["wheelhouse"]
    names = ["a.whl", "b.whl", "manifest.json"]
    assert host.sent == [
        f"rm -rf {TARGET}",
        f"install -d -m 755 {TARGET}",
        *(f"PUT {TARGET}/{name}" for name in names),
        f"chmod -R a+rX {TARGET}",
    ]
    assert host.uploads == {f"{TARGET}/{name}": (house / name).read_bytes() for name in names}


def test_a_copy_that_breaks_off_brings_no_manifest(
    monkeypatch: pytest.MonkeyPatch, house: Path
) -> None:
    host = FakeHost(CPU, accelerator="cpu", wheelhouse=str(house))
    host.answers["b.whl"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(wheelhouse) == ["@fake/a"]
    assert list(host.uploads) == [f"{TARGET}/a.whl"]
    assert host.sent[-1] == f"PUT {TARGET}/b.whl"


def test_one_that_is_there_is_not_brought_again(
    monkeypatch: pytest.MonkeyPatch, house: Path
) -> None:
    host = FakeHost(CPU, accelerator="cpu", wheelhouse=str(house))
    with fleet(monkeypatch, {"a": host}) as run:
        made = run.runs["a"].supplies.wheelhouse
        assert made is not None
        host.found(wheelhouse=[f"{made.sha256}  {TARGET}/manifest.json"])
        assert run.run(wheelhouse) == []
    assert host.sent == []


def test_none_is_brought_where_the_settings_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost(CPU, accelerator="cpu")
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(wheelhouse) == []
    assert host.sent == []
