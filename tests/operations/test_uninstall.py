"""The commands that a host gets to be rid of llamafleet, and what they leave alone, for real."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import AS_ACCOUNT, CDI_FILE, HOLD_APT, Layout, quadlet
from llamafleet.managed import by_path, unit_names
from llamafleet.plans.uninstall import Process
from llamafleet.protocol.job import SharedWheel, Stamp, start_ticks
from llamafleet.wheelstore import WheelStore
from operations.container import REMOVE
from operations.run import HostRun
from operations.uninstall import end, end_all, uninstall
from tests.operations import fake
from tests.operations.fake import fleet
from tests.operations.shells import run, under_any_login_shell
from tests.operations.test_account import owners
from tests.plans.hosts import CPU_HOST
from tests.plans.test_files import UNITS

LAYOUT = Layout.system()
WHEEL = SharedWheel(
    host="",
    name="llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl",
    sha256=hashlib.sha256(b"x").hexdigest(),
    size=1,
    libraries={"llama_cpp/lib/libllama.so": "0" * 64},
    needs=(),
)
INSTALLED = "installed-packages && cat"
"""Part of the command that reads which packages were installed."""


def deployed() -> fake.FakeHost:
    """A host with all that a deploy of before the record puts there."""
    host = fake.FakeHost().found("account=1", "built=0123", f"account_home={LAYOUT.state}")
    host.units(UNITS).files(dict.fromkeys(by_path(LAYOUT), "0" * 64))
    host.found(owners=owners(LAYOUT))
    host.answers[INSTALLED] = "ninja-build\ng++\nninja-build"
    # As the removal leaves it.
    host.becomes["rm -rf --one-file-system -- /opt/llamafleet"] = fake.FakeHost()
    return host


def sent(monkeypatch: pytest.MonkeyPatch, host: fake.FakeHost) -> list[str]:
    """What it gets, less the question for the packages that stay."""
    with fleet(monkeypatch, {"a": host}, builds=False) as run:
        assert run.run(uninstall) == [], run.runs["a"].failures
    return [command for command in host.commands if INSTALLED not in command]


def at(commands: list[str], part: str) -> int:
    """Place of the one command that holds that."""
    (found,) = (number for number, command in enumerate(commands) if part in command)
    return found


def test_a_version_that_no_index_knows_is_removed_without_asking_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = deployed()
    host.data |= {"llama_version": "9.9.9", "index_url": "http://127.0.0.1:9/simple"}
    assert sent(monkeypatch, host)[-1] == "rm -rf --one-file-system -- /opt/llamafleet"


@pytest.mark.parametrize("there", [True, False])
def test_a_host_that_goes_gives_no_wheel_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, name in (("a" * 16, "@fake/a"), ("b" * 16, "@fake/b")):
        wheel = replace(WHEEL, host=name)
        with WheelStore().incoming(key, wheel) as coming:
            coming.add(b"x")
    sent(monkeypatch, deployed() if there else fake.FakeHost())
    assert [*WheelStore().all()] == ["b" * 16]


def test_a_wheel_that_lies_there_is_a_trace_of_llamafleet_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [f"41ed\troot\troot\t{LAYOUT.shared}"]
    left = fake.FakeHost().found(owners=lines, made=[LAYOUT.etc])
    left.becomes[f" {LAYOUT.shared}"] = fake.FakeHost()
    assert any(f" {LAYOUT.shared}" in command for command in sent(monkeypatch, left))
    # Without a record it may be anybody's.
    assert sent(monkeypatch, fake.FakeHost().found(owners=lines)) == []


def test_all_is_stopped_before_it_is_removed_and_the_record_goes_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = sent(monkeypatch, deployed())
    order = [
        at(commands, "disable --now --quiet"),
        at(commands, "rm -f --"),
        at(commands, "daemon-reload"),
        at(commands, "rm -rf --one-file-system -- /opt/llamafleet.partial"),
        len(commands) - 1,
    ]
    assert order == sorted(order)
    assert all(f" {unit} " in commands[order[0]] for unit in unit_names())
    assert "llamafleet-*" not in "".join(commands), "nothing is told by how its name begins"
    for path in by_path(LAYOUT):
        assert f" {path} " in f"{commands[order[1]]} "
    assert f"/etc/systemd/system/*.wants/{next(iter(UNITS))}" in commands[order[1]]
    assert commands[-1] == "rm -rf --one-file-system -- /opt/llamafleet"


IMAGE = f"registry.lab/llama@sha256:{'a' * 64}"


def test_what_podman_holds_goes_before_the_files_that_tell_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = deployed()
    host.files({**dict.fromkeys(by_path(LAYOUT), "0" * 64), quadlet("chat"): "0" * 64})
    host.found("podman=/usr/bin/podman\tpodman version 5.4.2")
    host.answers["/opt/llamafleet/images"] = f"{IMAGE}\n$(reboot)\n{IMAGE}"
    commands = sent(monkeypatch, host)
    removed = [one for one in commands if "podman image rm" in one]
    assert removed == [f"podman image rm {IMAGE} || true"]
    order = [
        at(commands, "disable --now --quiet"),
        at(commands, "podman rm --force --ignore"),
        at(commands, "podman image rm"),
        at(commands, "rm -f --"),
    ]
    assert order == sorted(order)
    assert not any("reboot" in one for one in commands)
    assert f" {CDI_FILE} " in f"{commands[order[3]]} "


@pytest.mark.parametrize(
    ("left", "status"), [("", 0), ("container", 1), ("secret", 1), ("container secret", 1)]
)
def test_a_container_or_secret_that_stays_is_said(tmp_path: Path, left: str, status: int) -> None:
    """podman's own status is not asked: one that is not there ends in an error too."""
    podman = tmp_path / "podman"
    asks = '"container exists" | "secret inspect"'
    there = f'case " {left} " in *" $1 "*) exit 0 ;; esac; exit 1'
    podman.write_text(f'#!/bin/sh\ncase "$1 $2" in {asks}) {there} ;; esac\nexit 125\n')
    podman.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", REMOVE, "sh", "llamafleet-serve-chat"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert all(f"{word}" in done.stderr for word in left.split())
    assert ("next: podman rm -f llamafleet-serve-chat" in done.stderr) == bool(left)


