"""A real host over SSH with systemd: faults first, then the whole chain, then its removal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import compiled
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import latest, llamafleet, pyinfra, start, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-a"
SETTINGS = {"accelerator": "auto", "model": "synthetic:tiny-q4_0", **compiled.SETTINGS}
"""The default model is measured in test_local."""


def stamps(host: BootedHost) -> dict[str, dict[str, Any]]:
    """Stamps of the builds on the host, by fingerprint."""
    out = host.run(
        "cd /var/lib/llamafleet/build && for f in */stamp.json; do echo $f; cat $f; echo; done"
    )
    found: dict[str, dict[str, Any]] = {}
    for block in out.stdout.split("\n\n"):
        name, _, text = block.strip().partition("\n")
        if text:
            found[name.split("/")[0]] = json.loads(text)
    return found


def current(host: BootedHost) -> str:
    return host.run("readlink /opt/llamafleet/current").stdout.strip()


def test_cuda_without_a_gpu_fails_before_anything_is_built(
    booted: BootedHost, folder: Path
) -> None:
    fleet = write_inventory(folder, {HOST: booted.data()})
    run = pyinfra(folder, "-y", fleet, "deploy.py")
    assert run.returncode != 0
    assert "FAIL" in run.output and "GPU" in run.output, run.output
    assert booted.run("test -e /opt/llamafleet").returncode != 0


def test_the_command_line_plans_a_host_over_its_connection(
    booted: BootedHost, folder: Path
) -> None:
    fleet = write_inventory(folder, {HOST: booted.data(accelerator="auto")})
    done = llamafleet(folder, "plan", HOST, "--inventory", fleet)
    assert done.returncode == 0, done.stderr
    assert f"host: {HOST}" in done.stdout and "packages: install g++" in done.stdout
    gpu = llamafleet(folder, "plan", HOST, "--inventory", fleet, "--set", "accelerator=cuda")
    assert gpu.returncode == 1 and "PROBLEM gpu: found no NVIDIA GPU" in gpu.stdout
    file = folder / "host.snapshot"
    llamafleet(folder, "snapshot", HOST, "--inventory", fleet, "-o", str(file))
    same = llamafleet(folder, "plan", str(file), "--set", "accelerator=auto")
    assert same.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    # The admin alone could not have asked: it was read by sudo, as a deploy reads it.
    assert "uid=0" in file.read_text()


def test_why_a_host_s_job_failed_is_told_over_its_connection(
    booted: BootedHost, folder: Path
) -> None:
    fleet = write_inventory(folder, {HOST: booted.data()})
    nothing = llamafleet(folder, "diagnose", HOST, "--inventory", fleet)
    assert nothing.returncode == 2 and "found no log of a failed job" in nothing.stderr
    job = "/var/lib/llamafleet/build/0123"
    # Neither the folder nor the log is for the account that connects.
    booted.run(
        f"mkdir -p {job} && chmod 700 /var/lib/llamafleet && cd {job} && umask 077 && "
        f'echo \'{{"error": {{"phase": "compile"}}}}\' > stamp.json && '
        "printf 'a\\nx.o: No space left on device\\n' > build.log"
    )
    try:
        known = llamafleet(folder, "diagnose", HOST, "--inventory", fleet)
        assert known.returncode == 1, known.stderr
        told = f"{HOST}:{job}/build.log:2: x.o: No space left on device\n  cause: enospc: "
        assert known.stdout.startswith(told)
    finally:
        booted.run("rm -r /var/lib/llamafleet")


def test_a_disk_too_small_is_named_before_anything_is_built(
    booted: BootedHost, folder: Path
) -> None:
    booted.run("mkdir -p /opt && mount -t tmpfs -o size=64m none /opt")
    try:
        fleet = write_inventory(folder, {HOST: booted.data(accelerator="auto")})
        run = pyinfra(folder, "-y", fleet, "deploy.py")
    finally:
        booted.run("umount /opt")
    assert run.returncode != 0
    assert "disk: found" in run.output, run.output
    assert booted.run("test -e /opt/llamafleet").returncode != 0


def test_ten_errors_in_an_inventory_are_ten_lines_and_no_host_is_touched(
    booted: BootedHost, folder: Path
) -> None:
    wrong = {
        "accelerator": "gpu",
        "scope": "global",
        "toolkit_version": "12.99",
        "jobs": 0,
        "compute_capabilities": ["native"],
        "llama_sha256": "abc",
        "model": "llama.bin",
        "bench_gen": "many",
        "toolkit_metod": "wheels",
        "context": -1,
    }
    fleet = write_inventory(folder, {HOST: booted.data(**wrong)})
    run = pyinfra(folder, "-y", fleet, "deploy.py")
    assert run.returncode != 0
    lines = [line for line in run.output.splitlines() if f"host {HOST}: " in line]
    assert len(lines) == 10, run.output
    assert "toolkit_method" in run.output, "the nearest known key is suggested"
    assert booted.run("test -e /opt/llamafleet").returncode != 0


def test_a_killed_run_is_attached_to_and_finished_by_the_next(
    booted: BootedHost, folder: Path
) -> None:
    # A compiler is installed all the same.
    broken = booted.tree / "etc/apt/sources.list.d/broken.list"
    broken.write_text("deb file:/no/such ./\n")
    fleet = write_inventory(folder, {HOST: booted.data(**SETTINGS)})
    first = start(folder, fleet)
    try:
        # It compiles until the next run has seen it, however short the rest takes.
        held = _hold_the_compilation(booted, first)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    broken.unlink()
    run = start(folder, fleet)
    try:
        output = _read_until(run, "attach")
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
    output += run.communicate(timeout=900)[0]
    assert run.returncode == 0, output
    assert latest(folder, HOST)["verdict"] == "CPU ONLY"
    ((_, stamp),) = stamps(booted).items()
    assert stamp["ok"] is True
    assert stamp["phases"]["compile"] > 0
    owner = booted.run("stat -c %U /opt/llamafleet/versions/*").stdout.split()
    assert owner == ["llamafleet"], "the build never runs as root"
    verify = booted.run("systemd-analyze verify llamafleet-verify.service llamafleet-verify.timer")
    assert (verify.returncode, verify.stderr) == (0, ""), verify.stderr


def _hold_the_compilation(
    host: BootedHost, run: subprocess.Popen[str], limit: float = 300
) -> list[int]:
    """Stop its ninja, amid its phase compile; the processes."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and run.poll() is None:
        if _compiles(host) and (found := host.processes("ninja")):
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            assert _compiles(host), "stopped too late"
            return found
        time.sleep(0.05)
    run.kill()
    raise AssertionError(f"no build reached its compile phase: {run.communicate()[0]}")


