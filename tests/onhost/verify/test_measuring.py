"""How often a busy GPU is measured, and for how long."""

from __future__ import annotations

import pytest

from llamafleet.onhost.verify.freedom import Finding
from llamafleet.onhost.verify.measuring import PAUSE_S, POLL_S, Measured, Patience, until_free
from llamafleet.protocol.result import Benchmark, Rates

BENCHMARK = Benchmark(Rates(1, 1.0, 0.0), Rates(1, 1.0, 0.0))
LOAD = Finding("busy", "another process on GPU 0")
CAP = Finding("busy", "the power limit of GPU 0 is low", standing=True)
NARROW = Finding("warn", "PCIe of GPU 0 under load: x4 of x16")


class Time:
    """A clock that only waiting and measuring move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Gpu:
    """Measured in 10 s; each measurement finds the next one of these."""

    def __init__(self, *found: tuple[Finding, ...], free_at: float = 0.0) -> None:
        self.found, self.free_at = list(found), free_at
        self.time = Time()
        self.waits: list[str] = []

    def measure(self) -> Measured:
        self.time.now += 10
        findings = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        return Measured(BENCHMARK, findings)

    def until_free(self, patience: Patience) -> Measured:
        return until_free(
            self.measure,
            patience,
            lambda: self.time.now >= self.free_at,
            self.waits.append,
            self.time.sleep,
        )

    def patience(self, minutes: float) -> Patience:
        return Patience(60 * minutes, self.time)


@pytest.mark.parametrize("findings", [(), (NARROW,)])
def test_a_free_gpu_is_measured_once(findings: tuple[Finding, ...]) -> None:
    gpu = Gpu(findings)
    measured = gpu.until_free(gpu.patience(5))
    assert measured.benchmark.attempts == 1 and measured.findings == findings
    assert gpu.time.now == 10 and gpu.waits == []


def test_a_load_that_ends_is_waited_for() -> None:
    gpu = Gpu((LOAD,), (), free_at=100)
    measured = gpu.until_free(gpu.patience(5))
    assert (measured.benchmark.attempts, measured.busy) == (2, ())
    assert 100 <= gpu.time.now - 10 <= 100 + POLL_S
    assert gpu.waits == ["measured 1 times, waiting: another process on GPU 0"]


def test_a_load_that_stays_ends_with_the_patience() -> None:
    gpu = Gpu((LOAD,), free_at=10**9)
    measured = gpu.until_free(gpu.patience(1))
    assert measured.busy == (LOAD,) and measured.benchmark.attempts == 2
    assert 70 <= gpu.time.now <= 60 + 10 + 10 + PAUSE_S + POLL_S


def test_figures_that_stay_unquiet_are_taken_again_and_again() -> None:
    """Nothing is seen on the GPU between the measurements."""
    gpu = Gpu((LOAD,))
    measured = gpu.until_free(gpu.patience(1))
    assert measured.benchmark.attempts == 6 and gpu.time.now <= 60 + 10 + 10 + PAUSE_S


def test_a_setting_is_measured_twice_and_not_waited_for() -> None:
    gpu = Gpu((CAP,))
    measured = gpu.until_free(gpu.patience(120))
    assert (measured.benchmark.attempts, measured.busy) == (2, (CAP,))
    assert gpu.time.now == 20 + PAUSE_S


def test_no_minutes_are_no_second_measurement() -> None:
    gpu = Gpu((LOAD,), ())
    assert gpu.until_free(gpu.patience(0)).benchmark.attempts == 1


def test_several_gpus_share_the_patience_and_each_is_measured_twice() -> None:
    first, second = Gpu((LOAD,), free_at=10**9), Gpu((LOAD,), ())
    second.time = first.time
    patience = first.patience(1)
    first.until_free(patience)
    spent = first.time.now
    measured = second.until_free(patience)
    assert (measured.benchmark.attempts, measured.busy) == (2, ())
    assert second.time.now - spent == 20 + PAUSE_S