def test_what_stays_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = deployed()
    with fleet(monkeypatch, {"a": host}, builds=False) as run:
        assert run.run(uninstall) == []
        assert run.runs["a"].changes == ["removed"]
    assert "packages that were installed and stay: g++ ninja-build" in capsys.readouterr().err


def test_what_is_left_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed()
    host.becomes.clear()
    with fleet(monkeypatch, {"a": host}, builds=False) as run:
        assert run.run(uninstall) == ["@fake/a"]
        (why,) = run.runs["a"].failures
    assert why.startswith("uninstall: found left on the host: /opt/llamafleet/llamafleet-host.pyz")


def test_a_host_that_can_t_be_read_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed()
    host.text = "no snapshot"
    with fleet(monkeypatch, {"a": host}, builds=False) as run:
        assert run.run(uninstall) == ["@fake/a"]
        assert "could not be read" in run.runs["a"].failures[0]
    assert host.sent == []


def test_a_hold_is_released_before_its_record_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no hold that was not llamafleet's."""
    host = deployed().changed(
        blocks={
            "parts": ["hold installed nvidia-driver-580-open", "hold installed libnvidia-gl-580"],
            "hold_record": ["libnvidia-gl-580"],
        }
    )
    commands = sent(monkeypatch, host)
    release, files = at(commands, "apt-mark"), at(commands, f" {LAYOUT.hold_record} ")
    assert commands[release] == "apt-mark unhold libnvidia-gl-580"
    assert HOLD_APT in commands[files] and release < files