def _compiles(host: BootedHost) -> bool:
    told = (host.tree / "var/lib/llamafleet/build").glob("*/progress.json")
    return any('"compile"' in file.read_text() for file in told)


def _read_until(run: subprocess.Popen[str], word: str) -> str:
    """What it says, up to the line with that word."""
    assert run.stdout is not None
    said = ""
    for line in run.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(f"no {word!r}: {said}")


def test_the_next_run_changes_nothing(booted: BootedHost, folder: Path) -> None:
    fleet = write_inventory(folder, {HOST: booted.data(**SETTINGS)})
    run = pyinfra(folder, "-y", "--json", fleet, "deploy.py")
    assert run.returncode == 0, run.output
    assert run.unchanged, run.output
    counted = pyinfra(folder, "-y", "-vv", fleet, "deploy.py")
    assert 1 <= len(counted.commands) <= 3, counted.commands


def test_without_a_schedule_the_timer_goes(booted: BootedHost, folder: Path) -> None:
    timer = "systemctl is-enabled llamafleet-verify.timer"
    assert booted.run(timer).stdout.strip() == "enabled"
    data = booted.data(verify_schedule=None, **SETTINGS)
    run = pyinfra(folder, "-y", write_inventory(folder, {HOST: data}), "deploy.py")
    assert run.returncode == 0 and "timer removed" in run.output, run.output
    assert "enabled" not in booted.run(timer).stdout
    again = pyinfra(folder, "-y", "--json", "fleet", "deploy.py")
    assert again.unchanged, again.output


def test_an_unknown_cmake_option_fails_the_build_and_current_stays(
    booted: BootedHost, folder: Path
) -> None:
    before = current(booted)
    data = booted.data(accelerator="auto", cmake_options={"GGML_CUBLASS": "on"})
    run = pyinfra(folder, "-y", write_inventory(folder, {HOST: data}), "deploy.py")
    assert run.returncode != 0
    assert "GGML_CUBLASS" in run.output, run.output
    assert current(booted) == before != ""


def test_a_compile_error_in_the_middle_fails_the_build_and_current_stays(
    booted: BootedHost, folder: Path
) -> None:
    before = current(booted)
    data = booted.data(
        accelerator="auto", cmake_options={"CMAKE_CXX_FLAGS": "-include /no/such/header.h"}
    )
    run = pyinfra(folder, "-y", write_inventory(folder, {HOST: data}), "deploy.py")
    assert run.returncode != 0
    assert "no/such/header.h" in run.output, run.output
    assert "build.log" in run.output
    assert current(booted) == before != ""


def test_a_wrong_sdist_hash_fails_the_build_with_its_cause(
    booted: BootedHost, folder: Path
) -> None:
    before = current(booted)
    data = booted.data(accelerator="auto", llama_sha256="0" * 64)
    run = pyinfra(folder, "-y", write_inventory(folder, {HOST: data}), "deploy.py")
    assert run.returncode != 0
    assert "hash" in run.output.lower(), run.output
    assert current(booted) == before != ""


def test_uninstall_leaves_no_trace(booted: BootedHost, folder: Path) -> None:
    fleet = write_inventory(folder, {HOST: booted.data(accelerator="auto")})
    run = pyinfra(folder, "-y", fleet, "uninstall.py")
    assert run.returncode == 0, run.output
    left = booted.run(
        "find / -xdev -name '*llamafleet*' -not -path '/proc/*' -not -path '/var/log/*'"
    )
    assert left.stdout == "", left.stdout
    assert booted.run("getent passwd llamafleet").returncode != 0
    assert booted.run("systemctl list-units --all 'llamafleet*' --no-legend").stdout == ""
