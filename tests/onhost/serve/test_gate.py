"""The gate of a service: each thing that must hold before a build may serve, missing by itself."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost import driver
from llamafleet.onhost.serve import gate
from llamafleet.onhost.verify import gpu
from llamafleet.onhost.verify.gpu import Nvml
from llamafleet.onhost.wheel import sha256_of
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import Progress, machine_id
from llamafleet.protocol.place import ModelProduct, PlacedFile
from llamafleet.protocol.result import GpuRow, Result, System, Verdict, failed
from llamafleet.protocol.serve import Placement, ServeConfig
from llamafleet.protocol.verify import VerifyInputs
from tests.onhost.verify.test_gpu import Recorded
from tests.protocol.test_verify import good

DRIVER = "580.159.04"


class Card(Recorded):
    """A card that tells of its health: `action` is the recovery that its driver asks for."""

    action = 0
    starts = True

    def nvmlInit(self) -> None:
        if not self.starts:
            raise self.NVMLError("Driver/library version mismatch")
        super().nvmlInit()

    def nvmlDeviceGetRemappedRows(self, device: int) -> tuple[int, int, bool, bool]:
        return (0, 0, self.action > 0, False)


class Host:
    """A proven build, its service, and the host as the gate finds it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.card = root, Card()
        self.build = root / "versions/f00"
        self.library = self.build / "lib/libllama.so"
        self.library.parent.mkdir(parents=True)
        self.library.write_bytes(b"code")
        (root / "results").mkdir()
        (root / "dev").mkdir()
        # Any file that can be opened: which device it is, CUDA will know.
        (root / "dev/nvidia-uvm").touch()
        monkeypatch.setenv("LLAMAFLEET_ROOT", str(root))
        monkeypatch.setattr(gpu, "Nvml", lambda **limit: Nvml(self.card, **limit))
        self.loaded: tuple[str | None, str] = (DRIVER, "/sys")
        self.on_disk: str | None = DRIVER
        monkeypatch.setattr(driver, "loaded_driver", lambda: self.loaded)
        monkeypatch.setattr(driver, "library_driver", lambda: self.on_disk)
        self.plan()
        self.result = self.proof()
        self.prove()

    def plan(self, **change: Any) -> None:
        places = {"prefix": str(self.build), "results": str(self.root / "results")}
        data = good() | places | {"job": str(self.root / "job")} | change
        (self.root / "verify.json").write_text(json.dumps(data))

    def proof(self, verdict: Verdict = "PASS", **change: Any) -> Result:
        row = proven("GPU-0", verdict)
        made = Result(
            host="gpu1",
            verdict=verdict,
            fingerprint="f00",
            key="k1",
            inputs=decode(VerifyInputs, good()["inputs"]),
            finished=1.0,
            system=System(libraries={str(self.library): sha256_of(self.library)}),
            gpus=(row,),
            machine_id=machine_id(),
            prefix=str(self.build),
        )
        return replace(made, **change)

    def prove(self, name: str = "latest", **change: Any) -> None:
        self.result = replace(self.result, **change)
        file = self.root / f"results/{name}.json"
        file.write_text(json.dumps(asdict(self.result)))

    def judge(self, **change: Any) -> gate.Verdict:
        config = ServeConfig(
            version=1,
            profile="chat",
            host="gpu1",
            verify=str(self.root / "verify.json"),
            folder=str(self.root / "serve"),
            libraries="/opt/llamafleet/serve/x",
            model="/srv/a.gguf",
            alias="chat",
            placement=Placement(-1, 4096),
            address="127.0.0.1",
            port=8000,
            key=False,
        )
        return gate.judge(replace(config, **change), self.build)

    def held(self, **change: Any) -> str:
        verdict = self.judge(**change)
        assert not verdict.allowed and verdict.proof is None, verdict
        assert "; expected " in verdict.reason and "; next: " in verdict.reason, verdict.reason
        return verdict.reason


def proven(uuid: str, verdict: Verdict) -> GpuRow:
    return GpuRow(uuid, "", "NVIDIA GeForce RTX 4090", "8.9", 24564, verdict=verdict)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_proven_build_may_serve(host: Host) -> None:
    verdict = host.judge()
    assert verdict.allowed and verdict.reason == "" and verdict.gpus == ("GPU-0",)
    assert verdict.proof == host.result


