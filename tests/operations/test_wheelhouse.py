"""The wheelhouse is brought as the plan says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot
from operations import wheelhouse
from tests.plans.hosts import CPU_HOST, HOUSE, plan


def commands(monkeypatch: pytest.MonkeyPatch, host: HostSnapshot, **settings: Any) -> list[Any]:
    made = plan(host, accelerator="cpu", **settings)
    run = SimpleNamespace(noop=lambda text: None, plan=lambda: made, changed=lambda what: None)
    monkeypatch.setattr(wheelhouse, "here", lambda: run)
    operation: Any = wheelhouse.wheelhouse._inner  # type: ignore[attr-defined]
    return list(operation())


def test_its_files_are_brought_the_manifest_last(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, made, *files, mode = commands(monkeypatch, CPU_HOST, house=HOUSE)
    target = "/var/lib/llamafleet/wheelhouse"
    assert [str(gone), str(made)] == [f"rm -rf {target}", f"install -d -m 755 {target}"]
    names = [*HOUSE.manifest.files, "manifest.json"]
    assert [(file.src, file.dest) for file in files] == [
        (f"/srv/w/{name}", f"{target}/{name}") for name in names
    ]
    assert str(mode) == f"chmod -R a+rX {target}"


def test_nothing_is_brought_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    there = replace(CPU_HOST, wheelhouse=HOUSE.sha256)
    assert commands(monkeypatch, there, house=HOUSE) == []
    assert commands(monkeypatch, CPU_HOST) == []
