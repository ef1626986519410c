"""A build account that tries to become root: it plants links and programs, and root works on.

The deployment gets as far as the build, whose index is empty: what root does on a host is done by
then, and no minutes are spent on compiling, nor seconds on an index that does not answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.layout import USER, Layout
from tests.e2e import fake_driver
from tests.e2e.booted import BootedHost, boot, missing_tools
from tests.e2e.jail import Jail, no_jail
from tests.e2e.runs import LLAMAFLEET, PYINFRA, Run, llamafleet, pyinfra, write_inventory
from tests.loopback import serve

pytestmark = pytest.mark.e2e
HOST = "gpu-b"
LAYOUT = Layout.system()
SETTINGS = {"accelerator": "auto", "model": "synthetic:tiny-q4_0"}
WITNESS = "/tmp/ran-as"
SPY = f'#!/bin/sh\nid -u >>{WITNESS}; chmod 666 {WITNESS} 2>/dev/null; exec "$@"\n'
SECRET = "root:$y$j9T$planted-secret"
STATE = f"cd {LAYOUT.state} && "

# Paths, owners, modes, sizes and times of all that is root's and that a deploy has no part in.
WATCHED = (
    "find /etc /root /usr/bin /usr/sbin /lib/systemd -xdev -not -path '*llamafleet*' "
    "-not -path '/etc/systemd/system*' -not -name 'passwd*' -not -name 'group*' "
    "-not -name 'gshadow*' -not -name 'subuid*' -not -name 'subgid*' -not -path /etc "
    "-not -name '.pwd.lock' -not -path '/root/.*' -printf '%p %U %G %m %s %T@\\n' | sort"
)


class Boundary:
    """One host, the account on it, and runs over it."""

    systemd = True

    def __init__(self, booted: BootedHost | Jail, folder: Path) -> None:
        self.booted, self.folder = booted, folder
        self.key = ""
        """Of the build that was tried."""
        self.fleet = ""

    def first(self) -> None:
        """Deploy as far as it gets, and plant what nobody may ever see."""
        run = self.deploy()
        assert "build failed in phase resolve" in run.output, run.output
        self.key = self.root(f"ls -d {LAYOUT.state}/build/*/").split("/")[-2]
        self.root(f"echo '{SECRET}:1::::::' >>/etc/shadow")

    def deploy(self, command: str = "deploy.py", option: str = "-y") -> Run:
        return pyinfra(self.folder, option, self.fleet, command, limit=400)

    def plan(self) -> str:
        done = llamafleet(self.folder, "plan", HOST, "--inventory", self.fleet)
        return done.stdout + done.stderr

    def root(self, command: str) -> str:
        done = self.booted.run(command)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def account(self, command: str) -> str:
        drop = f"setpriv --reuid={USER} --regid={USER} --init-groups"
        return self.root(f"{drop} sh -c {shlex.quote(command)}")


class Jailed(Boundary):
    """The same on this machine's own tree."""

    systemd = False

    def deploy(self, command: str = "deploy.py", option: str = "-y") -> Run:
        return self._run(f"{PYINFRA} {option} {self.fleet} {command}")

    def plan(self) -> str:
        return self._run(f"{LLAMAFLEET} plan @local --inventory {self.fleet}").output

    def _run(self, command: str) -> Run:
        env = f"HOME=/root PYTHONPATH={self.folder} PYINFRA_PROGRESS=off"
        done = self.booted.run(f"cd {self.folder} && {env} {command}")
        return Run(done.returncode, done.stdout + done.stderr, 0.0, None)


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, object]]:
    with serve(lambda url: None) as index:
        yield {**SETTINGS, "index_url": f"http://{index.address}/simple/"}


