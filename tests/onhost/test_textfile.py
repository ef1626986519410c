"""The page that node_exporter reads: made of what the account wrote, and never what it wrote."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llamafleet.onhost import __main__ as zipapp
from llamafleet.onhost import textfile
from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.job import write_json
from llamafleet.protocol.result import Result
from tests.history import RESULT, gpu
from tests.protocol.test_verify import good

NOT_VERIFIED = 'llamafleet_verdict{verdict="NOT VERIFIED"} 1.0\n'
PASS = 'llamafleet_verdict{verdict="PASS"} 1.0\n'


class Place:
    """The account's results, and the folder that node_exporter reads."""

    def __init__(self, root: Path) -> None:
        self.results, self.read = root / "results", root / "read"
        self.results.mkdir()
        self.read.mkdir()
        self.latest, self.page = self.results / "latest.json", self.read / "llamafleet.prom"
        self.record = root / "made"
        self.record.write_text(f"/opt/llamafleet\nmetrics {self.page}\naccount\n")
        self.file = root / "verify.json"
        self.configure()

    def configure(self, **changed: object) -> None:
        places = {"results": str(self.results), "job": str(self.results / "job")}
        self.file.write_text(json.dumps(good() | places | changed))
        self.config = verify_config.load(self.file)

    def verdict(self, result: Result) -> None:
        write_json(self.latest, asdict(result))

    def show(self) -> int:
        told = ["--config", str(self.file), "--record", str(self.record)]
        return zipapp.main(["metrics", *told])

    @property
    def shown(self) -> str:
        return self.page.read_text()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_verdict_is_shown_to_any_account(place: Place) -> None:
    """Also one of before there were figures for Prometheus, and whatever umask root has."""
    place.verdict(RESULT)
    before = os.umask(0o077)
    try:
        assert place.show() == 0
    finally:
        os.umask(before)
    assert PASS in place.shown and NOT_VERIFIED not in place.shown
    assert place.page.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in place.read.iterdir()] == ["llamafleet.prom"]


def test_without_one_nothing_is_proven(place: Place) -> None:
    place.verdict(RESULT)
    place.show()
    place.latest.unlink()
    assert place.show() == 0
    assert NOT_VERIFIED in place.shown and PASS not in place.shown


def test_it_is_of_the_settings_of_today(place: Place) -> None:
    place.verdict(replace(RESULT, verdict="BUSY"))
    place.show()
    assert "\nllamafleet_verified 0.0\n" in place.shown
    assert "\nllamafleet_verification_timer 1.0\n" in place.shown
    place.configure(allow_busy=True, timer=False)
    place.show()
    assert "\nllamafleet_verified 1.0\n" in place.shown
    assert "\nllamafleet_verification_timer 0.0\n" in place.shown


def plant(place: Place, what: str) -> None:
    """In place of latest.json, what the account may put there."""
    place.latest.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(place.latest)
    elif what == "link":
        elsewhere = place.results.parent / "secret.json"
        elsewhere.write_text(json.dumps(asdict(RESULT)))
        place.latest.symlink_to(elsewhere)
    elif what == "folder":
        place.latest.mkdir()
    elif what == "many":
        place.verdict(replace(RESULT, gpus=(replace(gpu(), uuid="x" * 200_000),)))
        assert textfile.read_json(place.latest) is not None
    else:
        place.latest.write_text(what)


@pytest.mark.parametrize(
    "what", ["pipe", "link", "folder", "many", "", "{}", "[" * 100_000, '{"verdict": "PASS"}']
)
def test_what_is_no_verdict_is_not_shown(what: str, place: Place) -> None:
    """Each of them, read by node_exporter itself, would hang it, stop it or fill it."""
    place.verdict(RESULT)
    place.show()
    plant(place, what)
    assert place.show() == 0
    assert place.shown == textfile.metrics.page_of(place.config, None).decode()


def test_what_lies_in_the_page_s_place_is_replaced_and_not_followed(place: Place) -> None:
    victim = place.read.parent / "victim"
    victim.write_text("theirs")
    place.page.symlink_to(victim)
    assert place.show() == 0
    assert victim.read_text() == "theirs" and not place.page.is_symlink()


def test_no_page_is_written_that_the_record_does_not_name(place: Place) -> None:
    place.record.write_text("/opt/llamafleet\n")
    assert place.show() == 0 and not place.page.exists()


def test_a_folder_that_became_a_link_is_not_entered(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.read.rename(place.read.with_name("elsewhere"))
    place.read.symlink_to("elsewhere")
    assert place.show() == 1 and f"{place.read} is a link" in capsys.readouterr().err
    assert not place.page.exists()


def test_what_can_t_be_read_or_written_is_said(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.read.rmdir()
    assert place.show() == 1
    assert f"metrics: found that {place.page} can't be written" in capsys.readouterr().err
    place.record.unlink()
    assert place.show() == 1 and "next: deploy again" in capsys.readouterr().err
    place.file.unlink()
    assert place.show() == 2 and "deploy writes it" in capsys.readouterr().err


def test_a_verdict_that_changes_meanwhile_is_the_one_that_is_shown(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd looks away while the unit runs."""
    write, changes = textfile.write_whole, [lambda: place.verdict(RESULT)]

    def slowly(*told: object, **how: object) -> None:
        write(*told, **how)  # type: ignore[arg-type]
        if changes:
            changes.pop()()

    monkeypatch.setattr(textfile, "write_whole", slowly)
    assert place.show() == 0
    assert PASS in place.shown