def test_busy_proves_offload_and_is_said(host: Host) -> None:
    host.result = host.proof("BUSY")
    host.prove()
    assert host.judge().allowed and "BUSY" in host.judge().reason


@pytest.mark.parametrize("verdict", ["FAIL", "NOT VERIFIED", "CPU ONLY"])
def test_no_other_verdict_does(host: Host, verdict: Verdict) -> None:
    host.result = host.proof(verdict)
    host.prove()
    assert f"the verdict {verdict}" in host.held()


def test_a_red_check_beside_a_pass_is_none(host: Host) -> None:
    host.prove(checks=(failed("offload", "33 of 66 layers", "all", "deploy again"),))
    assert "offload: 33 of 66 layers" in host.held() and "next: deploy again" in host.held()


def test_the_cpu_serves_only_where_that_is_allowed(host: Host) -> None:
    inputs = replace(host.result.inputs, driver=None, gpus=())
    host.prove(verdict="CPU ONLY", inputs=inputs, gpus=())
    assert "CPU ONLY" in host.held()
    host.plan(allow_cpu_only=True)
    host.loaded = (None, "no driver")
    assert host.judge().allowed and host.judge().gpus == ()


def test_without_a_verdict_it_is_held(host: Host) -> None:
    (host.root / "results/latest.json").unlink()
    assert "no proof of f00" in host.held()
    (host.root / "results/latest.json").write_text("{")
    assert "no proof of f00" in host.held()


def test_a_verification_that_runs_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.root / "results/latest.json").unlink()
    monkeypatch.setattr(gate, "alive", lambda progress: True)
    told = Progress(kind="verify", key="k1", pid=1, start_ticks=1)
    (host.root / "job").mkdir()
    (host.root / "job/progress.json").write_text(json.dumps(asdict(told)))
    assert "a verification that runs" in host.held()


def test_what_the_driver_check_found_holds_it_with_its_words(host: Host) -> None:
    stale = {"reason": "driver 580 is gone: no module", "next": "sudo reboot"}
    (host.root / "results/stale.json").write_text(json.dumps(stale))
    assert "driver 580 is gone" in host.held() and host.held().endswith("next: sudo reboot")
    # A link, or what can't be read, says as much.
    (host.root / "results/stale.json").unlink()
    (host.root / "results/stale.json").symlink_to("/no/such")
    host.held()


def test_another_driver_is_not_the_one_that_was_proven(host: Host) -> None:
    host.loaded = ("590.10", "/sys")
    assert "found driver 590.10" in host.held() and f"expected driver {DRIVER}" in host.held()
    host.loaded = (None, "nvidia-smi does not start")
    assert "no driver: nvidia-smi does not start" in host.held()


def test_half_an_update_is_held(host: Host) -> None:
    host.on_disk = "590.10"
    assert f"kernel module {DRIVER} and library 590.10" in host.held()
    assert "next: sudo reboot" in host.held()


def test_nvidia_uvm_may_come_late(host: Host) -> None:
    (host.root / "dev/nvidia-uvm").unlink()
    assert "/dev/nvidia-uvm can't be opened: No such file" in host.held()
    (host.root / "dev/dxg").touch()
    assert host.judge().allowed, "the GPU of WSL"


def test_a_driver_that_does_not_answer_is_held(host: Host) -> None:
    host.card.starts = False
    assert "Driver/library version mismatch" in host.held()


def test_a_gpu_that_is_gone_is_missed(host: Host) -> None:
    host.card.count = 0
    assert "GPU-0 not among no GPU" in host.held()


def test_a_gpu_that_asks_for_a_reset_is_not_used(host: Host) -> None:
    host.card.action = 1
    reason = host.held()
    assert "GPU 0 GPU-0: health: found rows of memory wait for a reset" in reason, reason
    assert "nvidia-smi --gpu-reset" in reason


def test_a_gpu_that_was_not_proven_is_not_used(host: Host) -> None:
    host.card.count = 2
    assert "no proof of GPU-1" in host.held(gpus=("GPU-1",))
    rows = (*host.result.gpus, proven("GPU-1", "FAIL"))
    host.prove(gpus=rows)
    assert "no proof of GPU-1" in host.held(gpus=("GPU-0", "GPU-1"))
    assert host.judge(gpus=("GPU-0",)).gpus == ("GPU-0",)


def test_another_library_than_the_verified_one_is_not_loaded(host: Host) -> None:
    host.library.write_bytes(b"other code")
    assert "libllama.so has changed since" in host.held()
    host.library.unlink()
    assert "No such file" in host.held()


