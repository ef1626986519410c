"""Hosts of many kinds: each works, or is one clear problem of its plan.

Accounts with odd shells are four hosts of one inventory, all on the same booted Debian; what is odd
about the host itself is done to it, looked at and undone. Nothing is built: the package index is a
port where nobody listens, which a job finds out only after everything before it went well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.booted import ADMIN, BootedHost, missing_tools
from tests.e2e.runs import Run, pyinfra, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-h"
SHELLS = {"tcsh": "/bin/tcsh", "fish": "/usr/bin/fish", "greets": "/bin/bash", "asks": "/bin/sh"}
"""Login shells by account. `greets` prints on login; `asks` may use sudo only on a terminal."""
NO_INDEX = "http://127.0.0.1:9/simple"


@pytest.fixture(scope="module")
def host(booted: BootedHost) -> BootedHost:
    """With a compiler, and an account for each shell that the same key lets in."""
    sh(booted, "apt-get -q update && apt-get -qy install --no-install-recommends g++ tcsh fish")
    for account, shell in SHELLS.items():
        sh(booted, f"useradd --create-home --shell {shell} {account}")
        sh(booted, f"cp -a /home/{ADMIN}/.ssh /home/{account}/")
        sh(booted, f"chown -R {account} /home/{account}/.ssh")
        sh(booted, f"echo '{account} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{account}")
    sh(booted, "echo 'echo hi' > /home/greets/.bashrc; chown greets /home/greets/.bashrc")
    sh(booted, "echo 'Defaults:asks requiretty' >> /etc/sudoers.d/asks")
    return booted


def sh(host: BootedHost, command: str) -> str:
    done = host.run(command)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def deploy(host: BootedHost, folder: Path, accounts: tuple[str, ...], *options: str) -> Run:
    """A run over hosts that are named by the account that logs in."""
    hosts: dict[str, Any] = {
        account: host.data(
            ssh_user=account,
            accelerator="cpu",
            model="synthetic:tiny-q4_0",
            index_url=NO_INDEX,
            build_timeout_minutes=5,
        )
        for account in accounts
    }
    return pyinfra(folder, *options, write_inventory(folder, hosts, "shells"), "deploy.py")


def lines(run: Run, name: str) -> list[str]:
    """What a run said of one host."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", run.output)
    return re.findall(rf"^\s*\[{name}\] +(.*)$", plain, re.MULTILINE)


def problems(run: Run, name: str) -> list[str]:
    """Why a host can't be provisioned, each once; [] where its plan speaks of a build."""
    said = lines(run, name)
    found = {line.removeprefix("PROBLEM ") for line in said if line.startswith("PROBLEM ")}
    assert "Traceback" not in run.output, run.output
    assert found or any(line.startswith("build: build ") for line in said), run.output
    return sorted(found)


@pytest.fixture(scope="module")
def planned(host: BootedHost, folder: Path) -> Run:
    return deploy(host, folder, tuple(SHELLS), "--dry")


@pytest.mark.parametrize("account", ["tcsh", "fish", "greets"])
def test_any_login_shell_is_planned_for(planned: Run, account: str) -> None:
    assert problems(planned, account) == []


def test_sudo_that_asks_for_a_terminal_works_or_is_one_problem(planned: Run) -> None:
    found = problems(planned, "asks")
    assert len(found) <= 1, found
    for problem in found:
        assert "requiretty" in problem or "terminal" in problem, problem


@pytest.mark.parametrize("account", ["tcsh", "fish", "greets"])
def test_any_login_shell_carries_out(host: BootedHost, folder: Path, account: str) -> None:
    """All before it went well where it is the job itself that says what fails."""
    run = deploy(host, folder, (account,), "-y")
    assert run.returncode != 0 and "Traceback" not in run.output, run.output
    failed = [line for line in lines(run, account) if line.startswith("build failed in phase ")]
    assert len(failed) == 1, run.output
    # The base tree has no acl, so no setfacl either.
    assert "setfacl" not in run.output


@contextmanager
def changed(host: BootedHost, command: str, undo: str) -> Iterator[None]:
    sh(host, command)
    try:
        yield
    finally:
        sh(host, undo)


def test_opt_behind_a_link_works_or_is_one_problem(host: BootedHost, folder: Path) -> None:
    here = "mkdir -p /opt && mv /opt /home/opt && ln -s /home/opt /opt"
    with changed(host, here, "rm /opt && mv /home/opt /opt"):
        found = problems(deploy(host, folder, (ADMIN,), "--dry"), ADMIN)
        if found:
            assert len(found) == 1 and "/opt" in found[0], found
            return
        run = deploy(host, folder, (ADMIN,), "-y")
        failed = [line for line in lines(run, ADMIN) if line.startswith("build failed in phase ")]
        assert len(failed) == 1, run.output


def test_a_python_without_its_library_is_one_problem(host: BootedHost, folder: Path) -> None:
    library = "/usr/lib/python3.11"
    hidden = " ".join(f"{library}/{name}" for name in ("json", "venv", "logging"))
    with changed(host, f"mkdir /root/h && mv {hidden} /root/h", f"mv /root/h/* {library}/"):
        found = problems(deploy(host, folder, (ADMIN,), "--dry"), ADMIN)
    assert len(found) == 1 and "python" in found[0], found
    assert "json" in found[0] or "python3" in found[0].partition("next: ")[2], found


def test_a_user_s_systemd_without_a_bus_is_said(host: BootedHost, folder: Path) -> None:
    data = host.data(scope="user", _sudo=False, accelerator="cpu", model="synthetic:tiny-q4_0")
    fleet = write_inventory(folder, {ADMIN: data}, "alone")
    run = pyinfra(folder, "--dry", fleet, "deploy.py")
    assert problems(run, ADMIN) == []
    assert any(line.startswith("note: ") and "systemd" in line for line in lines(run, ADMIN))