@pytest.fixture(scope="module", params=["booted", pytest.param("jail", marks=pytest.mark.long)])
def host(
    request: pytest.FixtureRequest,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, object],
) -> Iterator[Boundary]:
    lacking = missing_tools() if request.param == "booted" else no_jail()
    if lacking:
        pytest.skip(f"no such host here: {lacking}")
    made: Boundary
    if request.param == "booted":
        booted = boot(HOST, tmp_path_factory.mktemp("hosts"))
        fake_driver.plant_compiler(booted)
        made, data = Boundary(booted, folder), {HOST: booted.data(**settings)}
    else:
        made, data = Jailed(Jail(folder.parent), folder), {"@local": settings}
    made.fleet = write_inventory(folder, data, f"boundary-{request.param}")
    try:
        made.first()
        yield made
    finally:
        made.booted.stop()


def test_root_gives_away_no_more_than_four_folders(host: Boundary) -> None:
    folders = f"{LAYOUT.prefix} {LAYOUT.etc}"
    found = host.root(f"find {folders} -not -type l -printf '%u %m %p\\n'").splitlines()
    rows = [line.split(" ", 2) for line in found]
    of_account = {path for user, _, path in rows if user == USER}
    given = (LAYOUT.versions, LAYOUT.toolkits, LAYOUT.servers)  # Beside the state folder.
    assert {*given} <= of_account
    assert all(path.startswith(given) for path in of_account)
    assert [path for _, mode, path in rows if int(mode, 8) & 0o022] == []
    state = host.root(f"find {LAYOUT.state} -not -user {USER}")
    assert state == "", "in the account's folder nothing is root's"
    told = host.root(f"stat -c '%U:%G %a' {LAYOUT.configs}/build-*.json").split("\n")[0]
    assert told == "root:llamafleet 640"


def plant(host: Boundary) -> str:
    """Every link and program of the review, by the account; the build's key."""
    key = host.key
    host.account(
        f"{STATE} rm -rf build/* && mkdir -p build/1111 build/2222 verify results toolkit && "
        f"ln -s /etc build/{key} && "
        "ln -s /etc/shadow build/1111/stamp.json && ln -s /etc/shadow build/1111/progress.json && "
        "truncate -s 3G build/2222/progress.json && mkfifo build/2222/stamp.json && "
        "ln -sfn /etc/shadow results/latest.json && rm -rf wheelhouse && ln -s /etc wheelhouse && "
        "rm -rf verify/run && ln -s /etc verify/run && rm -rf tmp && ln -s /etc tmp"
    )
    nvcc = f"{LAYOUT.toolkits}/cuda-99.0"
    python = f"{LAYOUT.versions}/{key}"
    for program in (f"{nvcc}/bin/nvcc", f"{python}/bin/python", f"{python}/bin/python3"):
        spy = shlex.quote(SPY)
        host.account(
            f"mkdir -p {nvcc}/include {program.rpartition('/')[0]} && "
            f"printf %s {spy} >{program} && chmod 755 {program}"
        )
    host.root(f"rm -f {WITNESS}")
    return key


def unharmed(host: Boundary, before: str, run: str) -> None:
    after = host.root(WATCHED)
    assert after == before, "\n".join(set(after.splitlines()) ^ set(before.splitlines()))
    assert SECRET not in run and "planted-secret" not in run
    ran = host.root(f"cat {WITNESS} 2>/dev/null || true").split()
    assert "0" not in ran, "a program of the account ran with root's rights"


def test_links_and_programs_of_the_account_reach_nothing_of_root_s(host: Boundary) -> None:
    plant(host)
    before = host.root(WATCHED)
    for said in (host.deploy().output, host.plan(), host.deploy(option="--dry").output):
        unharmed(host, before, said)


