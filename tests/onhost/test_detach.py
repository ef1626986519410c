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

from llamafleet.layout import AS_ACCOUNT, USER
from llamafleet.onhost import detach
from llamafleet.protocol.job import PATH
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


def test_nothing_of_the_caller_s_environment_reaches_it(tmp_path: Path, who: Path) -> None:
    os.environ["LLAMAFLEET_TEST_SECRET"] = "hunter2"
    try:
        answer = subprocess.run(
            [PYTHON, who, "start", "--log", tmp_path / "log", "--", "x"],
            env=os.environ | {"LD_LIBRARY_PATH": "/none", "PIP_INDEX_URL": "http://b:hunter2@x"},
            check=False,
        )
    finally:
        del os.environ["LLAMAFLEET_TEST_SECRET"]
    assert answer.returncode == 0
    env = said(tmp_path / "log")["env"]
    account = pwd.getpwuid(os.getuid())
    assert isinstance(env, dict)
    assert env | {"HOME": account.pw_dir, "USER": account.pw_name} == env
    assert set(env) <= {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LC_ALL"}


@needs_root
def test_root_leaves_its_rights_behind_before_it_starts_one(open_folder: Path) -> None:
    """As operations do it: nothing of it ever runs as root."""
    python = interpreter()
    if python is None:
        pytest.skip("no interpreter here that another user may run")
    account = pwd.getpwnam("nobody")
    log = open_folder / "log"
    rights = [word.replace(USER, "nobody") for word in AS_ACCOUNT]
    rights[2] = f"--regid={account.pw_gid}"
    command = ["env", "-i", f"PATH={PATH}", *rights, python, script_in(open_folder)]
    answer = subprocess.run(
        [*command, "start", "--log", log, "--", "x"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    data = said(log)
    assert (data["uid"], data["gid"]) == (account.pw_uid, account.pw_gid)
    assert data["groups"] == os.getgrouplist("nobody", account.pw_gid)
    assert log.stat().st_uid == account.pw_uid
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


def test_a_log_that_is_a_link_is_not_written_to(tmp_path: Path, who: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "log").symlink_to(victim)
    answer = start(who, "--log", str(tmp_path / "log"), "--", "x")
    assert answer.returncode == detach.EXIT_USAGE and "symbolic links" in answer.stderr
    assert victim.read_text() == "mine"


def test_what_can_not_be_started_is_told(tmp_path: Path, who: Path) -> None:
    nowhere = start(who, "--log", str(tmp_path / "no" / "log"), "--", "x")
    assert nowhere.returncode == detach.EXIT_USAGE
    assert "No such file" in nowhere.stderr
    empty = start(who, "--log", str(tmp_path / "log"))
    assert empty.returncode == detach.EXIT_USAGE
    assert "found no command" in empty.stderr
    assert not (tmp_path / "log").exists()
