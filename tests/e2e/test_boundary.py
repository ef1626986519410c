"""A build account that tries to become root: it plants links and programs, and root works on.

The deployment gets as far as the build, whose index does not answer: what root does on a host is
done by then, and no minutes are spent on compiling.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.layout import USER, Layout
from tests.e2e import fake_driver
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import Run, llamafleet, pyinfra, write_inventory

LACKING = missing_tools()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(LACKING), reason=f"to boot a host: {LACKING} missing"),
]
HOST = "gpu-b"
LAYOUT = Layout.system()
SETTINGS = {
    "accelerator": "auto",
    "model": "synthetic:tiny-q4_0",
    "index_url": "http://127.0.0.1:9/simple/",
}
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

    def __init__(self, booted: BootedHost, folder: Path) -> None:
        self.booted, self.folder = booted, folder
        self.key = ""
        """Of the build that was tried."""
        fake_driver.plant_compiler(booted)
        self.fleet = write_inventory(folder, {HOST: booted.data(**SETTINGS)}, "boundary")

    def deploy(self, command: str = "deploy.py") -> Run:
        return pyinfra(self.folder, "-y", self.fleet, command, limit=400)

    def root(self, command: str) -> str:
        done = self.booted.run(command)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def account(self, command: str) -> str:
        drop = f"setpriv --reuid={USER} --regid={USER} --init-groups"
        return self.root(f"{drop} sh -c {shlex.quote(command)}")


@pytest.fixture(scope="module")
def host(booted: BootedHost, folder: Path) -> Iterator[Boundary]:
    made = Boundary(booted, folder)
    run = made.deploy()
    assert "build failed in phase resolve" in run.output, run.output
    made.key = made.root(f"ls {LAYOUT.state}/build").split()[0]
    made.root(f"echo '{SECRET}:1::::::' >>/etc/shadow")
    yield made


def test_root_gives_away_no_more_than_three_folders(host: Boundary) -> None:
    found = host.root(f"find {LAYOUT.prefix} {LAYOUT.etc} -printf '%p %u %m\\n'").splitlines()
    of_account = [line.split()[0] for line in found if line.split()[1] == USER]
    assert {LAYOUT.versions, LAYOUT.toolkits} <= set(of_account)
    assert all(p.startswith((LAYOUT.versions, LAYOUT.toolkits)) for p in of_account), found
    assert [
        line for line in found if int(line.split()[2], 8) & 0o022 and "current" not in line
    ] == []
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
    run = host.deploy()
    unharmed(host, before, run.output)
    for what in (("plan", HOST, "--inventory", host.fleet),):
        done = llamafleet(host.folder, *what)
        unharmed(host, before, done.stdout + done.stderr)
    dry = pyinfra(host.folder, "--dry", host.fleet, "deploy.py")
    unharmed(host, before, dry.output)


def test_without_systemd_too(host: Boundary) -> None:
    """Jobs are detached there; systemctl is not found."""
    plant(host)
    host.root("mv /usr/bin/systemctl /usr/bin/systemctl.away")
    try:
        before = host.root(WATCHED)
        run = host.deploy()
        unharmed(host, before, run.output)
    finally:
        host.root("mv /usr/bin/systemctl.away /usr/bin/systemctl")


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
        "touch /etc/apt/sources.list.d/llamafleet-cuda.sources.partial "
        "/etc/systemd/system/llamafleet-verify.timer.partial; "
        "systemd-run --unit=llamafleet-dashboard sleep 1000"
    )
    before = host.root(WATCHED.replace("-not -path '*llamafleet*'", "-not -path '*llamafleet-*'"))
    run = host.deploy("uninstall.py")
    assert run.returncode == 0, run.output
    after = host.root(WATCHED.replace("-not -path '*llamafleet*'", "-not -path '*llamafleet-*'"))
    gone = set(before.splitlines()) - set(after.splitlines())
    assert all("/llamafleet" in line for line in gone), gone
    assert host.root("kill -0 $(cat /run/tail.pid) && systemctl is-active llamafleet-dashboard")
    host.root("systemctl stop llamafleet-dashboard; kill $(cat /run/tail.pid); "
              "rm /root/llamafleet-host.pyz.log")  # fmt: skip
    left = host.root(
        "find / -xdev -name '*llamafleet*' -not -path '/proc/*' -not -path '/var/log/*'"
    )
    assert left == "" and host.booted.run(f"getent passwd {USER}").returncode != 0
    again = host.deploy("uninstall.py")
    assert (again.returncode == 0 and "no trace" in again.output.lower()) or again.returncode == 0


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
    text = '{"controller": "x", "owner": "joe@laptop", "pid": 4711, "start_ticks": 1, "started": 1}'
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