def test_what_differs_is_repaired_piece_by_piece(host: Boundary) -> None:
    host.root(
        f"chmod 777 {LAYOUT.prefix} && chown {USER} {LAYOUT.zipapp} && chmod 600 {LAYOUT.pip} && "
        f"chown root {LAYOUT.versions} && rm -rf {LAYOUT.toolkits} && gpasswd -d {USER} video"
    )
    run = host.deploy()
    for said in (
        f"repair {LAYOUT.prefix} (mode 0777, not 0755)",
        f"make {LAYOUT.toolkits} (found none)",
        "add the account to video",
    ):
        assert said in run.output, run.output
    shown = f"stat -c '%U %a' {LAYOUT.prefix} {LAYOUT.zipapp} {LAYOUT.pip} {LAYOUT.versions}"
    assert host.root(shown).splitlines() == ["root 755", "root 644", "root 644", f"{USER} 755"]
    assert "video" in host.root(f"id -Gn {USER}")
    again = host.deploy()
    assert "repair" not in again.output and "(found none)" not in again.output


def test_uninstall_takes_what_is_ours_and_no_more(host: Boundary) -> None:
    plant(host)
    host.root(
        "echo x >/root/llamafleet-host.pyz.log; "
        "(setsid tail -f /root/llamafleet-host.pyz.log >/dev/null 2>&1 & echo $! >/run/tail.pid); "
        "touch /etc/apt/sources.list.d/llamafleet-cuda.sources.partial"
    )
    if host.systemd:
        host.root(
            "touch /etc/systemd/system/llamafleet-verify.timer.partial; "
            "systemd-run --unit=llamafleet-dashboard sleep 1000"
        )
    run = host.deploy("uninstall.py")
    assert run.returncode == 0, run.output
    assert host.booted.run("kill -0 $(cat /run/tail.pid)").returncode == 0, "an administrator's"
    if host.systemd:
        assert host.root("systemctl is-active llamafleet-dashboard; systemctl stop llamafleet-da*")
    host.root("kill $(cat /run/tail.pid); rm /root/llamafleet-host.pyz.log")
    places = "/etc /opt /var/lib /usr/lib/systemd /run/systemd/system"
    left = host.root(f"find {places} -name '*llamafleet*' 2>/dev/null || true")
    assert left == "" and host.booted.run(f"getent passwd {USER}").returncode != 0
    assert host.deploy("uninstall.py").returncode == 0


def test_what_was_there_before_stays(host: Boundary) -> None:
    host.root(
        f"mkdir -p {LAYOUT.prefix} && echo mine >{LAYOUT.prefix}/notes && "
        f"useradd --system --user-group --home-dir /home/mine {USER}"
    )
    assert "build failed in phase resolve" in host.deploy().output
    run = host.deploy("uninstall.py")
    assert run.returncode == 0, run.output
    assert f"stays: {LAYOUT.prefix} (it was there before)" in run.output
    assert f"stays: account {USER} (it was there before)" in run.output
    assert host.root(f"ls -A {LAYOUT.prefix}").split() == ["notes"]
    assert host.root(f"getent passwd {USER}") and not host.booted.run(f"ls {LAYOUT.state}").stdout
    host.root(f"rm -r {LAYOUT.prefix}; userdel {USER}")


def test_a_host_that_another_run_has_is_left_alone(host: Boundary) -> None:
    text = (
        '{"controller": "x", "owner": "joe@laptop", "pid": 4711, "start_ticks": 1, "started": 1.5}'
    )
    host.root(f"echo '{text}' >{LAYOUT.deploy_lock}")
    for command in ("deploy.py", "uninstall.py"):
        run = host.deploy(command)
        if command == "deploy.py":
            assert run.returncode != 0
            assert "lock: found joe@laptop (process 4711) deploys to it" in run.output, run.output
    assert host.booted.run(f"test -e {LAYOUT.prefix}").returncode != 0
    host.root(f"touch -d '1 hour ago' {LAYOUT.deploy_lock}")
    run = host.deploy()
    assert "lock: taken over, nothing was heard" in run.output, run.output
    assert host.booted.run(f"test -e {LAYOUT.deploy_lock}").returncode != 0, "given back"
