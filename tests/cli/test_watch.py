"""`llamafleet watch` on hosts over SSH: healthy, hanging, dying, and with nothing but garbage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli import run
from tests.e2e.runs import LLAMAFLEET, REPOSITORY
from tests.sshserver import SshHost, inventory, ssh_hosts

GPU = (
    "0, GPU-4e5ab3a1-0000-0000-0000-000000000001, 00000000:01:00.0, 20034, 4046, 24564, 98, 310.50,"
    " 450.00, 2520, 10501, 61, 0x0000000000000000, 25, None, NVIDIA GeForce RTX 4090"
)
SMI = f"""case $1 in --query-gpu=*) echo '{GPU}' ;; esac"""
HANGS = f"sleep 3{os.getpid()}"
RECORD_S = 40


class Run:
    """A `llamafleet watch` under way, its lines of JSON by number."""

    def __init__(self, fleet: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [LLAMAFLEET, "watch", "--inventory", fleet, "--json", *options],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line for which that holds, by host."""
        deadline = time.monotonic() + RECORD_S
        seen: dict[str, Any] = {}
        assert self.process.stdout
        while time.monotonic() < deadline and (line := self.process.stdout.readline()):
            seen = {one["Hostname"]: one for one in json.loads(line)["lines"]}
            if wanted(seen):
                return seen
        raise AssertionError(f"not within {RECORD_S} s; last: {seen}")

    def interrupt(self) -> float:
        """Ctrl-C; the seconds until its end."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=20)[1]
        assert (self.process.returncode, said) == (0, "")
        return time.monotonic() - begun


def ended(*hosts: SshHost, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and any(host.alive() for host in hosts):
        time.sleep(0.1)
    return not any(host.alive() for host in hosts)


def test_a_host_that_hangs_dies_or_tells_garbage_stops_no_other(tmp_path: Path) -> None:
    with ssh_hosts(tmp_path, "good", "hangs", "dies", "garbage") as hosts:
        for name in ("good", "dies"):
            hosts[name].program("nvidia-smi", SMI)
        hosts["hangs"].program("nvidia-smi", f"exec {HANGS}")
        hosts["garbage"].program("nvidia-smi", r"head -c 3000 /dev/urandom; printf '\033[2J\n'")
        watch = Run(inventory(tmp_path, hosts), "--interval", "0.5")
        try:
            seen = watch.until(lambda by: by["dies"]["trouble"] == by["good"]["trouble"] == "busy")
            assert seen["good"]["DCGM_FI_DEV_POWER_USAGE"] == 310.5
            hosts["dies"].die()
            seen = watch.until(
                lambda by: (
                    [by[name]["trouble"] for name in ("dies", "hangs", "garbage")]
                    == ["unreachable", "silent", "driver"]
                )
            )
            assert list(seen) == ["dies", "hangs", "garbage", "good"], "sorted by trouble"
            assert "no record for" in seen["hangs"]["why"]
            assert seen["garbage"]["why"].startswith("nvidia-smi tells of no GPU: ")
            assert seen["garbage"]["why"].isprintable()
            assert seen["good"]["trouble"] == "busy"
            assert watch.interrupt() < 5
            assert ended(*hosts.values(), within=3)
            assert not subprocess.run(
                ["pgrep", "-f", HANGS], check=False, capture_output=True
            ).stdout
        finally:
            watch.process.kill()


def test_once(tmp_path: Path) -> None:
    with ssh_hosts(tmp_path, "good", "gone") as hosts:
        for host in hosts.values():
            host.program("nvidia-smi", SMI)
        fleet = inventory(tmp_path, hosts)
        hosts["gone"].die()
        done = subprocess.run(
            [LLAMAFLEET, "watch", "--inventory", fleet, "--once"],
            cwd=REPOSITORY,
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        summary, header, *rows = done.stdout.splitlines()
        assert summary == "GPUs 1, hosts 2: 1 unreachable, 1 busy"
        assert header.split()[:2] == ["host", "GPU"]
        assert rows[0].startswith("gone") and "unreachable: " in rows[0]
        assert rows[1].split()[:5] == ["good", "0", "98", "19.6/24.0", "310/450"]
        assert ended(hosts["good"], within=3)


def test_an_unknown_host_is_refused_before_any_host_is_touched(tmp_path: Path) -> None:
    with ssh_hosts(tmp_path, "good") as hosts:
        fleet = inventory(tmp_path, hosts)
        done = subprocess.run(
            [LLAMAFLEET, "watch", "--once", "--inventory", fleet, "good", "nobody"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "nobody: found no such host in " in done.stderr
        assert hosts["good"].transports == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--interval", "0"), "0.5<=x<=3600"),
        (("--interval", "nan"), "found nan; expected seconds"),
        (("--inventory", "none.py"), "found no inventory none.py"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], said: str) -> None:
    result = run("watch", "--once", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
