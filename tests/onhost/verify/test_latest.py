"""Which verdict becomes latest.json, beside what the driver check says meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.onhost.verify import run as verify
from llamafleet.onhost.verify.evidence import Faults
from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.job import write_json
from tests.history import RESULT
from tests.protocol.test_verify import good

CHANGED: dict[str, Any] = {"reason": "the driver changed from 570.86.10 to 580.95.05"}
HALVES: dict[str, Any] = {"reason": "reboot needed: loaded kernel module 1, library 2"}

NOT_VERIFIED = 'llamafleet_verdict{verdict="NOT VERIFIED"} 1.0\n'


class Folder:
    """Results of a host, and a verification that only lasts."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        places = {"results": str(root / "results"), "job": str(root / "job")}
        self.config = verify_config.parse(root, good() | places)
        self.results = root / "results"
        self.results.mkdir()
        self.latest, self.stale = self.config.latest, self.config.stale
        self.monkeypatch = monkeypatch

    def verify(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        made = SimpleNamespace(
            started=0.0,
            progress=SimpleNamespace(phase=lambda name: None),
            run=meanwhile,
            close=lambda: None,
            result=lambda: RESULT,
        )
        self.monkeypatch.setattr(verify, "Verification", lambda config, faults: made)
        assert verify.verify(self.config, Faults()) == 0
        assert len(list(self.results.glob(f"*-{RESULT.fingerprint}.json"))) == 1, (
            "the result is kept"
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


def test_the_verdict_after_a_driver_update_takes_its_report_s_place(folder: Folder) -> None:
    write_json(folder.stale, CHANGED)
    folder.verify()
    assert json.loads(folder.latest.read_text())["verdict"] == "PASS"
    assert not folder.stale.exists()


@pytest.mark.parametrize("before", [None, CHANGED])
def test_a_verdict_on_a_driver_that_changed_meanwhile_does_not_count(
    folder: Folder, before: dict[str, Any] | None
) -> None:
    if before:
        write_json(folder.stale, before)
    folder.verify(lambda: write_json(folder.stale, HALVES))
    assert not folder.latest.exists()
    assert json.loads(folder.stale.read_text())["reason"] == HALVES["reason"]
    assert NOT_VERIFIED in folder.config.prom.read_text()


def test_an_old_verdict_is_gone_while_the_new_one_is_made(folder: Folder) -> None:
    folder.latest.write_text('{"verdict": "PASS"}')
    prom = folder.config.prom
    prom.write_text('llamafleet_verdict{verdict="PASS"} 1.0\n')
    seen: list[tuple[bool, bool]] = []
    folder.verify(lambda: seen.append((folder.latest.exists(), NOT_VERIFIED in prom.read_text())))
    assert seen == [(False, True)] and folder.latest.exists()
    assert NOT_VERIFIED not in prom.read_text()
    assert 'llamafleet_verdict{verdict="PASS"} 1.0\n' in prom.read_text()


def test_figures_that_can_t_be_told_change_no_verdict(folder: Folder) -> None:
    folder.config.prom.mkdir()
    folder.verify()
    assert json.loads(folder.latest.read_text())["verdict"] == "PASS"


def test_with_a_bad_configuration_no_old_verdict_is_told(folder: Folder, tmp_path: Path) -> None:
    folder.config.prom.write_text('llamafleet_verdict{verdict="PASS"} 1.0\n')
    bad = tmp_path / "verify.json"
    bad.write_text(json.dumps({"version": 1, "results": str(folder.results)}))
    assert verify.main(["--config", str(bad)]) == verify.EXIT_CONFIG
    assert not folder.config.prom.exists()
