"""The verification's figures for Prometheus: what a page says of each verdict, and who reads it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llamafleet.onhost.exposition import page
from llamafleet.onhost.verify import metrics
from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.conditions import Conditions
from llamafleet.protocol.result import Check, Result
from tests.history import ORIGIN, RESULT, benchmark, gpu
from tests.protocol.test_verify import good

DOCS = Path(__file__).parents[3] / "docs/monitoring.md"
UNPROVEN = Check("offload", "fail", "0 of 33 layers", "33 of 33", "nvidia-smi")
TAKEN = Check("busy", "busy", "pid 42 (train.py, 70 GiB)", "none", "nvidia-smi")
LIKE = Conditions(
    uuid="GPU-0",
    temperature_c=71.0,
    power_limit_w=450.0,
    sm_clock_mhz=2520.0,
    pcie_width=16,
    throttled_s={"power": 0.25},
)

Series = tuple[str, tuple[tuple[str, str], ...]]


def told(text: str) -> dict[Series, float]:
    """Each series of a page, once."""
    found: dict[Series, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name.removeprefix("llamafleet_"), tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def of(result: Result) -> dict[Series, float]:
    families = metrics.Families()
    families.result(result)
    return told(page(families).decode())


def one(name: str, /, **labels: str) -> Series:
    return name, tuple(sorted(labels.items()))


def rate(gpu: str, test: str) -> Series:
    tokens = {"pp": "512", "tg": "128"}[test]
    model = RESULT.inputs.model
    return one("benchmark_tokens_per_second", gpu=gpu, test=test, tokens=tokens, model=model)


def measured(result: Result = RESULT) -> Result:
    """With all that a benchmark tells."""
    full = replace(benchmark(), load_s=4.5, peak_vram_mib=4522, conditions=(LIKE,))
    return replace(result, gpus=(replace(result.gpus[0], benchmark=full),))


def test_a_pass_tells_what_was_proven_and_measured() -> None:
    found = of(measured())
    verdicts = {labels: value for (name, labels), value in found.items() if name == "verdict"}
    assert len(verdicts) == 5 and sum(verdicts.values()) == 1
    gpu_0 = {"gpu": "GPU-0"}
    wanted = {
        one("verdict", verdict="PASS"): 1,
        one("verified"): 1,
        one("gpu_verdict", verdict="PASS", **gpu_0): 1,
        one("gpu_verdict", verdict="FAIL", **gpu_0): 0,
        one("verification_timestamp_seconds"): RESULT.finished,
        one("verification_duration_seconds"): pytest.approx(100.4),
        one(
            "verification_info",
            host="gpu-a",
            driver="580.95.05",
            cuda="13.0",
            toolkit="13.0",
            fingerprint=RESULT.fingerprint,
            model="synthetic:7b-q4_0",
        ): 1,
        one(
            "gpu_info",
            name="NVIDIA GeForce RTX 4090",
            bus_id="0000:01:00.0",
            compute_capability="8.9",
            **gpu_0,
        ): 1,
        rate("GPU-0", "pp"): 11536.25,
        rate("GPU-0", "tg"): 150.5,
        one("benchmark_load_seconds", **gpu_0): 4.5,
        one("benchmark_memory_peak_bytes", **gpu_0): 4522 * 2**20,
        one("benchmark_temperature_celsius", **gpu_0): 71,
        one("benchmark_power_limit_watts", **gpu_0): 450,
        one("benchmark_sm_clock_hertz", **gpu_0): 2.52e9,
        one("benchmark_pcie_lanes", **gpu_0): 16,
        one("benchmark_throttled_seconds", reason="power", **gpu_0): 0.25,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert not [key for key in found if key[0] == "check_failed"]


def test_what_a_host_does_not_tell_has_no_series() -> None:
    system = replace(RESULT.system, driver=None, cuda=None)
    found = of(replace(RESULT, started=0.0, system=system))
    assert not [key for key in found if key[0] == "verification_duration_seconds"]
    (info,) = (dict(labels) for name, labels in found if name == "verification_info")
    assert info["driver"] == RESULT.inputs.driver and "cuda" not in info


def test_a_red_check_is_named() -> None:
    broken = replace(RESULT.gpus[0], verdict="FAIL", checks=(UNPROVEN,), benchmark=None)
    origin = replace(ORIGIN, status="fail")
    found = of(replace(RESULT, verdict="FAIL", gpus=(broken,), checks=(origin,)))
    red = {key: value for key, value in found.items() if key[0] == "check_failed"}
    assert red == {
        one("check_failed", check="offload", gpu="GPU-0"): 1,
        one("check_failed", check="library_origin"): 1,
    }
    assert found[one("verified")] == 0 and found[one("verdict", verdict="FAIL")] == 1
    assert not [key for key in found if key[0].startswith("benchmark")]


@pytest.mark.parametrize(("allowed", "good"), [(False, 0), (True, 1)])
def test_figures_of_a_busy_gpu_are_none(allowed: bool, good: int) -> None:
    """They would pass for a slow GPU; why it is BUSY, its conditions tell."""
    full = measured().gpus[0]
    busy = replace(full, verdict="BUSY", checks=(TAKEN,))
    free = gpu(1)
    found = of(replace(RESULT, verdict="BUSY", gpus=(busy, free), allow_busy=allowed))
    measured_at = {dict(labels)["gpu"] for name, labels in found if name.endswith("per_second")}
    assert measured_at == {"GPU-1"}
    assert found[one("verified")] == good
    assert found[one("benchmark_power_limit_watts", gpu="GPU-0")] == 450


def test_several_gpus_together_are_told_apart_from_each() -> None:
    both = replace(benchmark(tg=260.0), conditions=(LIKE,))
    found = of(replace(RESULT, gpus=(gpu(0), gpu(1)), benchmark=both))
    assert found[rate("all", "tg")] == 260
    assert found[rate("GPU-1", "tg")] == 150.5
    assert one("benchmark_power_limit_watts", gpu="all") not in found
    taken = of(replace(RESULT, gpus=(gpu(0), gpu(1)), benchmark=both, checks=(TAKEN,)))
    assert rate("all", "tg") not in taken


def test_the_cpu_is_named_so() -> None:
    found = of(replace(RESULT, verdict="CPU ONLY", gpus=(), benchmark=benchmark(20.0, 9.5)))
    assert found[rate("cpu", "tg")] == 9.5
    assert found[one("verified")] == 1 and found[one("verdict", verdict="CPU ONLY")] == 1


def test_gpus_of_one_uuid_are_no_series_twice() -> None:
    """As of an NVML that tells none."""
    first = replace(gpu(0), uuid="", bus_id="1")
    found = of(replace(RESULT, gpus=(first, replace(first, bus_id="2"))))
    assert found[one("gpu_verdict", gpu="1", verdict="PASS")] == 1
    # Of two with one label `gpu` no rule of alerts.yaml could tell which is meant: each fails then.
    assert sum(name == "gpu_info" for name, _ in found) == 2
    same = of(replace(RESULT, gpus=(gpu(0), replace(gpu(0), bus_id="2", name="another"))))
    assert sum(name == "gpu_info" for name, _ in same) == 1


@pytest.fixture
def config(tmp_path: Path) -> verify_config.VerifyConfig:
    places = {"results": str(tmp_path), "job": str(tmp_path / "job")}
    return verify_config.parse(tmp_path, good() | places)


def test_without_a_verdict_nothing_is_proven(config: verify_config.VerifyConfig) -> None:
    metrics.keep(config, RESULT)
    metrics.keep(config, None)
    found = told(config.prom.read_text())
    assert {name for name, _ in found} == {"verdict", "verified", "verification_timer"}
    assert found[one("verdict", verdict="NOT VERIFIED")] == 1
    assert found[one("verdict", verdict="PASS")] == 0 and found[one("verified")] == 0


def test_any_account_reads_the_file(config: verify_config.VerifyConfig) -> None:
    metrics.keep(config, RESULT)
    assert config.prom.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in config.prom.parent.iterdir()] == [config.prom.name]


def test_so_it_does_whatever_the_umask_is(config: verify_config.VerifyConfig) -> None:
    before = os.umask(0o077)
    try:
        metrics.keep(config, RESULT)
    finally:
        os.umask(before)
    assert config.prom.stat().st_mode & 0o777 == 0o644


def test_on_a_full_disk_no_old_verdict_is_left(
    config: verify_config.VerifyConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics.keep(config, RESULT)

    def full(*told: object, **how: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "write_whole", full)
    metrics.keep(config, None)
    assert not config.prom.exists()
    assert "No space left" in capsys.readouterr().err


def test_a_file_that_can_t_be_written_is_told_and_no_more(
    config: verify_config.VerifyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config.prom.mkdir()
    metrics.keep(config, RESULT)
    assert "metrics: found that " in capsys.readouterr().err


def test_every_figure_is_in_the_guide_and_no_other() -> None:
    listed = {
        line.split("`")[1].partition("{")[0]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `llamafleet_")
    }
    assert listed == {family.name for family in metrics.Families()}


def test_promtool_has_nothing_to_say(config: verify_config.VerifyConfig) -> None:
    """https://prometheus.io/docs/prometheus/latest/command-line/promtool/"""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    for result in (measured(), replace(RESULT, verdict="FAIL", checks=(UNPROVEN,)), None):
        metrics.keep(config, result)
        checked = subprocess.run(
            [promtool, "check", "metrics"],
            input=config.prom.read_bytes(),
            capture_output=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