def test_a_library_that_lies_elsewhere_is_not_the_builds(host: Host) -> None:
    other = host.root / "elsewhere.so"
    other.write_bytes(b"code")
    host.library.unlink()
    host.library.symlink_to(other)
    assert "lies outside of" in host.held()


def test_a_proof_without_libraries_is_none(host: Host) -> None:
    host.prove(system=System())
    assert "no list of libraries" in host.held()


def test_a_proof_of_another_machine_is_none(host: Host) -> None:
    host.prove(machine_id="0" * 32)
    assert "another machine" in host.held()


def test_a_build_that_is_not_the_verified_one_is_judged_by_its_own_last_result(
    host: Host,
) -> None:
    """While another one is being proven, or after one was gone back from."""
    host.plan(prefix=str(host.root / "versions/new"))
    (host.root / "results/latest.json").unlink()
    assert "no result of f00" in host.held()
    host.prove("20261126T100000Z-f00")
    assert host.judge().allowed
    host.prove("20261126T110000Z-f00", verdict="FAIL")
    assert "the verdict FAIL" in host.held(), "the newest counts"
    host.loaded = ("590.10", "/sys")
    host.prove("20261126T120000Z-f00", verdict="PASS")
    assert "driver 590.10" in host.held(), "and no older driver"


def test_a_model_that_changed_since_it_was_brought_is_not_loaded(host: Host) -> None:
    model = host.root / "gguf/aa/model.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"GGUF")
    assert host.judge(model=str(model)).allowed, "an own one, of which nothing is known"
    file = PlacedFile(name="model.gguf", sha256="", size=4, changed_ns=model.stat().st_ctime_ns)
    proof = model.with_name("model.json")
    proof.write_text(json.dumps(asdict(ModelProduct(files=(file,)))))
    assert host.judge(model=str(model)).allowed
    model.write_bytes(b"GGUF2")
    assert "model.gguf: changed since it was checked" in host.held(model=str(model))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another account")
@pytest.mark.parametrize("name", ["results/latest.json", "results"])
def test_what_another_account_can_write_proves_nothing(host: Host, name: str) -> None:
    path = host.root / name
    os.chown(path, 4242, 4242)
    if name == "results":
        # Root judges as the account that the folder of it all belongs to.
        assert "of uid 4242" in host.held()
        return
    assert "latest.json of uid 4242, mode 644" in host.held()


@pytest.mark.parametrize(("name", "mode"), [("results/latest.json", 0o666), ("results", 0o777)])
def test_nor_what_everybody_can_write(host: Host, name: str, mode: int) -> None:
    path = host.root / name
    path.chmod(mode)
    assert f"mode {mode:o}" in host.held() and f"next: ls -ld {path}" in host.held()
    path.chmod(mode & 0o775)
    assert host.judge().allowed


def test_a_link_in_the_place_of_a_result_is_not_followed(host: Host) -> None:
    latest = host.root / "results/latest.json"
    latest.rename(host.root / "elsewhere.json")
    latest.symlink_to(host.root / "elsewhere.json")
    assert "no proof of f00" in host.held()


def test_a_result_of_a_clock_that_was_ahead_is_not_the_newest_for_years(host: Host) -> None:
    host.plan(prefix=str(host.root / "versions/new"))
    host.prove("20990101T000000Z-f00", finished=time.time() + 3600)
    assert "ahead of now" in host.held()
    host.prove("20990101T000000Z-f00", finished=time.time() + 60)
    assert host.judge().allowed


def test_settings_that_can_t_be_read_hold_it(host: Host) -> None:
    (host.root / "verify.json").write_text("[]")
    host.held()


def test_the_command_tells_by_its_status(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = host.root / "serve-chat.json"
    file.write_text("{}")
    assert gate.main(["--config", str(file)]) == gate.EXIT_CONFIG
    assert "profile: found nothing" in capsys.readouterr().err
    monkeypatch.setattr(gate, "judge", lambda config: gate.Verdict(False, "found x"))
    monkeypatch.setattr(gate, "decode", lambda kind, data: host_config(host))
    assert gate.main(["--config", str(file)]) == gate.EXIT_HELD
    assert capsys.readouterr().out == "chat: held: found x\n"


def host_config(host: Host) -> Any:
    class Config:
        profile = "chat"

    return Config()