def test_a_hold_that_can_t_be_released_keeps_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    host = deployed().changed(blocks={"parts": ["hold installed nvidia-driver-580-open"]})
    host.changed(blocks={"hold_record": ["nvidia-driver-580-open"]})
    host.answers["apt-mark"] = False
    with fleet(monkeypatch, {"a": host}, builds=False) as run:
        assert run.run(uninstall) == ["@fake/a"]
    assert not any(command.startswith("rm ") for command in host.commands)


def test_nothing_runs_as_the_account_in_root_s_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = " ".join(sent(monkeypatch, deployed()))
    assert commands.count("setsid -w setpriv ") == commands.count("setpriv ") > 0


def test_a_bare_host_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = fake.FakeHost()
    with fleet(monkeypatch, {"a": host}, builds=False) as run:
        assert run.run(uninstall) == []
        assert run.runs["a"].changes == []
    assert host.sent == []


def test_without_an_account_or_systemd_neither_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = fake.FakeHost().changed(lines={"systemctl": []})
    host.becomes["rm -rf"] = fake.FakeHost()
    stamp = Stamp(kind="toolkit", key="13.0", ok=True)
    commands = sent(monkeypatch, host.job("toolkit", "13.0", stamp))
    assert not any("systemctl" in command or "userdel" in command for command in commands)


# -- processes, for real ---------------------------------------------------------------------------

