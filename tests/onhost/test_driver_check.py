"""The check at boot: each thing that a driver can have become since the last deploy."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost import driver_check
from tests.onhost.runner import Runner
from tests.onhost.test_verify_config import good

WAS = "535.261.03"
NOW = "580.95.05"
# /proc/driver/nvidia/version, as tests/facts/test_gpus.py has them.
PROC = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Jun  3 12:00:00 UTC 2025",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root)",
)
GCC = "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)"


class Host:
    """A host below `root`: its driver, its settings, and the results of a verification."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.results = root / "results"
        self.results.mkdir()
        self.latest, self.stale = self.results / "latest.json", self.results / "stale.json"
        self.latest.write_text('{"verdict": "PASS"}')
        self.config = root / "verify.json"
        self.plan({"driver": WAS})
        self.bin = root / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("LLAMAFLEET_ROOT", str(root))
        # The nvidia-smi of this machine, if any, is not asked.
        monkeypatch.setenv("PATH", f"{self.bin}:/no/such")

    def plan(self, inputs: dict[str, Any], **change: Any) -> None:
        data = good() | {"inputs": inputs, "results": str(self.results)} | change
        self.config.write_text(json.dumps(data))

    def module(self, version: str) -> None:
        file = self.root / "sys/module/nvidia/version"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{version}\n")

    def proc(self, text: str) -> None:
        file = self.root / "proc/driver/nvidia/version"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n{GCC}\n")

    def smi(self, script: str) -> None:
        file = self.bin / "nvidia-smi"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def check(self, *options: str) -> int:
        return driver_check.main(["--config", str(self.config), *options])

    def mark(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stale.read_text())
        return found


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_the_same_driver_leaves_the_verdict(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.module(WAS)
    assert host.check("--exit-stale") == 0
    assert host.latest.exists() and not host.stale.exists()
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"driver {WAS} is the one that was planned for" in out


def test_a_changed_driver_takes_the_verdict_away(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.module(NOW)
    before = time.time()
    assert host.check() == 0, "a oneshot unit is not failed for a changed driver"
    assert not host.latest.exists()
    mark = host.mark()
    assert (mark["version"], mark["was"], mark["now"]) == (1, WAS, NOW)
    assert before <= mark["at"] <= time.time()
    assert f"changed from {WAS} to {NOW}" in mark["reason"]
    assert [p.name for p in host.results.iterdir()] == ["stale.json"], "written by rename"
    out = capsys.readouterr().out
    assert mark["reason"] in out and "pyinfra -y inventory deploy.py" in out


def test_exit_3_is_for_those_who_ask(host: Host) -> None:
    host.module(NOW)
    assert host.check("--exit-stale") == 3


def test_a_driver_that_is_gone(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.check() == 0
    assert not host.latest.exists()
    assert host.mark()["now"] is None
    out = capsys.readouterr().out
    assert f"driver {WAS} is gone: no {host.root}/sys/module/nvidia/version" in out
    assert "nvidia-smi does not start" in out


def test_the_driver_is_back(host: Host) -> None:
    host.module(NOW)
    host.check()
    assert host.stale.exists()
    host.module(WAS)
    assert host.check("--exit-stale") == 0
    assert not host.stale.exists()
    assert not host.latest.exists(), "the removed verdict does not come back"


@pytest.mark.parametrize("text", PROC)
def test_proc_is_read_where_sys_is_not(host: Host, text: str) -> None:
    host.proc(text)
    assert host.check() == 0
    assert host.mark()["now"] == NOW


@pytest.mark.parametrize(
    ("script", "now", "said"),
    [
        # One line per GPU.
        (f'[ "$1" = --query-gpu=driver_version ] && printf "{NOW}\\n{NOW}\\n"', NOW, "nvidia-smi"),
        (
            # With a library newer than the loaded module.
            'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18',
            None,
            "nvidia-smi ended with 18 and 'Failed to initialize NVML",
        ),
        ("echo No devices were found", None, "nvidia-smi ended with 0 and 'No devices were found'"),
        (f"echo {NOW}; exit 1", None, "nvidia-smi ended with 1"),
    ],
)
def test_nvidia_smi_is_asked_last(host: Host, script: str, now: str | None, said: str) -> None:
    host.smi(script)
    assert host.check() == 0
    assert host.mark()["now"] == now
    assert said in host.mark()["reason"]


def test_nvidia_smi_is_not_asked_where_the_module_tells(host: Host) -> None:
    host.module(WAS)
    host.smi(f"touch {host.root}/asked; echo {NOW}")
    assert host.check() == 0
    assert not (host.root / "asked").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_hanging_nvidia_smi_does_not_hang_the_check(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAFLEET_SMI_LIMIT", "0.2")
    host.smi("exec /bin/sleep 30")
    begun = time.monotonic()
    assert host.check() == 0
    assert time.monotonic() - begun < 10
    assert "nvidia-smi did not answer within 0.2 s" in host.mark()["reason"]


def test_a_cpu_backend_has_nothing_to_check(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.plan({"driver": None}, backend="cpu")
    host.module(NOW)
    assert host.check("--exit-stale") == 0
    assert host.latest.exists() and not host.stale.exists()
    assert "nothing to check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inputs", "change", "said"),
    [
        ({}, {}, "inputs.driver: found nothing, expected a version or null"),
        ({"driver": ""}, {}, "inputs.driver: found nothing"),
        ({"driver": 580}, {}, "inputs.driver: found 580"),
        ({"driver": "new"}, {}, "inputs.driver: found 'new'"),
        ({"driver": WAS}, {"results": "here", "model": "x"}, "results: found"),
        ({"driver": WAS}, {"version": 2}, "version: found 2"),
    ],
)
def test_a_bad_configuration_is_one_line(
    host: Host,
    capsys: pytest.CaptureFixture[str],
    inputs: dict[str, Any],
    change: dict[str, Any],
    said: str,
) -> None:
    host.module(WAS)
    host.plan(inputs, **change)
    assert host.check() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"{host.config}: ")
    assert said in error and "pyinfra -y inventory deploy.py" in error


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_configuration_that_is_none(
    host: Host, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    host.config.unlink()
    if text is not None:
        host.config.write_text(text)
    assert host.check() == 2
    assert capsys.readouterr().err.count("\n") == 1


def _a_file(results: Path) -> None:
    results.joinpath("latest.json").unlink()
    results.rmdir()
    results.write_text("")


def _gone(results: Path) -> None:
    results.joinpath("latest.json").unlink()
    results.rmdir()


def _locked(results: Path) -> None:
    results.chmod(0)
    if os.access(results, os.W_OK):
        pytest.skip("root writes to every folder")


@pytest.mark.parametrize("plant", [_a_file, _gone, _locked])
def test_results_that_cannot_be_written(
    host: Host, capsys: pytest.CaptureFixture[str], plant: Any
) -> None:
    host.module(NOW)
    try:
        plant(host.results)
        assert host.check() == 2
    finally:
        if host.results.exists():
            host.results.chmod(0o755)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"{host.results}: found no folder")


def test_the_zipapp_has_the_command(host: Host) -> None:
    host.module(NOW)
    answer = Runner(host.root).run("driver-check", "--config", host.config, "--exit-stale")
    assert answer.returncode == 3, answer.stderr
    assert host.mark()["now"] == NOW and not host.latest.exists()
