"""What is wrong with a GPU, and that the worst is shown first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.gauges import PROMPT, Gauges, GpuNow, ProcessNow, ServiceNow
from llamafleet.plans.trouble import USUAL, Line, by_trouble, lines_of, rate_of
from llamafleet.protocol.serve import GENERATED

UUID = "GPU-1"
GPU = GpuNow(
    *(0, UUID, "0000:01:00.0", "RTX 4090", 10, 24000, 24564, 0, 20, 450, 210, 405, 40),
    reasons=0,
)
OTHER = ProcessNow(UUID, 7, "/usr/bin/ollama", 100, "root")
OURS = ProcessNow(UUID, 8, "/usr/bin/python3", 100, "llamafleet", "llamafleet-serve@chat.service")
HELD = ServiceNow("chat", "held", "found FAIL", {}, 0, gpus=[UUID])
READY = ServiceNow("chat", "ready", "", {GENERATED: 100, PROMPT: 5}, 10.0)


def judged(*processes: ProcessNow, services: tuple[ServiceNow, ...] = (), **gpu: Any) -> Line:
    now = Gauges((replace(GPU, **gpu),), processes, services)
    (line,) = lines_of("a", now)
    return line


@pytest.mark.parametrize(
    ("gpu", "trouble", "why"),
    [
        ({}, "idle", ""),
        ({"utilisation": 5}, "busy", ""),
        ({"recovery": "Reset"}, "reset", "Reset"),
        ({"faults": ("power.draw: [GPU requires reset]",)}, "reset", "GPU requires reset"),
        (
            {"faults": ("power.draw: [Unknown Error]",)},
            "ill",
            "power.draw: [Unknown Error]",
        ),
        ({"reasons": 0x40}, "throttled", "hw thermal slowdown"),
        ({"reasons": 0x88}, "throttled", "hw slowdown, hw power brake slowdown"),
        ({"reasons": 0x20, "temperature_c": 95}, "throttled", "sw thermal slowdown"),
        ({"reasons": 0x41}, "idle", ""),
        ({"reasons": 0x1}, "idle", ""),
        ({"reasons": 0x2}, "idle", ""),
        ({"temperature_c": 90}, "hot", "90 C"),
        ({"temperature_c": 90, "margin_c": 15}, "idle", ""),
        ({"temperature_c": 60, "margin_c": 2}, "hot", "2 C to its limit"),
        ({"reasons": 0x4}, "power-capped", ""),
        ({"reasons": 0x4, "free_mib": 5}, "power-capped", ""),
        ({"free_mib": 300}, "memory full", "300 MiB free"),
        ({"free_mib": None}, "idle", ""),
    ],
)
def test_one_gpu(gpu: dict[str, Any], trouble: str, why: str) -> None:
    line = judged(**gpu)
    assert (line.trouble, line.why) == (trouble, why)


def test_who_is_on_it() -> None:
    assert judged(OURS).trouble == "busy"
    line = judged(OURS, OTHER)
    assert (line.trouble, line.why) == ("others", "root: ollama")


def test_a_service_that_is_held_is_told_at_its_gpu() -> None:
    line = judged(services=(HELD,))
    assert (line.trouble, line.why) == ("held", "chat: held: found FAIL")
    assert line.services == (HELD,)


def test_a_service_whose_gpus_are_not_named_has_a_line_of_its_own() -> None:
    now = Gauges((GPU,), (), (replace(HELD, gpus=[]),))
    gpu, service = lines_of("a", now)
    assert (gpu.trouble, gpu.services) == ("idle", ())
    assert (service.trouble, service.gpu) == ("held", None)


def test_what_can_not_be_read_is_no_fault_of_a_service() -> None:
    hidden = replace(HELD, state=None, reason="found no right to read its settings")
    line = judged(services=(hidden,))
    assert (line.trouble, line.why) == (
        "untold",
        "chat: not told: found no right to read its settings",
    )
    lines = lines_of("a", Gauges((GPU,), (), (replace(hidden, gpus=[]),), notes=("no python3",)))
    assert [line.trouble for line in lines] == ["idle", "untold", "untold"]
    assert lines[-1].why == "no python3" and {"untold"} < USUAL


def test_one_that_computes_is_told_at_its_gpu() -> None:
    now = Gauges((GPU,), (OURS,), (READY,))
    (line,) = lines_of("a", now)
    assert (line.trouble, line.services) == ("busy", (READY,))


def test_tokens_a_second() -> None:
    later = replace(READY, metrics={GENERATED: 150, PROMPT: 5}, at=12.0)
    assert rate_of((later,), Gauges(services=(READY,))) == 25
    assert rate_of((later,), None) is None
    assert rate_of((later,), Gauges()) is None
    assert rate_of((READY,), Gauges(services=(READY,))) is None, "no time has passed"
    absurd = replace(READY, metrics={GENERATED: 1.7e308, PROMPT: 5}, at=10.1)
    assert rate_of((absurd,), Gauges(services=(READY,))) is None, "no number of JSON"
    anew = replace(READY, metrics={GENERATED: 3, PROMPT: 1}, at=14.0)
    assert rate_of((anew,), Gauges(services=(later,))) is None, "it was started anew"


def test_what_was_there_and_is_no_more_is_gone() -> None:
    second = replace(GPU, index=1, uuid="GPU-2", pci="0000:02:00.0", temperature_c=70)
    lines = lines_of("a", Gauges((GPU,)), None, [GPU, second])
    (gone,) = (line for line in lines if line.trouble == "gone")
    assert gone.gpu and (gone.gpu.index, gone.gpu.temperature_c) == (1, None)
    assert gone.why == "nvidia-smi no longer tells of it"


def test_a_complaint_is_one_gpu_that_is_gone() -> None:
    said = "Unable to determine the device handle for GPU0000:02:00.0: Unknown Error"
    second = replace(GPU, index=1, uuid="GPU-2", pci="0000:02:00.0")
    for known in ([], [GPU, second]):
        lines = lines_of("a", Gauges((GPU,), complaints=(said,)), None, known)
        assert [line.trouble for line in lines] == ["idle", "gone"]
        assert lines[1].gpu and lines[1].gpu.pci == "0000:02:00.0"
        assert lines[1].why == said


def test_a_driver_that_tells_nothing_is_one_line() -> None:
    lines = lines_of("a", Gauges(fault="nvidia-smi does not end"), None, [GPU])
    assert [(line.trouble, line.why) for line in lines] == [("driver", "nvidia-smi does not end")]


def test_a_host_without_gpus() -> None:
    (line,) = lines_of("a", Gauges(driver=False))
    assert (line.trouble, line.why) == ("no GPU", "found no nvidia-smi")


def test_the_worst_is_first_then_by_host_and_index() -> None:
    second = replace(GPU, index=1, pci="0000:02:00.0")
    hot = replace(GPU, index=10, pci="0000:0a:00.0", temperature_c=95)
    lines = [*lines_of("b", Gauges((second, GPU, hot))), Line("c", "unreachable")]
    lines += lines_of("a", Gauges((GPU,)))
    told = [(line.host, line.trouble, line.gpu and line.gpu.index) for line in by_trouble(lines)]
    assert told == [
        ("c", "unreachable", None),
        ("b", "hot", 10),
        ("a", "idle", 0),
        ("b", "idle", 0),
        ("b", "idle", 1),
    ]
