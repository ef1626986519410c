"""The page for node_exporter, by the commands that a host gets, and those for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llamafleet.layout import Layout
from llamafleet.managed import folder_rows
from llamafleet.plans.account import AccountPlan
from llamafleet.plans.plan import FilesPlan
from llamafleet.zipapps import host_zipapp
from operations import lock
from operations import textfile as room
from operations.run import HostRun
from operations.textfile import textfile
from tests.operations.fake import FakeHost, fleet
from tests.operations.shells import run, under_any_login_shell
from tests.protocol.test_verify import good

LAYOUT = Layout.system()
FOLDER = "/var/lib/prometheus/node-exporter"
PAGE = f"{FOLDER}/llamafleet.prom"
READ, THERE = f"41ed\troot\troot\t{FOLDER}", f"81a4\troot\troot\t{PAGE}"


def sent(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> tuple[list[str], list[str]]:
    with fleet(monkeypatch, {"a": host}) as made:
        assert made.run(textfile) == []
        return host.commands, made.runs["a"].changes


def host(*made: str, owners: tuple[str, ...] = (READ,), **data: str) -> FakeHost:
    lines = [row.path for row in folder_rows(LAYOUT)] + [f"metrics {path}" for path in made]
    return FakeHost(**data).found(made=lines, owners=list(owners))


def test_without_the_setting_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, host()) == ([], [])


def test_a_page_that_is_there_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    there = host(PAGE, owners=(READ, THERE), metrics_folder=FOLDER)
    assert sent(monkeypatch, there) == ([], [])


def test_it_is_made_and_an_old_one_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, changes = sent(monkeypatch, host("/old/llamafleet.prom", metrics_folder=FOLDER))
    remove, make = commands
    assert remove.startswith("env path=/old/llamafleet.prom 'line=metrics /old/llamafleet.prom' ")
    assert f"path={PAGE} 'line=metrics {PAGE}' made=/opt/llamafleet/made python=/usr/" in make
    assert "config=/etc/llamafleet/verify.json" in make
    assert changes == ["llamafleet.prom removed", "llamafleet.prom written"]


@pytest.mark.parametrize(("data", "wanted"), [({}, False), ({"metrics_folder": FOLDER}, True)])
def test_for_a_page_alone_the_host_is_taken_too(
    monkeypatch: pytest.MonkeyPatch, data: dict[str, str], wanted: bool
) -> None:
    monkeypatch.setattr(lock, "plan_account", lambda *asked: AccountPlan())
    monkeypatch.setattr(lock, "changes_anything", lambda plan: False)
    monkeypatch.setattr(HostRun, "files", lambda run, group: FilesPlan())
    with fleet(monkeypatch, {"a": host(**data)}) as made:
        assert lock.anything_to_do(made.runs["a"]) is wanted


class Place:
    """A record and a folder on this machine."""

    def __init__(self, root: Path, zipapp: Path) -> None:
        self.made, self.path = root / "made", root / "read/llamafleet.prom"
        self.line = f"metrics {self.path}"
        self.zipapp, self.config = zipapp, root / "verify.json"
        self.config.write_text(json.dumps(good() | {"results": "/no/such"}))
        self.path.parent.mkdir()
        self.made.write_text("/opt/llamafleet\n")

    def do(self, script: str, shell: str = "sh") -> str:
        """What it says where it fails."""
        partial = f"{self.made}.partial"
        values = {"path": self.path, "line": self.line, "made": self.made, "partial": partial}
        values |= {"python": sys.executable, "zipapp": self.zipapp, "config": self.config}
        told = {name: str(value) for name, value in values.items()}
        done = run(room.script(script, **told), shell)
        return done.stderr or "failed" if done.returncode else ""


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zipapp") / "llamafleet-host.pyz"
    path.write_bytes(host_zipapp())
    return path


@pytest.fixture
def place(tmp_path: Path, zipapp: Path) -> Place:
    return Place(tmp_path, zipapp)


def test_twice_is_one_line_and_one_page(place: Place) -> None:
    assert place.do(room._MAKE) == ""
    assert 'llamafleet_verdict{verdict="NOT VERIFIED"} 1.0\n' in place.path.read_text()
    place.path.unlink()
    assert place.do(room._MAKE) == "" and place.path.is_file()
    assert place.made.read_text() == f"/opt/llamafleet\n{place.line}\n"


def test_what_lies_there_meanwhile_is_not_replaced(place: Place) -> None:
    place.path.write_text("theirs")
    assert "which llamafleet did not make" in place.do(room._MAKE)
    assert place.path.read_text() == "theirs" and place.made.read_text() == "/opt/llamafleet\n"
    place.path.unlink()
    place.path.symlink_to("/no/such")
    assert "which llamafleet did not make" in place.do(room._MAKE)


def test_a_page_that_can_t_be_written_is_a_failure(place: Place) -> None:
    place.path.parent.rmdir()
    assert f"metrics: found that {place.path} can't be written" in place.do(room._MAKE)


def test_removed_it_is_gone_from_folder_and_record(place: Place) -> None:
    place.do(room._MAKE)
    assert place.do(room._REMOVE) == ""
    assert not place.path.exists() and place.made.read_text() == "/opt/llamafleet\n"
    assert not Path(f"{place.made}.partial").exists()


def test_another_s_link_in_its_place_stays(place: Place) -> None:
    place.do(room._MAKE)
    place.path.unlink()
    place.path.symlink_to(place.zipapp)
    assert place.do(room._REMOVE) == ""
    assert place.path.is_symlink() and place.made.read_text() == "/opt/llamafleet\n"


def test_a_record_of_one_line_may_become_empty(place: Place) -> None:
    place.do(room._MAKE)
    place.made.write_text(f"{place.line}\n")
    assert place.do(room._REMOVE) == "" and place.made.read_text() == ""


@under_any_login_shell
def test_each_login_shell_hands_it_on(login: str, place: Place) -> None:
    assert place.do(room._MAKE, login) == ""
    assert place.path.is_file()
    assert place.do(room._REMOVE, login) == ""
    assert not place.path.exists() and place.made.read_text() == "/opt/llamafleet\n"
