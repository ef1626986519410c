"""The check at boot: each thing that a driver can have become since the last deploy."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from llamafleet.onhost import driver_check
from llamafleet.onhost.job import ProgressFile
from llamafleet.onhost.verify import gpu
from llamafleet.onhost.verify.gpu import Nvml
from llamafleet.protocol import job
from tests.onhost.runner import Runner
from tests.onhost.verify.test_gpu import Recorded
from tests.protocol.test_verify import with_inputs

WAS = "535.261.03"
NOW = "580.95.05"
# /proc/driver/nvidia/version, as tests/facts/test_gpus.py has them.
PROC = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Jun  3 12:00:00 UTC 2025",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root)",
)
GCC = "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)"


class Driver(Recorded):
    """NVML of a driver that runs CUDA up to `cuda`; None: it does not start."""

    def __init__(self, cuda: str | None) -> None:
        super().__init__()
        self.cuda = cuda

    def nvmlInit(self) -> None:
        if self.cuda is None:
            raise self.NVMLError("Driver/library version mismatch")

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        major, minor = (self.cuda or "0.0").split(".")
        return int(major) * 1000 + int(minor) * 10


class Host:
    """A host below `root`: its driver, its settings, and the results of a verification."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.results = root / "results"
        self.results.mkdir()
        self.latest, self.stale = self.results / "latest.json", self.results / "stale.json"
        self.prom = self.results / "llamafleet.prom"
        self.config = root / "verify.json"
        self.plan({"driver": WAS})
        self.verified(WAS)
        self.bin = root / "bin"
        self.bin.mkdir()
        self.cuda: str | None = "13.0"
        monkeypatch.setenv("LLAMAFLEET_ROOT", str(root))
        # nvidia-smi and ldconfig of this machine are not asked.
        monkeypatch.setenv("PATH", f"{self.bin}:/no/such")
        monkeypatch.setattr(gpu, "Nvml", lambda **limit: Nvml(Driver(self.cuda), **limit))

    def plan(self, wanted: dict[str, Any], /, **change: Any) -> None:
        places = {"results": str(self.results), "job": str(self.root / "job")}
        self.config.write_text(json.dumps(with_inputs(**wanted) | places | change))

    def verified(self, driver: str, verdict: str = "PASS", fingerprint: str = "f00") -> None:
        """A verification on that driver has ended."""
        inputs = with_inputs(driver=driver, fingerprint=fingerprint)["inputs"]
        self.latest.write_text(json.dumps({"verdict": verdict, "inputs": inputs}))

    def module(self, version: str) -> None:
        file = self.root / "sys/module/nvidia/version"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{version}\n")

    def library(self, version: str) -> None:
        """As packages lay it out; the cache lists a 32-bit one of another version before it."""
        lines = []
        for folder, kind, number in (("i386", "libc6", "535.1"), ("x86", "libc6,x86-64", version)):
            link = self.root / folder / "libnvidia-ml.so.1"
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(f"libnvidia-ml.so.{number}")
            lines.append(f"\tlibnvidia-ml.so.1 ({kind}) => {link}")
        self.script("ldconfig", "cat <<'END'\n" + "\n".join(lines) + "\nEND")

    def proc(self, text: str) -> None:
        file = self.root / "proc/driver/nvidia/version"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n{GCC}\n")

    def smi(self, script: str) -> None:
        self.script("nvidia-smi", script)

    def script(self, name: str, text: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
        file.chmod(0o755)

    def check(self) -> int:
        return driver_check.main(["--config", str(self.config)])

    def mark(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stale.read_text())
        return found


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_the_same_driver_leaves_the_verdict(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.prom.write_text("what was proven")
    host.module(WAS)
    host.library(WAS)
    assert host.check() == 0
    assert host.latest.exists() and not host.stale.exists()
    assert host.prom.read_text() == "what was proven", "left as it is"
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"driver {WAS} is the one that was verified" in out


def test_a_changed_driver_takes_the_verdict_away(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.module(NOW)
    host.library(NOW)
    before = time.time()
    assert host.check() == 4, "a driver that works is to be verified"
    assert not host.latest.exists()
    mark = host.mark()
    assert (mark["version"], mark["was"], mark["now"]) == (1, WAS, NOW)
    assert before <= mark["at"] <= time.time()
    assert f"changed from {WAS} to {NOW}" in mark["reason"]
    names = {path.name for path in host.results.iterdir()}
    assert names == {"stale.json", "llamafleet.prom"}, "written by rename"
    assert 'llamafleet_verdict{verdict="NOT VERIFIED"} 1.0\n' in host.prom.read_text()
    out = capsys.readouterr().out
    assert mark["reason"] in out and "next: a verification" in out


@pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
def test_a_verdict_on_the_new_driver_stands(host: Host, verdict: str) -> None:
    """Also a FAIL: no package that is installed later starts the verification again."""
    host.module(NOW)
    host.check()
    host.verified(NOW, verdict)
    assert host.check() == 0
    assert host.latest.exists() and not host.stale.exists()


def test_a_verdict_on_another_build_does_not(host: Host) -> None:
    host.module(WAS)
    host.verified(WAS, fingerprint="f01")
    assert host.check() == 4
    assert not host.latest.exists()


def test_a_driver_that_is_gone(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.check() == 3
    assert not host.latest.exists()
    assert host.mark()["now"] is None
    out = capsys.readouterr().out
    assert f"driver {WAS} is gone: no {host.root}/sys/module/nvidia/version" in out
    assert "nvidia-smi does not start" in out and "pyinfra -y inventory deploy.py" in out


def test_the_driver_is_back(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.module(NOW)
    host.check()
    assert host.stale.exists()
    host.module(WAS)
    assert host.check() == 4, "the removed verdict does not come back: it is renewed"
    assert not host.stale.exists() and not host.latest.exists()
    assert f"driver {WAS} is the planned one and has no verdict" in capsys.readouterr().out


@pytest.mark.parametrize("module", [WAS, NOW])
def test_half_an_update_needs_a_reboot(
    host: Host, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    library = NOW if module == WAS else WAS
    host.verified(module)
    host.module(module)
    host.library(library)
    assert host.check() == driver_check.EXIT_REBOOT
    assert not host.latest.exists()
    reason = host.mark()["reason"]
    assert reason == f"reboot needed: loaded kernel module {module}, library {library}"
    assert "next: sudo reboot" in capsys.readouterr().out and "reboot" in host.mark()["next"]
    host.library(module)
    assert host.check() == 4
    assert host.stale.exists() is (module != WAS), "it says what changed until it is verified"


@pytest.mark.parametrize(
    ("cuda", "toolkit", "fits"),
    [
        ("12.2", "13.0", False),
        ("12.2", "12.10", False),
        ("12.8", "12.8", True),
        ("13.0", "12.8", True),
    ],
)
def test_a_toolkit_that_the_driver_does_not_run_needs_a_deploy(
    host: Host, capsys: pytest.CaptureFixture[str], cuda: str, toolkit: str, fits: bool
) -> None:
    host.plan({"driver": WAS}, toolkit=toolkit)
    host.module(NOW)
    host.cuda = cuda
    assert host.check() == (4 if fits else 3)
    assert not host.latest.exists()
    reason, out = host.mark()["reason"], capsys.readouterr().out
    needed = f"CUDA up to {cuda}, and the build's toolkit is {toolkit}: a new run is needed"
    assert (needed in reason) is not fits and reason in out
    assert ("pyinfra -y inventory deploy.py" in out) is not fits


def test_a_driver_that_does_not_answer_is_not_verified(host: Host) -> None:
    host.module(NOW)
    host.cuda = None
    assert host.check() == 3
    assert "does not answer: NVML does not start: Driver/library" in host.mark()["reason"]


@pytest.mark.parametrize(
    ("planned", "same"),
    [
        (["NVIDIA GeForce RTX 4090 GPU-0"], True),
        (["NVIDIA GeForce RTX 4090 GPU-7"], False),
        (["NVIDIA GeForce RTX 4080 GPU-0"], False),
        (["NVIDIA GeForce RTX 4090 GPU-0", "NVIDIA GeForce RTX 4090 GPU-1"], False),
    ],
)
def test_other_gpus_under_the_same_driver_need_a_deploy(
    host: Host, capsys: pytest.CaptureFixture[str], planned: list[str], same: bool
) -> None:
    host.plan({"driver": WAS, "gpus": planned})
    host.module(WAS)
    assert host.check() == (0 if same else 3)
    assert host.latest.exists() is same and host.stale.exists() is not same
    if not same:
        assert host.mark()["reason"] == (
            "the GPUs changed: found NVIDIA GeForce RTX 4090 GPU-0; expected " + ", ".join(planned)
        )
        assert "pyinfra -y inventory deploy.py" in capsys.readouterr().out
        assert host.check() == 3, "no verification by itself: it would be of another machine"


@pytest.mark.parametrize(
    ("chosen", "planned", "same"),
    [
        (["GPU-1"], ["GPU-1"], True),
        (["GPU-0", "GPU-1"], ["GPU-0", "GPU-1"], True),
        (["GPU-1"], ["GPU-0", "GPU-1"], False),
        (["GPU-7"], ["GPU-7"], False),
    ],
)
def test_gpus_that_the_settings_leave_out_may_come_and_go(
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    chosen: list[str],
    planned: list[str],
    same: bool,
) -> None:
    class Two(Driver):
        def nvmlDeviceGetCount(self) -> int:
            return 2

    monkeypatch.setattr(gpu, "Nvml", lambda **_: Nvml(Two("13.0")))
    names = [f"NVIDIA GeForce RTX 4090 {uuid}" for uuid in planned]
    host.plan({"driver": WAS, "gpus": names}, gpus=chosen)
    host.module(WAS)
    assert host.check() == (0 if same else 3)


def test_the_old_verdict_goes_before_nvml_is_asked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that has fallen off the bus can hang NVML until the unit's time is over."""
    found = []

    def asked(**_: float) -> Nvml:
        found.append(host.latest.exists())
        return Nvml(Driver("13.0"))

    monkeypatch.setattr(gpu, "Nvml", asked)
    host.module(NOW)
    assert host.check() == 4 and found == [False]


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetName"])
def test_a_driver_that_hangs_takes_the_verdict_away(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before, the check was ended by its unit, and the verdict of before stayed."""
    monkeypatch.setattr(driver_check, "ANSWER_S", 0.1)
    monkeypatch.setattr(Driver, name, lambda *_: Event().wait(2))
    host.module(WAS)
    assert host.check() == 3
    assert not host.latest.exists() and host.mark()["reason"]


def test_gpus_that_cannot_be_asked_are_verified_and_not_said_to_have_changed(host: Host) -> None:
    """No old verdict stands for a GPU of which nothing is known."""
    host.plan({"driver": WAS, "gpus": ["NVIDIA GeForce RTX 4090 GPU-7"]})
    host.module(WAS)
    host.cuda = None
    assert host.check() == 4 and not host.latest.exists()
    assert host.mark()["reason"].startswith(f"driver {WAS} does not answer: ")


def test_the_same_finding_is_written_once(host: Host) -> None:
    host.module(NOW)
    host.check()
    first = host.mark()
    assert host.check() == 4 and host.mark() == first
    host.module("590.1.02")
    host.check()
    assert host.mark()["now"] == "590.1.02"


def test_a_verification_that_runs_is_not_disturbed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.module(WAS)
    host.latest.unlink()
    monkeypatch.setattr(job, "PROCESS_NAME", "pytest")
    folder = host.root / "job"
    folder.mkdir()
    ProgressFile(folder, "verify", "k0").phase("probe")
    assert host.check() == 0
    assert not host.stale.exists()
    host.library(NOW)
    assert host.check() == driver_check.EXIT_REBOOT, "half an update is told all the same"


@pytest.mark.parametrize("text", PROC)
def test_proc_is_read_where_sys_is_not(host: Host, text: str) -> None:
    host.proc(text)
    assert host.check() == 4
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
    assert host.check() == (4 if now else 3)
    assert host.mark()["now"] == now
    assert said in host.mark()["reason"]


@pytest.mark.parametrize("folder", ["usr/local/nvidia/bin", "opt/nvidia/bin", "usr/lib/wsl/lib"])
def test_nvidia_smi_off_the_path_of_a_unit(host: Host, folder: str) -> None:
    """As the snapshot of the deploy found it: else each boot would take the verdict away."""
    host.smi(f"echo {WAS}")
    (host.root / folder).mkdir(parents=True)
    (host.bin / "nvidia-smi").rename(host.root / folder / "nvidia-smi")
    assert host.check() == 0
    assert host.latest.exists()


@pytest.mark.parametrize("folder", ["usr/sbin", "sbin"])
def test_ldconfig_off_the_path_of_a_user(host: Host, folder: str) -> None:
    host.module(WAS)
    host.library(NOW)
    (host.root / folder).mkdir(parents=True)
    (host.bin / "ldconfig").rename(host.root / folder / "ldconfig")
    assert host.check() == driver_check.EXIT_REBOOT


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
    host.smi("exec /bin/sleep 600")
    begun = time.monotonic()
    assert host.check() == 3
    assert time.monotonic() - begun < 60
    assert "nvidia-smi did not answer within 0.2 s" in host.mark()["reason"]


def test_a_cpu_backend_has_nothing_to_check(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.plan({"driver": None}, backend="cpu")
    host.module(NOW)
    assert host.check() == 0
    assert host.latest.exists() and not host.stale.exists()
    assert "nothing to check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inputs", "change", "said"),
    [
        ({}, {"inputs": {}}, "inputs.driver: found nothing, expected a version"),
        ({"driver": ""}, {}, 'inputs.driver: found ""'),
        ({"driver": 580}, {}, "inputs.driver: found 580"),
        ({"driver": "new"}, {}, 'inputs.driver: found "new"'),
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
    answer = Runner(host.root).run("driver-check", "--config", host.config)
    assert answer.returncode == 3, answer.stderr
    assert host.mark()["now"] == NOW and not host.latest.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is refused")
def test_root_checks_nothing_for_an_account(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """It would remove a file by way of a folder that the account can turn into a link."""
    host.plan({"driver": WAS}, as_account=["setpriv", "--reuid=llamafleet"])
    host.module(NOW)
    assert host.check() == 2
    assert host.latest.exists() and not host.stale.exists()
    error = capsys.readouterr().err
    assert error.startswith("driver-check: found uid 0; expected the account that builds")
    assert "next: setsid -w env -i setpriv --reuid=llamafleet " in error
