"""Connections that die, on booted hosts: what is said, when, and that the other host goes on.

The job that is waited for is planted, and ends when a file tells it to; all else is real: sshd,
sudo, systemd, pyinfra's command line.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamafleet.connection import PATIENCE_S, SILENT_S
from llamafleet.protocol.job import PROCESS_NAME
from llamafleet.zipapps import host_zipapp
from operations.ending import LIMIT_S
from tests.e2e.booted import ADMIN, BootedHost, boot, missing_tools
from tests.e2e.runs import PYINFRA, checkout, environment, llamafleet, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
BAD, GOOD = "gpu-a", "gpu-b"
SPACE = "llamafleet-test"
OURS, THEIRS = "10.231.7.1", "10.231.7.2"
FOLDER = "/root/job"
NAMED_S = 30
"""Within which a host that stopped to answer has its line."""
MARGIN_S = SILENT_S + 40
"""Beside the patience, after which the other host must have gone on, at the latest."""
SHORT_S = 35
SHORT = f"""
import llamafleet.connection, operations.watch
llamafleet.connection.PATIENCE_S = operations.watch.PATIENCE_S = {SHORT_S}
"""
"""Less patience: one case shows how long it really is."""

DEPLOY = """
import sys
from pyinfra.api import FileUploadCommand, StringCommand, operation
from llamafleet.plans.plan import JobPlan
from operations.run import begin, here
from operations.watch import watch
from io import BytesIO

def done(stamp):
    return stamp.ok

@operation()
def waiting(kind):
    run = here()
    job = JobPlan(kind, "0123", "/root/job", "", "python3", minutes=30, start=False, root=True)
    yield watch(run, job, done)

@operation()
def command(text):
    yield StringCommand(text)

@operation()
def upload():
    yield FileUploadCommand(BytesIO(b"content"), "/root/uploaded")

begin()
"""
JOB = """
import json, os, time
folder = "/root/job"
os.makedirs(folder, exist_ok=True)
ticks = int(open("/proc/self/stat").read().rpartition(") ")[2].split()[19])
told = {"version": 1, "kind": "build", "key": "0123", "pid": os.getpid(), "start_ticks": ticks,
        "started": time.time(), "updated": time.time(), "phase": "compile", "step": 7,
        "steps": 135, "line": ""}
with open(folder + "/new", "w") as file:
    json.dump(told, file)
os.replace(folder + "/new", folder + "/progress.json")
while not os.path.exists(folder + "/finish"):
    time.sleep(0.2)
with open(folder + "/new", "w") as file:
    json.dump({"version": 1, "kind": "build", "key": "0123", "ok": True}, file)
os.replace(folder + "/new", folder + "/stamp.json")
"""


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """No run outlives its test, however that ends."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()


