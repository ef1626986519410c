"""A detached command outlives its caller, belongs to nobody's terminal and to the right user."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.onhost import detach
from tests.onhost.runner import PYTHON, Runner, wait_for

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root may become another user")

# Stands in for the zipapp: its one command says who it is.
WHO = """
import json, os, sys
sys.path.insert(0, {root!r})
from llamafleet.onhost import detach
if sys.argv[1] == "start":
    sys.exit(detach.main(sys.argv[2:]))
print(json.dumps({{
    "args": sys.argv[1:], "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
    "sid": os.getsid(0), "pid": os.getpid(), "cwd": os.getcwd(), "umask": os.umask(0),
    "env": dict(os.environ), "stdin": os.readlink("/proc/self/fd/0"),
}}))
"""


def interpreter() -> str | None:
    """A Python that any user may run; one below a home directory is none."""
    for path in (PYTHON, "/usr/bin/python3"):
        parents = Path(path).resolve().parents
        if Path(path).exists() and all(p.stat().st_mode & stat.S_IXOTH for p in parents):
            return path
    return None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may write to; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def script_in(folder: Path) -> Path:
    script = folder / "llamafleet-host.py"
    script.write_text(WHO.format(root=str(Runner(folder).zipapp)))
    return script


@pytest.fixture
def who(tmp_path: Path) -> Path:
    return script_in(tmp_path)


def start(who: Path, *args: str, python: str = PYTHON) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, who, "start", *args],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": os.environ["PATH"], "SUDO_USER": "someone", "XDG_RUNTIME_DIR": "/run/x"},
    )


def said(log: Path) -> dict[str, object]:
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"), 10)
    data: dict[str, object] = json.loads(log.read_text())
    return data


def test_command_is_detached(tmp_path: Path, who: Path) -> None:
    log = tmp_path / "log"
    answer = start(who, "--log", str(log), "--", "job", "--kind", "build", "--", "x")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    data = said(log)
    assert data["args"] == ["job", "--kind", "build", "--", "x"]
    assert data["sid"] not in (os.getsid(0), data["pid"])
    assert data["cwd"] == "/"
    assert data["umask"] == 0o022
    assert data["stdin"] == "/dev/null"


def test_a_real_job_is_detached_and_followed(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    folder = runner.job("toolkit", "13.0", {"root": str(tmp_path / "t"), "requirements": ""})
    log = str(folder / "start.log")
    folder.mkdir(parents=True)
    assert runner.run("start", "--log", log, "--", *runner.command(folder)).returncode == 0
    wait_for(lambda: runner.status(folder)["state"] == "failed", 30)


def test_environment_file(tmp_path: Path, who: Path) -> None:
    env = tmp_path / "e.env"
    env.write_text("# comment\n; too\n\nA=1 2\nB=\"three $HOME\"\nC='x'\nD=\nE=a=b\n")
    assert (
        start(who, "--log", str(tmp_path / "log"), "--env-file", str(env), "--", "x").returncode
        == 0
    )
    got = said(tmp_path / "log")["env"]
    assert isinstance(got, dict)
    expected = {"A": "1 2", "B": "three $HOME", "C": "x", "D": "", "E": "a=b"}
    assert {key: got[key] for key in expected} == expected


@needs_root
def test_root_becomes_the_user(open_folder: Path) -> None:
    python = interpreter()
    if python is None:
        pytest.skip("no interpreter here that another user may run")
    account = pwd.getpwnam("nobody")
    log = open_folder / "log"
    arguments = ("--log", str(log), "--user", "nobody", "--", "x")
    answer = start(script_in(open_folder), *arguments, python=python)
    assert answer.returncode == 0, answer.stderr
    data = said(log)
    assert (data["uid"], data["gid"]) == (account.pw_uid, account.pw_gid)
    assert data["groups"] == os.getgrouplist("nobody", account.pw_gid)
    assert log.stat().st_uid == account.pw_uid
    assert stat.S_IMODE(log.stat().st_mode) == 0o644
    env = data["env"]
    assert isinstance(env, dict)
    assert (env["HOME"], env["USER"]) == (account.pw_dir, "nobody")
    assert not {"SUDO_USER", "XDG_RUNTIME_DIR"} & set(env)


@needs_root
def test_log_that_the_user_may_not_write_is_told(open_folder: Path) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    who = script_in(open_folder)
    answer = start(who, "--log", str(closed / "log"), "--user", "nobody", "--", "x")
    assert answer.returncode == detach.EXIT_USAGE
    assert "Permission denied" in answer.stderr
    assert not (closed / "log").exists()


def test_what_can_not_be_started_is_told(tmp_path: Path, who: Path) -> None:
    nowhere = start(who, "--log", str(tmp_path / "no" / "log"), "--", "x")
    assert nowhere.returncode == detach.EXIT_USAGE
    assert "No such file" in nowhere.stderr
    stranger = start(who, "--log", str(tmp_path / "log"), "--user", "no-such-user", "--", "x")
    assert stranger.returncode == detach.EXIT_USAGE
    assert "found no account 'no-such-user'" in stranger.stderr
    empty = start(who, "--log", str(tmp_path / "log"))
    assert empty.returncode == detach.EXIT_USAGE
    assert "found no command" in empty.stderr
    missing = start(who, "--log", str(tmp_path / "log"), "--env-file", "/no/file", "--", "x")
    assert missing.returncode == detach.EXIT_USAGE
    assert "/no/file" in missing.stderr
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("line", ["export A=1", "no equals", "1A=2", "A='unclosed"])
def test_malformed_environment_line_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "e.env"
    path.write_text(f"OK=1\n{line}\n")
    with pytest.raises(ValueError, match=r"e\.env:2|quotation"):
        detach.read_env_file(path)


def test_only_root_becomes_another_user(
    who: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert detach.main(["--log", "/dev/null", "--user", "root", "--", "x"]) == detach.EXIT_USAGE
    assert "only root may become another user" in capsys.readouterr().err
