"""Each GPU by itself: which are judged, side by side, and what no process of theirs may see."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import checks, gpu
from llamafleet.onhost.verify import session as verification
from llamafleet.onhost.verify.child import Outcome
from llamafleet.onhost.verify.gpu import Gpu, Nvml
from llamafleet.protocol.decode import decode
from llamafleet.protocol.result import Result
from llamafleet.received import received_result
from tests.onhost.llama import models
from tests.onhost.test_cards import Bus
from tests.onhost.verify.test_gpu import Recorded
from tests.onhost.verify.test_session import (
    Answers,
    Host,
    bus_id,
    host,
    rows,
    said,
    status,
    two,
)

__all__ = ["host", "models", "two"]
NAME = "NVIDIA GeForce RTX 4090"
BOTH = (f"{NAME} GPU-0", f"{NAME} GPU-1")


@pytest.fixture
def bus(tmp_path: Path, two: Host) -> Bus:
    """The files of that host, which is a machine."""
    made = Bus(tmp_path / "root")
    made.machine()
    return made


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with cores and memory for both."""
    monkeypatch.setattr(verification, "usable_cores", lambda: list(range(4)))
    monkeypatch.setattr(verification, "room", lambda _: 8)


def row(result: dict[str, Any], key: str, value: str) -> dict[str, Any]:
    (found,) = [row for row in result["gpus"] if row[key] == value]
    return dict(found)


def red(row: dict[str, Any]) -> dict[str, str]:
    return {c["name"]: c["found"] for c in row["checks"] if c["status"] == "fail"}


def shows(answers: Answers, *numbers: int) -> None:
    """What CUDA shows to a process that is limited to none."""
    reply, text = answers.answers["probe"]
    assert reply is not None
    devices = [d for d in reply["devices"] if d["bus_id"] in map(bus_id, numbers)]
    answers.answers["probe"] = (reply | {"devices": devices}, text)


# -- which GPUs are judged ---------------------------------------------------------------------