class Started:
    """A run of pyinfra whose lines are kept with the time at which they came."""

    def __init__(self, folder: Path, fleet: str, *stages: str) -> None:
        (folder / "deploy.py").write_text("\n".join([DEPLOY, *stages]))
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            [PYINFRA, "-y", fleet, "deploy.py"],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Without a terminal, wherever the tests run.
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

        STARTED.append(self.process)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def until(self, pattern: str, limit: float, since: float = 0.0) -> float:
        """When a line came that has this in it."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            for at, line in self.lines:
                if at >= since and re.search(pattern, line):
                    return at
            if not self._reader.is_alive():
                break
            time.sleep(0.2)
        raise AssertionError(f"no {pattern!r} within {limit} s:\n{self.output}")

    def end(self, limit: float) -> int:
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end within {limit} s:\n{self.output}") from None
        self._reader.join(5)
        assert "Traceback" not in self.output, self.output
        return code


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("fresh"))


@contextmanager
def network() -> Iterator[None]:
    """A namespace of its own for the host that is cut off."""
    commands = (
        f"ip netns add {SPACE}",
        f"ip link add lf-test0 type veth peer name lf-test1 netns {SPACE}",
        f"ip addr add {OURS}/30 dev lf-test0",
        "ip link set lf-test0 up",
        f"ip netns exec {SPACE} ip addr add {THEIRS}/30 dev lf-test1",
        f"ip netns exec {SPACE} ip link set lf-test1 up",
        f"ip netns exec {SPACE} ip link set lo up",
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "del", "lf-test0"], check=False)
        subprocess.run(["ip", "netns", "del", SPACE], check=False)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BootedHost]]:
    with network():
        folder = tmp_path_factory.mktemp("hosts")
        bad = boot(BAD, folder, THEIRS, SPACE)
        try:
            good = boot(GOOD, folder)
        except BaseException:
            bad.stop()
            raise
        for host in (bad, good):
            zipapp = host.tree / "opt/llamafleet/llamafleet-host.pyz"
            zipapp.parent.mkdir()
            zipapp.write_bytes(host_zipapp())
            (host.tree / f"root/{PROCESS_NAME}.py").write_text(JOB)
            # Else sudo asks a name server for the host's own name.
            with (host.tree / "etc/hosts").open("a") as file:
                file.write(f"127.0.1.1 {host.name}\n")
        yield {BAD: bad, GOOD: good}
        for host in (bad, good):
            host.stop()


@pytest.fixture
def fleet(project: Path, hosts: dict[str, BootedHost]) -> Iterator[str]:
    """Each with its job, which runs."""
    for host in hosts.values():
        again = "systemctl stop llamafleet-build-0123; systemctl reset-failed llamafleet-build-0123"
        script = f"{again}; rm -rf {FOLDER} /root/after; mkdir -p {FOLDER}"
        unit = "systemd-run -q --collect --unit=llamafleet-build-0123"
        assert host.run(f"{script}; {unit} python3 /root/{PROCESS_NAME}.py").returncode == 0
    data = {name: host.data(accelerator="auto") for name, host in hosts.items()}
    yield write_inventory(project, data)
    for host in hosts.values():
        host.run("systemctl stop llamafleet-build-0123")


def finish(host: BootedHost) -> None:
    (host.tree / "root/job/finish").touch()


def sshd_of(host: BootedHost) -> list[int]:
    found = host.processes("sshd")
    assert found
    return found


def listens(pid: int) -> bool:
    """It is no session, by the title that sshd gives itself."""
    return b"[listener]" in Path(f"/proc/{pid}/cmdline").read_bytes()


@contextmanager
def frozen(host: BootedHost) -> Iterator[None]:
    pids = sshd_of(host)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def dropped(host: BootedHost) -> Iterator[None]:
    """Every packet to it gets lost: it goes to a card that is not there."""
    neighbour = f"ip neigh replace {host.address} lladdr 02:00:00:00:00:01 dev lf-test0"
    subprocess.run([*neighbour.split(), "nud", "permanent"], check=True)
    try:
        yield
    finally:
        subprocess.run(f"ip neigh del {host.address} dev lf-test0".split(), check=True)


def row_of(project: Path, host: str) -> dict[str, Any]:
    import json

    done = llamafleet(project, "report", "--json")
    (row,) = (row for row in json.loads(done.stdout)["rows"] if row["host"] == host)
    return dict(row)


AFTER = 'command(name="Next stage", text="touch /root/after")'


@pytest.mark.parametrize(
    "how",
    [
        pytest.param((frozen, "build", PATIENCE_S), id="frozen-build", marks=pytest.mark.long),
        pytest.param((frozen, "verify", SHORT_S), id="frozen-verify"),
        pytest.param((dropped, "build", SHORT_S), id="dropped-build"),
        pytest.param((dropped, "verify", SHORT_S), id="dropped-verify", marks=pytest.mark.long),
    ],
)
def test_a_host_that_stops_to_answer_is_named_and_given_up_and_the_other_goes_on(
    project: Path, hosts: dict[str, BootedHost], fleet: str, how: tuple[Any, str, int]
) -> None:
    cut, kind, patience = how
    less = [SHORT] if patience == SHORT_S else []
    run = Started(project, fleet, *less, f'waiting(name="Wait", kind="{kind}")', AFTER)
    run.until(rf"\[{BAD}\].*{kind} \[7/135\] compile", 60)
    run.until(rf"\[{GOOD}\].*{kind} \[7/135\] compile", 60)
    with cut(hosts[BAD]):
        begun = time.monotonic()
        finish(hosts[GOOD])
        named = run.until(rf"\[{BAD}\].*no status of the {kind}", NAMED_S + 15, begun)
        assert named - begun <= NAMED_S, run.output
        code = run.end(patience + MARGIN_S)
        took = time.monotonic() - begun
    assert code == 1
    assert (hosts[GOOD].tree / "root/after").exists(), run.output
    assert took < patience + MARGIN_S
    row = row_of(project, BAD)
    (why,) = row["reason"]
    assert row["verdict"] == "NOT VERIFIED"
    assert why.startswith(f"{kind}: found no status of it from {BAD} for "), why
    assert f"({kind} [7/135] compile" in why and "attaches" in why, why
    print(f"named after {named - begun:.0f} s, ended after {took:.0f} s\n{run.output}")


@pytest.mark.long
def test_a_host_that_answers_again_is_waited_for_to_its_end(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    run = Started(project, fleet, 'waiting(name="Wait", kind="build")', AFTER)
    run.until(rf"\[{BAD}\].*compile", 60)
    with frozen(hosts[BAD]):
        run.until(rf"\[{BAD}\].*no status", 45)
    run.until(rf"\[{BAD}\].*answers again", 60)
    finish(hosts[BAD])
    finish(hosts[GOOD])
    run.end(60)
    assert (hosts[BAD].tree / "root/after").exists(), run.output


def test_a_connection_that_was_closed_is_made_anew(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    run = Started(project, fleet, 'waiting(name="Wait", kind="build")', AFTER)
    run.until(rf"\[{BAD}\].*compile", 60)
    sessions = [pid for pid in sshd_of(hosts[BAD]) if not listens(pid)]
    assert sessions
    for pid in sessions:
        os.kill(pid, signal.SIGKILL)
    time.sleep(8)
    finish(hosts[BAD])
    finish(hosts[GOOD])
    run.end(90)
    assert (hosts[BAD].tree / "root/after").exists(), run.output


def test_a_host_that_reboots_in_the_middle_says_so(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    run = Started(project, fleet, 'waiting(name="Wait", kind="build")', AFTER)
    run.until(rf"\[{BAD}\].*compile", 60)
    finish(hosts[GOOD])
    hosts[BAD].reboot()
    assert run.end(PATIENCE_S + MARGIN_S) == 1
    (why,) = row_of(project, BAD)["reason"]
    assert "gone without a stamp (the host has rebooted since it began)" in why, why
    assert (hosts[GOOD].tree / "root/after").exists(), run.output


def test_a_job_that_was_killed_is_told_as_systemd_tells_it(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    run = Started(project, fleet, 'waiting(name="Wait", kind="build")', AFTER)
    run.until(rf"\[{BAD}\].*compile", 60)
    finish(hosts[GOOD])
    hosts[BAD].run("kill -KILL $(systemctl show -p MainPID --value llamafleet-build-0123)")
    assert run.end(60) == 1
    (why,) = row_of(project, BAD)["reason"]
    assert "status=9/KILL" in why, why


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
    ],
)
def test_an_interrupt_ends_the_run_and_no_job(
    project: Path, hosts: dict[str, BootedHost], fleet: str, number: int, code: int
) -> None:
    run = Started(project, fleet, 'waiting(name="Wait", kind="build")', AFTER)
    run.until(rf"\[{BAD}\].*compile", 60)
    begun = time.monotonic()
    run.process.send_signal(number)
    assert run.end(60) == code
    assert time.monotonic() - begun < LIMIT_S + 10
    stop = "to stop it, there: sudo systemctl stop llamafleet-build-0123.service"
    assert f"{BAD}: build goes on; {stop}" in run.output
    assert "next: run the same command again, it attaches to them" in run.output
    assert re.search(rf"^{BAD} +.* NOT VERIFIED", run.output, re.MULTILINE), run.output
    assert "INTERRUPTED" in run.output
    assert hosts[BAD].run("systemctl is-active llamafleet-build-0123").stdout == "active\n"


def test_an_interrupt_while_a_host_is_frozen_takes_no_longer(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    run = Started(project, fleet, 'waiting(name="Wait", kind="build")', AFTER)
    run.until(rf"\[{BAD}\].*compile", 60)
    with frozen(hosts[BAD]):
        time.sleep(8)
        begun = time.monotonic()
        run.process.send_signal(signal.SIGINT)
        assert run.end(60) == 130
        assert time.monotonic() - begun < LIMIT_S + 10


@contextmanager
def shell_that_prints(host: BootedHost) -> Iterator[None]:
    host.run(f"usermod -s /bin/bash {ADMIN}; echo 'echo hi' >/home/{ADMIN}/.bashrc")
    try:
        yield
    finally:
        host.run(f"usermod -s /bin/sh {ADMIN}; rm /home/{ADMIN}/.bashrc")


@contextmanager
def sudo_that_asks(host: BootedHost) -> Iterator[None]:
    sudoers = host.tree / "etc/sudoers.d/admin"
    before = sudoers.read_text()
    sudoers.write_text(before.replace("NOPASSWD: ", ""))
    try:
        yield
    finally:
        sudoers.write_text(before)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (shell_that_prints, "expected a login shell that prints nothing"),
        (sudo_that_asks, "sudo: found that it asks for a password on gpu-a"),
    ],
)
def test_an_odd_login_fails_its_host_alone_in_one_line(
    project: Path, hosts: dict[str, BootedHost], fleet: str, odd: Any, said: str
) -> None:
    with odd(hosts[BAD]):
        run = Started(project, fleet, 'upload(name="Upload")', AFTER)
        assert run.end(60) == 1
    (why,) = row_of(project, BAD)["reason"]
    assert said in why, why
    assert (hosts[GOOD].tree / "root/after").exists(), run.output


def test_a_flood_of_output_is_cut_off(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    flood = "if [ $(hostname) = gpu-a ]; then yes; else touch /root/after; fi"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    run = Started(project, fleet, f"command(name='Flood', text={flood!r})")
    assert run.end(60) == 1
    (why,) = row_of(project, BAD)["reason"]
    assert "lines of output" in why and (hosts[GOOD].tree / "root/after").exists(), run.output
    # Of all children so far: another test's compiler may have been larger.
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most < max(400 * 1024, before + 1), "KiB"
    assert len(run.output) < 20_000


def test_a_failed_command_has_its_own_words_in_the_table(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    stage = "command(name='Make it', text='mkdir /proc/llamafleet')"
    run = Started(project, fleet, stage)
    assert run.end(60) == 1
    (why,) = row_of(project, BAD)["reason"]
    assert why.startswith("Make it: found mkdir: cannot create directory"), why
    assert "No such file or directory, of: mkdir /proc/llamafleet" in why


def test_an_error_of_our_own_fails_its_host_alone(
    project: Path, hosts: dict[str, BootedHost], fleet: str
) -> None:
    stage = """
@operation()
def broken():
    run = here()
    yield StringCommand("true")
    if run.name == "gpu-a":
        raise ZeroDivisionError("of ours")
broken(name="Broken")
"""
    run = Started(project, fleet, stage, AFTER)
    assert run.end(60) == 1
    (why,) = row_of(project, BAD)["reason"]
    assert "ZeroDivisionError: of ours" in why, why
    assert (hosts[GOOD].tree / "root/after").exists(), run.output
