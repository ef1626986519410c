"""Whole verifications on a GPU of a fake NVML that is not as it should be: none ends in PASS."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llamafleet.onhost.verify import gpu
from llamafleet.onhost.verify.gpu import Nvml
from tests.fakenvml import Fake, fake_nvml, fake_nvml_library
from tests.onhost.llama import models
from tests.onhost.verify.test_session import Host, host, status

__all__ = ["fake_nvml", "fake_nvml_library", "host", "models"]

Change = Callable[[Fake], object]
Verified = Callable[..., dict[str, Any]]


@pytest.fixture
def verified(host: Host, fake_nvml: Fake, monkeypatch: pytest.MonkeyPatch) -> Verified:
    """The result on the fake's card, changed so; llama.cpp's answers are good ones."""

    def run(change: Change, **inputs: Any) -> dict[str, Any]:
        # As the plan of that host names its GPU.
        fake_nvml.say("nvmlDeviceGetName", value="NVIDIA GeForce RTX 4090")
        fake_nvml.say("nvmlDeviceGetUUID", value="GPU-0")
        monkeypatch.setattr(gpu, "Nvml", Nvml)
        monkeypatch.setattr("llamafleet.onhost.verify.conditions.IDLE_S", 0.0, raising=False)
        change(fake_nvml)
        return host[1](**inputs)

    return run


def test_a_card_as_recorded_passes(verified: Verified) -> None:
    result = verified(lambda fake: None)
    assert result["verdict"] == "PASS" and status(result, "busy") == set()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fake: fake.processes("Compute", (1, 700)), "another process on GPU 0: pid 1 "),
        (lambda fake: fake.processes("MPSCompute", (1, 700)), "another process on GPU 0: pid 1 "),
        (lambda fake: fake.memory(70 * 1024), "71680 MiB of GPU 0 were in use"),
        (
            lambda fake: fake.say("nvmlDeviceGetUtilizationRates", value=(90, 40)),
            "GPU 0 was at 90 %",
        ),
        (
            lambda fake: fake.say("nvmlDeviceGetApplicationsClock", 1, value=990),
            "the application clock of GPU 0",
        ),
    ],
)
def test_a_card_that_is_not_free_is_busy(verified: Verified, change: Change, reason: str) -> None:
    result = verified(change)
    assert result["verdict"] == "BUSY" and status(result, "busy") == {"benchmark"}
    (said,) = result["gpus"][0]["benchmark"]["busy"]
    assert said.startswith(reason)


@pytest.mark.parametrize(
    "change",
    [
        lambda fake: fake.say("nvmlDeviceGetRemappedRows", value=(0, 1, 1, 0)),
        lambda fake: fake.say("nvmlDeviceGetTotalEccErrors", 1, 0, value=1),
        lambda fake: fake.field(230, 2),
    ],
)
def test_a_card_that_is_ill_is_red(verified: Verified, change: Change) -> None:
    result = verified(change)
    assert result["verdict"] == "FAIL" and "health" in status(result, "fail")


def test_a_card_that_is_lost_meanwhile_is_no_model_that_is_too_big(verified: Verified) -> None:
    """It tells no free memory: "end the processes" was the cure."""
    result = verified(lambda fake: fake.fail("*", code=15, after=8))
    assert result["verdict"] == "FAIL"
    assert "health" in status(result, "fail") and "model" not in status(result, "fail")


def test_a_driver_that_lacks_the_newest_functions_is_read(
    verified: Verified,
) -> None:
    """pynvml's word for that is no NVMLError, and each check that asks NVML died of it."""

    def older(fake: Fake) -> None:
        for kind in ("Compute", "Graphics", "MPSCompute"):
            fake.missing(f"nvmlDeviceGet{kind}RunningProcesses")

    assert verified(older)["verdict"] == "PASS"


def test_each_mig_device_has_a_row(verified: Verified) -> None:
    uuids = [f"MIG-{n}0000000-0000-0000-0000-000000000000" for n in (1, 2)]

    def divided(fake: Fake) -> None:
        for number, uuid in enumerate(uuids):
            fake.mig(0, number, uuid, "NVIDIA H200 MIG 1g.18gb", 16384)

    result = verified(divided, gpus=tuple(f"NVIDIA H200 MIG 1g.18gb {uuid}" for uuid in uuids))
    assert [row["uuid"] for row in result["gpus"]] == uuids
    assert "busy" not in status(result, "fail")


@pytest.mark.parametrize(
    ("asked", "after", "red"),
    [
        (["nvmlDeviceGetUtilizationRates"], 0, "health"),
        (["nvmlDeviceGetMemoryInfo"], 2, "health"),
        (["nvmlDeviceGetUUID"], 0, "gpus_visible"),
        (["nvmlDeviceGetTotalEccErrors", 1, 0], 0, "health"),
    ],
)
def test_a_card_that_hangs_nvml_is_red_in_time(
    verified: Verified, monkeypatch: pytest.MonkeyPatch, asked: Any, after: int, red: str
) -> None:
    """Before: no verdict, after all the time that the unit had."""
    monkeypatch.setattr("llamafleet.onhost.verify.answering.ANSWER_S", 0.3)
    result = verified(lambda fake: fake.hang(*asked, after=after))
    assert result["verdict"] == "FAIL" and red in status(result, "fail")
    assert f"NVML hangs: no answer to {asked[0]}" in json.dumps(result["gpus"])
    assert "asked about GPU 0" in json.dumps(result["gpus"]) or red == "gpus_visible"
