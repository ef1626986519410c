"""The wheelhouse is brought as the plan says, by the commands that a host gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.layout import Layout
from operations.wheelhouse import bring, wheelhouse
from tests.operations.fake import CPU, FakeHost, fleet
from tests.operations.shells import run_all
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
    partial = f"{TARGET}.partial"
    assert host.commands == [
        f"rm -rf -- {partial} && mkdir -m 755 -- {partial}",
        *(f"PUT {partial}/{name}" for name in names),
        f"rm -rf -- {TARGET} && mv -T -- {partial} {TARGET}",
        # The copy of before, among the account's folders.
        "rm -rf --one-file-system -- /var/lib/llamafleet/wheelhouse",
    ]
    assert host.uploads == {f"{partial}/{name}": (house / name).read_bytes() for name in names}
    assert set(host.access.values()) == {"root:root 644"}


def test_a_file_that_is_not_the_manifest_s_ends_it(
    monkeypatch: pytest.MonkeyPatch, house: Path
) -> None:
    """It was altered on the controller meanwhile, or on its way: the host itself compares."""
    host = FakeHost(CPU, accelerator="cpu", wheelhouse=str(house))
    with fleet(monkeypatch, {"a": host}) as run:
        supply = run.runs["a"].supplies.wheelhouse
        wanted = run.runs["a"].plan().wheelhouse
        assert supply is not None and wanted is not None
    (house / "b.whl").write_bytes(b"altered")
    target = house.with_name("host")
    target.mkdir()
    moved = replace(wanted, target=str(target / "wheelhouse"))
    sha256 = {name: file.sha256 for name, file in supply.manifest.files.items()}
    commands = bring(moved, {**sha256, "manifest.json": supply.sha256}, Layout.user("/home/joe"))
    (said,) = run_all(commands)
    assert "b.whl: found sha256" in said and f"expected {sha256['b.whl']}" in said
    assert not (target / "wheelhouse").exists()


def test_a_copy_that_breaks_off_brings_no_manifest(
    monkeypatch: pytest.MonkeyPatch, house: Path
) -> None:
    host = FakeHost(CPU, accelerator="cpu", wheelhouse=str(house))
    host.answers["b.whl"] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(wheelhouse) == ["@fake/a"]
    assert list(host.uploads) == [f"{TARGET}.partial/a.whl"]
    assert host.sent[-1] == f"PUT {TARGET}.partial/b.whl"


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
