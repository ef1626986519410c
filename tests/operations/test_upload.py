"""Files come whole or not at all, with their mode, under every login shell; no link is followed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llamafleet.layout import Layout
from llamafleet.managed import Access, access
from operations import upload
from tests.operations.shells import run, run_all, under_any_login_shell

OWN = access(Layout.user("/home/joe"))
SECRET = access(Layout.user("/home/joe"), secret=True)
root = pytest.mark.skipif(os.geteuid() != 0, reason="files of several users need root")


@under_any_login_shell
def test_each_byte_arrives_under_any_login_shell(login: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 700 + b"no line end"
    target = tmp_path / "with a blank" / "it's $HOME"
    assert run_all(upload.write(content, str(target), SECRET), login) == []
    assert target.read_bytes() == content and target.stat().st_mode & 0o7777 == 0o600
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_an_empty_file_is_one_too(tmp_path: Path) -> None:
    assert run_all(upload.write(b"", str(tmp_path / "a"), OWN)) == []
    assert (tmp_path / "a").read_bytes() == b""


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """As planted for config.json -> /etc/shadow, and for the name that it is received under."""
    shadow, target = tmp_path / "shadow", tmp_path / "config.json"
    shadow.write_text("secret")
    shadow.chmod(0o600)
    for name in ("config.json", "config.json.partial"):
        (tmp_path / name).symlink_to(shadow)
    assert run_all(upload.write(b"told", str(target), OWN)) == []
    assert shadow.read_text() == "secret" and shadow.stat().st_mode & 0o777 == 0o600
    assert not target.is_symlink() and target.read_bytes() == b"told"


@root
def test_nothing_is_written_into_a_folder_of_somebody_else(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    (said,) = run_all(upload.write(b"x" * 300_000, str(theirs / "a"), OWN))
    assert "found a folder of somebody else; expected one of root; next: ls -ld" in said
    assert list(theirs.iterdir()) == []


@root
def test_owner_and_mode_are_set_before_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "a"
    assert run_all(upload.write(b"x", str(target), Access("nobody", "daemon", 0o640))) == []
    found = target.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 1, 0o640)
    (said,) = run_all(upload.write(b"y", str(target), Access("no-such", "root", 0o640)))
    assert "no-such" in said and target.read_bytes() == b"x", "the words of chown itself"


def test_what_was_changed_on_the_way_takes_no_place(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("before")
    (command,) = upload.write(b"after", str(target), OWN)
    sha256, *_ = command.connector_arguments["_stdin"]
    command.connector_arguments["_stdin"] = [sha256, "YWx0ZXJlZA==", upload.END]
    done = run(command)
    assert done.returncode and "after the upload" not in done.stdout
    assert f"found sha256 {hashlib.sha256(b'altered').hexdigest()} of what came" in done.stderr
    assert target.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_in_its_place_fails_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (said,) = run_all(upload.write(b"x", str(tmp_path / "a"), OWN))
    assert "directory" in said and str(tmp_path / "a") in said


def test_a_big_file_comes_in_parts_and_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART", 100_000)
    source, target = tmp_path / "source", tmp_path / "target"
    content = os.urandom(250_001)
    source.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    commands = list(upload.write(source, str(target), OWN, sha256))
    assert len(commands) == 3
    assert run_all(commands[:2]) == [] and not target.exists()
    assert run_all(commands[2:]) == [] and target.read_bytes() == content
    (again, *_) = upload.write(source, str(target), OWN, sha256)
    assert run_all([again]) == [], "a new attempt begins anew"
    assert (tmp_path / "target.partial").stat().st_size == 100_000
    source.write_bytes(content[:-1] + b"x")
    (said,) = run_all(upload.write(source, str(target), OWN, sha256))
    assert f"expected {sha256}" in said and target.read_bytes() == content


def test_a_disk_that_is_full_says_so_and_keeps_what_was_there(tmp_path: Path) -> None:
    """By a limit of the shell, as of a disk."""
    target = tmp_path / "a"
    target.write_text("before")
    (command,) = upload.write(b"x" * 2_000_000, str(target), OWN)
    text = command.get_raw_value()
    lines = command.connector_arguments["_stdin"]
    from pyinfra.api import StringCommand

    done = run(StringCommand(f"ulimit -f 100; {text}", _stdin=lines))
    assert done.returncode != 0 and target.read_text() == "before"


def test_a_command_line_tells_nothing_of_a_password() -> None:
    """Everybody on the host can read it; a weak password is found by its hash."""
    netrc = b"machine pypi.lab login joe password hunter2"
    (command,) = upload.write(netrc, "/etc/llamafleet/netrc", SECRET)
    assert hashlib.sha256(netrc).hexdigest() not in command.get_raw_value()


def test_no_name_that_others_can_foretell_is_used(tmp_path: Path) -> None:
    """/tmp does not appear: pyinfra's own upload goes through it."""
    for command in upload.write(b"x", "/opt/llamafleet/a", access(Layout.system())):
        assert "/tmp" not in command.get_raw_value()