root = pytest.mark.skipif(os.geteuid() != 0, reason="processes of several users need root")
JOB = "import time\nprint('runs', flush=True)\ntime.sleep(600)\n"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a test, ended after it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(started: list[subprocess.Popen[str]], *argv: str, **options: Any) -> int:
    """Pid of a process that has begun."""
    process = subprocess.Popen(
        [*argv], stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    started.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


def end_command(home: Path, pid: int, ticks: int | None = None, *, root: bool = False) -> Any:
    """As uninstall ends what a job told of itself."""
    layout = Layout.user(str(home))
    host: HostSnapshot = replace(CPU_HOST, user="root", home=str(home))
    settings = SimpleNamespace(scope="user")
    told = SimpleNamespace(layout=lambda: layout, snapshot=lambda: host, settings=settings)
    found = ticks if ticks is not None else start_ticks(pid)
    assert found is not None
    return end(cast("HostRun", told), Process(pid, found, root, seconds=5))


@pytest.fixture
def zipapp(tmp_path: Path) -> Path:
    path = Path(Layout.user(str(tmp_path)).zipapp)
    path.parent.mkdir(parents=True)
    path.write_text(JOB)
    return path


@root
@under_any_login_shell
def test_a_job_that_told_of_itself_is_ended(
    tmp_path: Path, zipapp: Path, started: list[subprocess.Popen[str]], login: str
) -> None:
    pid = start(started, sys.executable, "-I", str(zipapp), "job", "--kind", "build")
    assert run(end_command(tmp_path, pid), login).returncode == 0
    assert started[0].wait(5) == -15


@root
def test_nothing_else_is(
    tmp_path: Path, zipapp: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Each of them died of a name somewhere in its command line, or would of a forged progress."""
    log = zipapp.with_name(f"{zipapp.name}.log")
    log.write_text(JOB)
    others = {
        "an administrator reads a log": start(started, sys.executable, str(log)),
        "one reads the zipapp": start(started, sys.executable, str(zipapp), "less"),
        "another deployment's job": start(
            started, sys.executable, "-c", JOB, "/home/eve/x/llamafleet-host.pyz", "job"
        ),
        "of another user": start(
            started, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            sys.executable, "-c", JOB, str(zipapp), "job"
        ),
    }  # fmt: skip
    later = start(started, sys.executable, str(zipapp), "job")
    for pid in others.values():
        assert run(end_command(tmp_path, pid)).returncode == 0
    assert run(end_command(tmp_path, later, 5)).returncode == 0, "a later one of that pid"
    time.sleep(0.3)
    assert [process.poll() for process in started] == [None] * len(started), others


@root
def test_one_that_does_not_end_is_said(
    tmp_path: Path, zipapp: Path, started: list[subprocess.Popen[str]]
) -> None:
    zipapp.write_text("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + JOB)
    pid = start(started, sys.executable, str(zipapp), "job")
    command = end_command(tmp_path, pid)
    done = run(command)
    assert done.returncode and f"process {pid} of a job: found it at work after 5 s" in done.stderr


@root
def test_a_package_manager_is_let_end(
    tmp_path: Path, zipapp: Path, started: list[subprocess.Popen[str]]
) -> None:
    """The job alone is told, and what it waits for goes on to its end."""
    child = f"import time; time.sleep(2); open({str(tmp_path / 'ended')!r}, 'w').close()"
    zipapp.write_text(
        "import signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "print('runs', flush=True)\nchild.wait()\n"
    )
    pid = start(started, sys.executable, str(zipapp), "job")
    assert run(end_command(tmp_path, pid, root=True)).returncode == 0
    assert (tmp_path / "ended").exists()


def test_a_job_of_the_account_is_ended_with_its_rights_alone() -> None:
    system = SimpleNamespace(
        layout=Layout.system, snapshot=lambda: CPU_HOST, settings=SimpleNamespace(scope="system")
    )
    command = end(cast("HostRun", system), Process(77, 5, False, seconds=5)).get_raw_value()
    assert command.startswith(f"setsid -w {' '.join(AS_ACCOUNT)} env -i ")
    assert "of=llamafleet" in shlex.split(command)
    own = end(cast("HostRun", system), Process(77, 5, True, seconds=5)).get_raw_value()
    assert own.startswith("env ") and "of=root" in shlex.split(own)


UID = "61234"
"""Nobody's on this machine."""
BARE = (
    "cd $0 && mkdir usr && mount --bind /usr usr && ln -s usr/bin usr/lib usr/lib64 . && "
    "exec {chroot} . /usr/bin/sleep 300"
)
"""In a mount namespace: a process with a root folder of its own."""


def rights() -> list[str]:
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]


def of_account(folder: Path) -> list[str]:
    return [*rights(), "sleep", "300"]


def of_a_container(folder: Path) -> list[str]:
    made = BARE.format(chroot=f"chroot --userspec={UID}:{UID}")
    return ["unshare", "--mount", "sh", "-c", made, str(folder)]


def of_account_that_hides(folder: Path) -> list[str]:
    made = BARE.format(chroot="chroot")
    return [
        *rights(),
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        made,
        str(folder),
    ]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every account reaches, as pytest's own are not."""
    with TemporaryDirectory() as made:
        Path(made).chmod(0o777)
        yield Path(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes of another account")
@pytest.mark.parametrize("login", ["dash", "busybox sh"])
@pytest.mark.parametrize(
    ("make", "ended"),
    [(of_account, True), (of_a_container, False), (of_account_that_hides, True)],
)
def test_the_accounts_processes_are_ended_and_no_containers(
    folder: Path, make: Callable[[Path], list[str]], ended: bool, login: str
) -> None:
    """A container's account 999 is another one, though the kernel has one number for both."""
    process = subprocess.Popen(make(folder), stderr=subprocess.PIPE)
    try:
        asleep = Path(f"/proc/{process.pid}/comm")
        for _ in range(100):
            if process.poll() is not None or asleep.read_text() == "sleep\n":
                break
            time.sleep(0.1)
        if process.poll() is not None:
            pytest.skip(f"this machine makes no such process: {process.communicate()[1]!r}")
        done = run(end_all(UID, rights()), login)
        assert (done.returncode, done.stderr) == (0, "")
        assert (process.poll() is not None) == ended
    finally:
        process.kill()
        process.wait()
