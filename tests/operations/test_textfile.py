"""The link for node_exporter, by the commands that a host gets, and those for real."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llamafleet.layout import Layout
from llamafleet.managed import folder_rows
from llamafleet.plans.account import AccountPlan
from llamafleet.plans.plan import FilesPlan
from operations import lock
from operations import textfile as room
from operations.run import HostRun
from operations.textfile import textfile
from tests.operations.fake import FakeHost, fleet
from tests.operations.shells import LOGIN_SHELLS, run

LAYOUT = Layout.system()
FOLDER = "/var/lib/prometheus/node-exporter"
LINK = f"{FOLDER}/llamafleet.prom"
THERE = f"a1ff\troot\troot\t{LINK}"


def sent(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> tuple[list[str], list[str]]:
    with fleet(monkeypatch, {"a": host}) as made:
        assert made.run(textfile) == []
        return host.commands, made.runs["a"].changes


def host(*made: str, owners: tuple[str, ...] = (), **data: str) -> FakeHost:
    lines = [row.path for row in folder_rows(LAYOUT)] + [f"link {path}" for path in made]
    return FakeHost(**data).found(made=lines, owners=list(owners))


def test_without_the_setting_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, host()) == ([], [])


def test_a_link_that_is_there_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    there = host(LINK, owners=(THERE,), metrics_folder=FOLDER)
    assert sent(monkeypatch, there) == ([], [])


def test_it_is_made_and_an_old_one_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, changes = sent(monkeypatch, host("/old/llamafleet.prom", metrics_folder=FOLDER))
    remove, make = commands
    assert remove.startswith("env path=/old/llamafleet.prom 'line=link /old/llamafleet.prom' ")
    assert f"path={LINK} target=/var/lib/llamafleet/results/llamafleet.prom" in make
    assert changes == ["llamafleet.prom removed", "llamafleet.prom linked"]


@pytest.mark.parametrize(("data", "wanted"), [({}, False), ({"metrics_folder": FOLDER}, True)])
def test_for_a_link_alone_the_host_is_taken_too(
    monkeypatch: pytest.MonkeyPatch, data: dict[str, str], wanted: bool
) -> None:
    monkeypatch.setattr(lock, "plan_account", lambda *asked: AccountPlan())
    monkeypatch.setattr(lock, "changes_anything", lambda plan: False)
    monkeypatch.setattr(HostRun, "files", lambda run, group: FilesPlan())
    with fleet(monkeypatch, {"a": host(**data)}) as made:
        assert lock.anything_to_do(made.runs["a"]) is wanted


class Place:
    """A record and a folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.made, self.path = root / "made", root / "read/llamafleet.prom"
        self.line = f"link {self.path}"
        self.path.parent.mkdir()
        self.made.write_text("/opt/llamafleet\n")

    def do(self, script: str, shell: str = "sh") -> int:
        partial = f"{self.made}.partial"
        values = {"path": self.path, "line": self.line, "made": self.made, "partial": partial}
        values["target"] = "/no/such/llamafleet.prom"
        told = {name: str(value) for name, value in values.items()}
        return run(room.script(script, **told), shell).returncode


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_twice_is_one_line_and_one_link(place: Place) -> None:
    assert place.do(room._MAKE) == 0
    assert place.path.readlink() == Path("/no/such/llamafleet.prom")
    place.path.unlink()
    assert place.do(room._MAKE) == 0
    assert place.made.read_text() == f"/opt/llamafleet\n{place.line}\n"


def test_what_lies_there_meanwhile_is_not_replaced(place: Place) -> None:
    place.path.write_text("theirs")
    assert place.do(room._MAKE) != 0
    assert place.path.read_text() == "theirs"


def test_removed_it_is_gone_from_folder_and_record(place: Place) -> None:
    place.do(room._MAKE)
    assert place.do(room._REMOVE) == 0
    assert not place.path.is_symlink() and place.made.read_text() == "/opt/llamafleet\n"
    assert not Path(f"{place.made}.partial").exists()


def test_another_s_file_in_its_place_stays(place: Place) -> None:
    place.do(room._MAKE)
    place.path.unlink()
    place.path.write_text("theirs")
    assert place.do(room._REMOVE) == 0
    assert place.path.read_text() == "theirs" and place.made.read_text() == "/opt/llamafleet\n"


def test_a_record_of_one_line_may_become_empty(place: Place) -> None:
    place.do(room._MAKE)
    place.made.write_text(f"{place.line}\n")
    assert place.do(room._REMOVE) == 0 and place.made.read_text() == ""


@pytest.mark.parametrize("shell", LOGIN_SHELLS)
def test_each_login_shell_hands_it_on(shell: str, place: Place) -> None:
    if shutil.which(shell.split(maxsplit=1)[0]) is None:
        pytest.skip(f"no {shell} here")
    assert place.do(room._MAKE, shell) == 0
    assert place.do(room._REMOVE, shell) == 0
    assert not place.path.is_symlink() and place.made.read_text() == "/opt/llamafleet\n"