def test_a_card_of_the_bus_that_nvml_does_not_show_fails_and_is_named(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus = Bus(tmp_path / "root")
    bus.machine()
    bus.card(bus_id(0), 0, "0000")
    bus.card(bus_id(7), 1)
    result = host[1]()
    assert result["verdict"] == "FAIL"
    assert row(result, "uuid", "GPU-0")["verdict"] == "PASS"
    sick = row(result, "bus_id", bus_id(7))
    assert (sick["verdict"], sick["name"], sick["uuid"]) == (
        "FAIL", "NVIDIA H200", "GPU-aaaa0000-0000")  # fmt: skip
    assert list(red(sick)) == ["gpus_visible"]
    assert {c["status"] for c in sick["checks"]} == {"fail", "skip"}, "nothing is tried on it"
    assert result["inputs"]["gpus"] == [f"{NAME} GPU-0"], "the key is that of the plan"
    assert "GPU GPU-aaaa0000-0000: FAIL gpus_visible" in capsys.readouterr().out
    assert received_result(result) == decode(Result, result)


def test_no_gpu_at_all_beside_a_card_of_the_bus(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus(tmp_path / "root")
    bus.machine()
    bus.card(bus_id(7))
    monkeypatch.setattr(gpu, "Nvml", lambda: Nvml(Recorded(count=0)))
    shows(host[0])
    result = host[1](gpus=())
    assert result["verdict"] == "FAIL"
    (sick,) = result["gpus"]
    assert sick["bus_id"] == bus_id(7) and "gpus_visible" in red(sick)


def test_one_that_nvml_counts_and_loses_fails_and_the_other_is_judged(
    two: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, NVML as a whole was of no use then, and the host without any GPU."""

    def lost(self: Recorded, index: int) -> int:
        if index == 0:
            raise self.NVMLError("GPU is lost")
        return index

    monkeypatch.setattr(Recorded, "nvmlDeviceGetHandleByIndex", lost)
    result = two[1](gpus=BOTH)
    assert rows(result) == {"GPU-0": "FAIL", "GPU-1": "PASS"} and result["verdict"] == "FAIL"
    assert "GPU is lost" in red(row(result, "uuid", "GPU-0"))["gpus_visible"]
    assert result["inputs"]["gpus"] == list(BOTH)
    shows(two[0], 1)
    alone = two[1](gpus=BOTH[1:], chosen=("GPU-1",))
    assert (alone["verdict"], rows(alone)) == ("PASS", {"GPU-1": "PASS"})


def test_one_of_which_nvml_tells_nothing_is_lost(
    two: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a card that fell off the bus after NVML was opened."""

    def silent(self: Recorded, device: int) -> bytes:
        if device == 0:
            raise self.NVMLError("GPU is lost")
        return f"GPU-{device}".encode()

    monkeypatch.setattr(Recorded, "nvmlDeviceGetUUID", silent)
    result = two[1](gpus=BOTH)
    assert rows(result) == {"GPU-0": "FAIL", "GPU-1": "PASS"} and result["verdict"] == "FAIL"
    assert "GPU is lost" in red(row(result, "uuid", "GPU-0"))["gpus_visible"]


def test_one_that_was_given_to_another_container_is_none_of_this_host_s(
    two: Host, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML counts it, and /sys shows it. On the machine itself it is a unit's own limit."""

    class NoPermission(Recorded.NVMLError):
        value = 4

    def refuse(self: Recorded, index: int) -> int:
        if index == 0:
            raise NoPermission("Insufficient Permissions")
        return index

    monkeypatch.setattr(Recorded, "nvmlDeviceGetHandleByIndex", refuse)
    shows(two[0], 1)
    bus.card(bus_id(0), 0, "0")
    result = two[1](gpus=BOTH[1:])
    (sick,) = [row for row in result["gpus"] if row["bus_id"] == bus_id(0)]
    assert (sick["verdict"], result["verdict"]) == ("FAIL", "FAIL")
    assert "/dev/nvidia0 can't be opened" in red(sick)["gpus_visible"]
    bus.container()
    result = two[1](gpus=BOTH[1:])
    assert (result["verdict"], rows(result)) == ("PASS", {"GPU-1": "PASS"})


def test_a_gpu_of_the_plan_that_is_gone_fails(two: Host) -> None:
    result = two[1](gpus=(*BOTH, f"{NAME} GPU-9"))
    assert rows(result) == {"GPU-0": "PASS", "GPU-1": "PASS", "GPU-9": "FAIL"}
    assert result["verdict"] == "FAIL" and "missing: GPU-9" in said(result, "gpus_visible")
    assert result["inputs"]["gpus"] == [*BOTH, f"{NAME} GPU-9"]


def test_one_of_two_by_the_settings(two: Host, capsys: pytest.CaptureFixture[str]) -> None:
    answers, run = two
    shows(answers, 1)
    result = run(gpus=BOTH[1:], chosen=("GPU-1",))
    assert (result["verdict"], rows(result)) == ("PASS", {"GPU-1": "PASS"})
    assert result["left_out"] == [BOTH[0]] and result["inputs"]["gpus"] == [BOTH[1]]
    assert "1 of 2 GPUs" in said(result, "gpus_visible")
    assert "PASS (1 of 2 GPUs): " in capsys.readouterr().out
    assert {uuid for _, uuid in answers.on} == {"", "GPU-1"}
    assert [task for task, uuid in answers.on if not uuid] == ["probe", "control"]


def test_no_process_sees_a_gpu_that_is_left_out(two: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes no process would end it."""
    made: list[tuple[dict[str, str], tuple[Gpu, ...]]] = []

    def children(
        folder: Path, nvml: object, environment: dict[str, str], gpus: Any, **_: object
    ) -> Answers:
        made.append((environment, gpus))
        return two[0]

    monkeypatch.setattr(verification, "Children", children)
    two[1](gpus=BOTH[1:], chosen=("GPU-1",))
    ((environment, watched),) = made
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert [one.uuid for one in watched] == ["GPU-1"]
    two[1](chosen=("GPU-1",), environment={"CUDA_VISIBLE_DEVICES": "GPU-0"})
    assert made[1][0]["CUDA_VISIBLE_DEVICES"] == "GPU-0", "what is there is what is judged"


def test_a_chosen_one_that_is_hidden_or_gone_fails(two: Host) -> None:
    answers, run = two
    shows(answers, 0)
    hidden = run(gpus=BOTH[1:], chosen=("GPU-1",), environment={"CUDA_VISIBLE_DEVICES": "GPU-0"})
    assert hidden["verdict"] == "FAIL" and rows(hidden) == {"GPU-1": "FAIL"}
    gone = run(gpus=(f"{NAME} GPU-9",), chosen=("GPU-9",))
    assert gone["verdict"] == "FAIL" and rows(gone) == {"GPU-9": "FAIL"}
    assert gone["left_out"] == list(BOTH)


def test_a_sick_card_that_is_left_out_hinders_nothing(two: Host, bus: Bus) -> None:
    bus.card(bus_id(7), 1)
    result = two[1](gpus=BOTH, chosen=("GPU-0", "GPU-1"))
    assert result["verdict"] == "PASS" and result["left_out"] == ["NVIDIA H200 GPU-aaaa0000-0000"]


def test_why_a_gpu_is_hidden_is_said(two: Host, bus: Bus) -> None:
    bus.card(bus_id(1), 1, "1")
    shows(two[0], 0)
    result = two[1]()
    found = red(row(result, "uuid", "GPU-1"))["gpus_visible"]
    assert "/dev/nvidia1 can't be opened: No such file or directory" in found


# -- a GPU that takes no process ---------------------------------------------------------------


def taking_none(answers: Answers, number: int) -> None:
    """As compute mode Prohibited: a process that sees the GPU ends, and says so."""
    whole = answers.run

    def run(task: str, name: str = "", gpu: Gpu | None = None, **request: Any) -> Outcome:
        done = whole(task, name, gpu, **request)
        if gpu is not None and gpu.uuid != f"GPU-{number}":
            if task != "probe":
                return done
            reply, text = answers.answers["probe"]
            assert reply is not None
            mine = [d for d in reply["devices"] if d["bus_id"] == gpu.bus_id]
            return replace(done, reply=reply | {"devices": mine, "timings": {}})
        text = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
        return replace(done, reply=None, problem=f"SIGABRT; log: {text}", log=text)

    answers.run = run  # type: ignore[method-assign]


def test_a_gpu_that_takes_no_process_is_named_and_the_other_is_judged(
    two: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorded, "nvmlDeviceGetComputeMode", lambda _, device: 2 * device)
    taking_none(two[0], 1)
    result = two[1](gpus=BOTH)
    assert result["verdict"] == "FAIL" and rows(result) == {"GPU-0": "PASS", "GPU-1": "FAIL"}
    found = red(row(result, "uuid", "GPU-1"))
    assert list(found) == ["gpus_visible"] and "mode is Prohibited" in found["gpus_visible"]
    of_host = [c for c in result["checks"] if c["name"] in checks.OF_HOST]
    assert {c["name"]: c["status"] for c in of_host} == dict.fromkeys(checks.OF_HOST, "pass") | {
        "gpus_visible": "fail"
    }


def test_a_process_that_ends_only_where_it_sees_all_is_red(two: Host) -> None:
    """Each by itself is well: what people start without a choice still ends."""
    taking_none(two[0], 7)
    result = two[1](gpus=BOTH)
    assert rows(result) == {"GPU-0": "PASS", "GPU-1": "PASS"} and result["verdict"] == "FAIL"
    assert "busy or unavailable" in said(result, "gpus_visible")


def test_one_that_hangs_is_not_tried_again_for_each_gpu(two: Host) -> None:
    answers, run = two
    whole = answers.run

    def late(task: str, name: str = "", gpu: Gpu | None = None, **request: Any) -> Outcome:
        done = whole(task, name, gpu, **request)
        return replace(done, reply=None, problem="no end", wall_s=900) if task == "probe" else done

    answers.run = late  # type: ignore[method-assign]
    assert run()["verdict"] == "FAIL"
    assert [task for task, _ in answers.on].count("probe") == 1


# -- instances of divided GPUs -----------------------------------------------------------------


@pytest.fixture
def slices(two: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The first GPU is divided in two; CUDA shows but one device to a process."""
    answers, run = two
    parts = [
        Gpu(number, f"{NAME} MIG 1g.12gb", f"MIG-{name}", bus_id(0), "8.9", 11000)
        for number, name in enumerate("ab")
    ]
    monkeypatch.setattr(Nvml, "gpus", lambda self: parts)
    shows(answers, 0)
    return answers, run


def test_each_instance_is_verified_by_itself_and_none_together(slices: Host) -> None:
    answers, run = slices
    result = run(gpus=(f"{NAME} MIG 1g.12gb MIG-a", f"{NAME} MIG 1g.12gb MIG-b"))
    assert result["verdict"] == "PASS" and rows(result) == {"MIG-a": "PASS", "MIG-b": "PASS"}
    assert [uuid for task, uuid in answers.on if task == "probe"] == ["", "MIG-a", "MIG-b"]
    assert [uuid for task, uuid in answers.on if task == "bench"] == ["MIG-a", "MIG-b"]
    assert "all GPUs" not in json.dumps(result) and result["benchmark"] is None
    assert result["inputs"]["gpus"] == [f"{NAME} MIG 1g.12gb MIG-{name}" for name in "ab"]


def test_an_instance_that_cuda_does_not_show_fails(slices: Host) -> None:
    answers, run = slices
    whole = answers.run

    def none_of_b(task: str, name: str = "", gpu: Gpu | None = None, **request: Any) -> Outcome:
        done = whole(task, name, gpu, **request)
        hidden = task == "probe" and gpu is not None and gpu.uuid == "MIG-b"
        return replace(done, reply=(done.reply or {}) | {"devices": []}) if hidden else done

    answers.run = none_of_b  # type: ignore[method-assign]
    result = run(gpus=())
    assert rows(result) == {"MIG-a": "PASS", "MIG-b": "FAIL"} and result["verdict"] == "FAIL"
    assert ("generate", "MIG-b") not in answers.on


def test_an_instance_that_the_environment_hides_fails(slices: Host) -> None:
    """Its own process is told another value, and would see it."""
    result = slices[1](gpus=(), environment={"CUDA_VISIBLE_DEVICES": "MIG-a"})
    assert rows(result) == {"MIG-a": "PASS", "MIG-b": "FAIL"}
    found = red(row(result, "uuid", "MIG-b"))["gpus_visible"]
    assert "CUDA_VISIBLE_DEVICES='MIG-a'" in found


def test_an_instance_by_the_settings(slices: Host) -> None:
    result = slices[1](gpus=(f"{NAME} MIG 1g.12gb MIG-b",), chosen=("MIG-b",))
    assert (result["verdict"], rows(result)) == ("PASS", {"MIG-b": "PASS"})
    assert result["left_out"] == [f"{NAME} MIG 1g.12gb MIG-a"]


# -- side by side ------------------------------------------------------------------------------


class Watched:
    """Which tasks run at once; `meet`: those of two GPUs wait for each other."""

    def __init__(self, answers: Answers, meet: bool = False) -> None:
        self.whole, self.meet = answers.run, meet
        self.lock, self.running = threading.Lock(), list[str]()
        self.beside: dict[str, int] = {}
        """By task, how many ran with it at most."""
        self.cores: dict[str, set[frozenset[int]]] = {}
        self.met = threading.Barrier(2, timeout=10)
        self.takes_s = 0.0
        self.looked: list[float] = []
        """When looks at a GPU began and ended."""
        answers.run = self.run  # type: ignore[method-assign]

    def run(self, task: str, name: str = "", gpu: Gpu | None = None, **request: Any) -> Outcome:
        key = name or task
        with self.lock:
            self.running.append(key)
            for one in self.running:
                self.beside[one] = max(self.beside.get(one, 0), len(self.running))
            if gpu:
                self.cores.setdefault(key, set()).add(request["cores"])
        if self.meet and gpu and key == "generate":
            self.met.wait()
        at = time.monotonic()
        if gpu and self.takes_s:
            time.sleep(self.takes_s)
        with self.lock:
            if gpu and key != "bench":
                self.looked += [at, time.monotonic()]
            self.running.remove(key)
            return self.whole(task, name, gpu, **request)


@pytest.mark.usefixtures("beside")
def test_gpus_are_looked_at_side_by_side_and_measured_one_by_one(two: Host) -> None:
    watched = Watched(two[0], meet=True)
    result = two[1](gpus=BOTH)
    assert result["verdict"] == "PASS" and rows(result) == {"GPU-0": "PASS", "GPU-1": "PASS"}
    assert watched.beside["generate"] == 2 and watched.beside["bench"] == 1
    assert watched.beside["probe"] == watched.beside["control"] == 1
    assert watched.cores["generate"] == {frozenset({0, 2}), frozenset({1, 3})}
    assert watched.cores["bench"] == {frozenset()}, "a benchmark has the host to itself"


@pytest.mark.usefixtures("beside")
def test_the_result_and_what_is_said_are_in_order_all_the_same(
    two: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    in_turn = {"gpus": [], "checks": []}
    for meet in (False, True):
        Watched(two[0], meet=meet)
        result = two[1](gpus=BOTH)
        told = [
            (row["uuid"], [(c["name"], c["status"], c["found"]) for c in row["checks"]])
            for row in result["gpus"]
        ]
        assert in_turn["gpus"] in ([], told)
        in_turn["gpus"] = told
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("GPU ")]
    half = said[: len(said) // 2]
    assert [line[:6] for line in half] == sorted(line[:6] for line in half), "whole blocks"
    assert [line.split()[3] for line in half if line.startswith("GPU 0")] == list(
        name for name in checks.NAMES if name in checks.of("gpu")
    )


@pytest.mark.usefixtures("beside")
def test_a_crash_at_one_gpu_leaves_the_others(two: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, run = two
    whole = answers.run

    def crash(task: str, name: str = "", gpu: Gpu | None = None, **request: Any) -> Outcome:
        if gpu and gpu.uuid == "GPU-0":
            raise RuntimeError("can't start new thread")
        return whole(task, name, gpu, **request)

    answers.run = crash  # type: ignore[method-assign]
    result = run(gpus=BOTH)
    assert rows(result) == {"GPU-0": "FAIL", "GPU-1": "PASS"}
    assert "can't start new thread" in json.dumps(result["gpus"])
    assert {c["name"] for c in row(result, "uuid", "GPU-0")["checks"]} == set(checks.of("gpu"))


@pytest.mark.usefixtures("beside")
def test_side_by_side_is_quicker(two: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks at two GPUs, of three tasks each that take 0.1 s."""
    whole = two[0].run

    def seconds() -> float:
        two[0].run = whole  # type: ignore[method-assign]
        watched = Watched(two[0])
        watched.takes_s = 0.1
        assert two[1](gpus=BOTH)["verdict"] == "PASS"
        return max(watched.looked) - min(watched.looked)

    together = seconds()
    monkeypatch.setattr(verification, "room", lambda _: 1)
    assert seconds() > together + 0.1


def test_a_host_that_allows_busy_says_so(two: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    limited: Callable[..., Any] = verification._limited
    monkeypatch.setattr(
        verification, "_limited", lambda config: replace(limited(config), allow_busy=True)
    )
    assert two[1]()["allow_busy"] is True
    assert status(two[1](), "busy") == set()
