"""A card that says of itself that it is ill is red, whatever it still computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafleet.onhost.verify import conditions
from llamafleet.onhost.verify.checks.health import judge_health
from llamafleet.onhost.verify.gpu import Nvml
from llamafleet.protocol.result import Check
from tests.fakenvml import Fake, fake_nvml, fake_nvml_library

__all__ = ["fake_nvml", "fake_nvml_library"]


def judged(fake: Fake, change: Callable[[Fake], object] = lambda fake: None) -> Check:
    nvml = Nvml()
    (gpu,) = nvml.gpus()
    change(fake)
    return judge_health(conditions.health(nvml, gpu), gpu.bus_id)


def test_a_card_that_is_well(fake_nvml: Fake) -> None:
    check = judged(fake_nvml)
    assert check.status == "pass"
    assert check.found == ("nothing of uncorrected memory errors, rows, recovery; not told: pages")


@pytest.mark.parametrize(
    ("change", "found", "advice"),
    [
        (
            lambda fake: fake.say("nvmlDeviceGetTotalEccErrors", 1, 0, value=3),
            "3 uncorrected memory errors since the driver started",
            "sudo nvidia-smi --gpu-reset -i 0000:01:00.0",
        ),
        (
            lambda fake: fake.say("nvmlDeviceGetRemappedRows", value=(0, 1, 1, 0)),
            "rows of memory wait for a reset to be replaced",
            "--gpu-reset",
        ),
        (
            lambda fake: fake.say("nvmlDeviceGetRemappedRows", value=(0, 9, 0, 1)),
            "a row of memory could not be replaced",
            "have the card replaced: it has no spare rows left",
        ),
        (
            lambda fake: fake.say("nvmlDeviceGetRetiredPagesPendingStatus", value=1),
            "pages of memory wait for a reset to be retired",
            "--gpu-reset",
        ),
        (
            lambda fake: fake.field(230, 1),
            "its driver asks for a reset of the GPU",
            "--gpu-reset",
        ),
        (
            lambda fake: fake.field(230, 2),
            "its driver asks for a reboot of the host",
            "reboot",
        ),
        (lambda fake: fake.field(230, 99), "its driver asks for action 99", "reboot"),
        (
            lambda fake: fake.fail("*", code=15),
            "NVML does not answer for this card: GPU is lost",
            "xid",
        ),
        (
            # NVML keeps the UUID that it has read once.
            lambda fake: [
                fake.fail(name, code=15)
                for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2")
            ],
            "NVML does not answer for this card: GPU is lost",
            "xid",
        ),
        (
            lambda fake: fake.fail("nvmlDeviceGetTemperature", 0, code=16),
            "NVML does not answer for this card: GPU requires restart",
            "xid",
        ),
        (
            lambda fake: fake.fail("*", code=16),
            "NVML does not answer for this card: GPU requires restart",
            "xid",
        ),
        (
            lambda fake: fake.fail("*", code=999),
            "NVML does not answer for this card: Unknown Error",
            "xid",
        ),
    ],
)
def test_a_card_that_is_ill_is_red(
    fake_nvml: Fake, change: Callable[[Fake], object], found: str, advice: str
) -> None:
    check = judged(fake_nvml, change)
    assert (check.status, check.found) == ("fail", found)
    assert advice in check.next


def test_corrected_errors_and_rows_in_use_are_no_illness(fake_nvml: Fake) -> None:
    def worn(fake: Fake) -> None:
        fake.say("nvmlDeviceGetTotalEccErrors", 0, 0, value=12)
        fake.say("nvmlDeviceGetTotalEccErrors", 1, 1, value=1)
        fake.say("nvmlDeviceGetRemappedRows", value=(1, 1, 0, 0))

    assert judged(fake_nvml, worn).status == "pass"


def test_a_geforce_tells_little_and_is_well(fake_nvml: Fake) -> None:
    def geforce(fake: Fake) -> None:
        fake.fail("nvmlDeviceGetTotalEccErrors", 1, 0, code=3)
        fake.fail("nvmlDeviceGetRemappedRows", code=3)
        fake.fail("field/230", code=3)

    check = judged(fake_nvml, geforce)
    assert (check.status, check.found) == ("pass", "it tells nothing of itself")


def test_a_question_that_a_card_has_no_answer_to_is_no_silence(fake_nvml: Fake) -> None:
    """One that shares the host's memory tells none; some under WSL2 no temperature."""

    def little(fake: Fake) -> None:
        fake.fail("nvmlDeviceGetMemoryInfo", code=3)
        fake.fail("nvmlDeviceGetTemperature", 0, code=999)

    assert judged(fake_nvml, little).status == "pass"


def test_a_card_that_hangs_at_the_last_question_is_red(
    fake_nvml: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafleet.onhost.verify.answering.ANSWER_S", 0.3)
    check = judged(fake_nvml, lambda fake: fake.hang("nvmlDeviceGetTotalEccErrors", 1, 0))
    assert check.status == "fail"
    assert check.found.endswith(
        "no answer to nvmlDeviceGetTotalEccErrors within 0 s, asked about GPU 0"
    )
