"""The account and its folders, by the commands that a host gets, and those for real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafleet.layout import Layout
from llamafleet.managed import folder_rows
from operations import account as room
from operations.account import account, make_prefix
from tests.operations.fake import FakeHost, fleet
from tests.operations.shells import run, under_any_login_shell

LAYOUT = Layout.system()


def owners(layout: Layout, user: str = "root") -> list[str]:
    """Lines of a snapshot: all folders as they should be."""
    lines = []
    for row in folder_rows(layout):
        wanted = row.access(layout)
        lines.append(f"41ed\t{wanted.user or user}\t{wanted.group or user}\t{row.path}")
    return lines


def sent(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> list[str]:
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(account) == []
    return host.commands


def test_a_bare_host_gets_an_account_that_may_use_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, record, user, video, render, *folders, below = sent(monkeypatch, FakeHost())
    assert prefix.startswith("env to=/opt/llamafleet ")
    assert record.startswith("printf ") and record.endswith(" >> /opt/llamafleet/made")
    assert "useradd --system $group" in user and "--shell /usr/sbin/nologin" in user
    assert "home=/var/lib/llamafleet" in user
    # Debian's driver packages give /dev/nvidia* to group video, mode 0660.
    for group, command in (("video", video), ("render", render)):
        assert command == (
            f"if getent group {group} >/dev/null; then usermod -aG {group} llamafleet; fi"
        )
    given = [text.split()[1:3] for text in folders]
    assert given == [
        ["d=/etc/llamafleet", "owner=root:root"],
        ["d=/etc/llamafleet/jobs", "owner=root:root"],
        ["d=/opt/llamafleet/jobs", "owner=root:root"],
        ["d=/var/lib/llamafleet", "owner=llamafleet:llamafleet"],
        ["d=/opt/llamafleet/versions", "owner=llamafleet:llamafleet"],
        ["d=/opt/llamafleet/toolkits", "owner=llamafleet:llamafleet"],
        ["d=/opt/llamafleet/serve", "owner=llamafleet:llamafleet"],
    ]
    assert below.startswith("setsid -w setpriv --reuid=llamafleet ")
    assert "/var/lib/llamafleet/results" in below, "made by the account itself"


def test_a_host_that_has_all_of_it_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost().found("account=1", "account_groups=llamafleet video render")
    made = [row.path for row in folder_rows(LAYOUT)]
    assert sent(monkeypatch, host.found(owners=owners(LAYOUT), made=made)) == []


def test_in_a_home_there_is_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = sent(monkeypatch, FakeHost("rtx4090-580-ubuntu24-user"))
    text = "\n".join(commands)
    assert "useradd" not in text and "setpriv" not in text and "/opt" not in text
    assert "to=/home/ada/.local/state/llamafleet/machine-id" in text


@pytest.mark.parametrize(("answer", "changes"), [("1", ["lingering enabled"]), ("0", [])])
def test_lingering_is_asked_for_and_its_refusal_is_no_change(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    changes: list[str],
) -> None:
    """A timer of the user's own systemd would die with the session, silently."""
    home = Layout.user("/home/ada")
    host = FakeHost("rtx4090-580-ubuntu24-user")
    host.found("systemctl=0", owners=owners(home, "ada"))
    host.found("state_machine=host gpu-a", "hostname=gpu-a")
    host.answers["enable-linger"] = answer
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.run(account) == []
        assert [change for change in run.runs["a"].changes if "lingering" in change] == changes
    refused = "next: sudo loginctl enable-linger ada" in capsys.readouterr().err
    assert refused is (answer == "0")


# -- for real --------------------------------------------------------------------------------------


@under_any_login_shell
def test_the_first_folder_comes_with_its_record(tmp_path: Path, login: str) -> None:
    layout = Layout.user(str(tmp_path / "with a blank"))
    assert run(make_prefix(layout), login).returncode == 0
    assert Path(layout.made).read_text() == f"{layout.prefix}\n"
    assert run(make_prefix(layout), login).returncode == 0
    assert Path(layout.made).read_text() == f"{layout.prefix}\n"


def test_one_that_was_there_gets_none(tmp_path: Path) -> None:
    layout = Layout.user(str(tmp_path))
    Path(layout.prefix).mkdir(parents=True)
    assert run(make_prefix(layout)).returncode == 0
    assert list(Path(layout.prefix).iterdir()) == []


def test_one_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    layout = Layout.user(str(tmp_path))
    Path(f"{layout.prefix}.partial/old").mkdir(parents=True)
    assert run(make_prefix(layout)).returncode == 0
    assert [path.name for path in Path(layout.prefix).iterdir()] == ["made"]


def folder(path: Path, record: Path, owner: str = "") -> str:
    done = run(room.script(room._FOLDER, d=str(path), made=str(record), owner=owner))
    return done.stderr if done.returncode else ""


def test_a_folder_is_recorded_before_it_is_made_and_never_one_that_was_there(
    tmp_path: Path,
) -> None:
    record = tmp_path / "made"
    assert folder(tmp_path / "a b" / "new", record) == ""
    assert record.read_text() == f"{tmp_path}/a b/new\n" and (tmp_path / "a b/new").is_dir()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    assert folder(theirs, record) == "" and str(theirs) not in record.read_text()
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(target)
    owner = "65534" if os.geteuid() == 0 else ""
    assert folder(tmp_path / "link", record, owner) == ""
    assert target.stat().st_uid == os.geteuid(), "what a link leads to is given to nobody"


def test_the_words_of_what_failed_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = folder(tmp_path / "file" / "x", tmp_path / "made")
    assert "Not a directory" in said or "File exists" in said


def test_no_link_is_given_an_owner_or_a_mode(tmp_path: Path) -> None:
    """/var/lib/llamafleet -> /etc: install -d gave that away."""
    target = tmp_path / "etc"
    target.mkdir(mode=0o700)
    (tmp_path / "state").symlink_to(target)
    done = run(room.script(room._OWN, d=str(tmp_path / "state"), owner="", mode="755"))
    assert done.returncode and "found a link; expected a folder" in done.stderr
    assert target.stat().st_mode & 0o777 == 0o700


def marker(path: Path, machine: str) -> str:
    done = run(room.script(room._MARKER, to=str(path), id=machine))
    return done.stderr if done.returncode else ""


def test_of_two_machines_in_one_home_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    assert marker(path, "a" * 32) == "" and marker(path, "a" * 32) == ""
    said = marker(path, "b" * 32)
    assert "a home that several hosts share" in said and path.read_text() == f"{'a' * 32}\n"
