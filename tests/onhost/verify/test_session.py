"""The order of a verification on a GPU host, with recorded answers in place of GPU and library.

What the judgements say of real logs, libraries and figures is tested beside them; here it is shown
that each answer reaches its check, and that no fault among them ends in PASS.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import checks, conditions, gpu, llama_log, measuring, synth, weights
from llamafleet.onhost.verify import run as verify
from llamafleet.onhost.verify import session as verification
from llamafleet.onhost.verify.child import Outcome
from llamafleet.onhost.verify.evidence import Faults
from llamafleet.onhost.verify.gpu import Nvml, Sample
from llamafleet.onhost.verify.graph import UNSEEN, Graph
from llamafleet.onhost.verify.sampling import Recording
from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.decode import decode
from llamafleet.protocol.fingerprint import fingerprint
from llamafleet.protocol.models import COMPARED
from llamafleet.protocol.result import Result
from llamafleet.received import received_result
from tests.onhost.llama import models, stamped
from tests.onhost.verify.graphs import (
    HALF,
    ON_CPU,
    ON_GPU,
    ON_TWO,
    SMALL_ON_CPU,
    SMALL_ON_GPU,
    sent,
)
from tests.onhost.verify.test_gpu import PID, Recorded
from tests.protocol.test_verify import good

__all__ = ["models"]

DATA = Path(__file__).parents[1] / "data"
INFO = "CUDA : ARCHS = 890 | USE_GRAPHS = 1 | CPU : AVX2 = 1 | "
TEST = {"n": 8, "repetitions": 2, "samples_ts": [2.0, 2.0], "discarded_ts": []}
SPEED = TEST | {"median_ts": 2.0, "mean_ts": 2.0, "stdev_ts": 0.0}
LOGITS = base64.b64encode(array("f", [float(n % 7) for n in range(512)]).tobytes()).decode()


def log(name: str) -> str:
    return (DATA / "logs" / f"{name}.log").read_text(encoding="utf-8")


def small(text: str) -> str:
    """The log of the big model turned into one of the small model: 4 layers, 1.4 MiB."""
    return re.sub(r"load_tensors: layer +([5-9]|1\d) .*\n", "", text)


def compared(name: str, graph: Graph, logits: str = LOGITS) -> tuple[dict[str, Any], str]:
    """Reply and log of a run of the small models."""
    one = {"n_vocab": 512, "logits": logits, "graph": sent(graph)}
    text = "".join(llama_log.mark(number) + small(log(name)) for number in range(len(COMPARED)))
    return {"models": [one] * len(COMPARED)}, text


def recording(weights: float = 65, all_: float = 105, util: float = 95) -> Recording:
    """Figures of a process that takes so many MiB with the model, and with the context."""
    marks = {"initialised": (0, 400), "loaded": (1, 400 + weights), "ready": (2, 400 + all_)}
    marks |= {
        "generating": (3, 900),
        "generated": (6, 900),
        "measuring": (3, 0),
        "measured": (6, 0),
    }
    samples = [Sample(at / 5, 2000, 900, util, 2500, 300, 60, 0) for at in range(40)]
    return Recording(
        samples,
        {name: Sample(at, 2000, mib, util, 2500, 300, 60, 0) for name, (at, mib) in marks.items()},
    )


def bus_id(number: int) -> str:
    return f"0000:{number + 1:02x}:00.0"


class Answers:
    """In the place of Children: what each task answers."""

    def __init__(self, folder: Path, libraries: list[Path]) -> None:
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.on: list[tuple[str, str]] = []
        """Tasks, with the GPU that each was limited to."""
        probe = {
            "llama_cpp_python": "0.3.36",
            "system_info": INFO,
            "supports_gpu_offload": True,
            "devices": [
                {"name": "CUDA0", "description": "NVIDIA GeForce RTX 4090", "bus_id": bus_id(0)}
            ],
            "libraries": list(map(str, libraries)),
        }
        self.answers: dict[str, tuple[dict[str, Any] | None, str]] = {
            "probe": (probe, log("cuda-full")),
            "outline": ({}, ""),
            "generate": ({"graph": sent(ON_GPU)}, log("cuda-full")),
            "logits": compared("cuda-full", SMALL_ON_GPU),
            "control": compared("cuda-zero", SMALL_ON_CPU),
            "context": ({"n_ctx": 4096}, ""),
            "bench": ({"pp": SPEED, "tg": SPEED, "threads": 8}, ""),
        }
        self.together: tuple[dict[str, Any], str] | None = None
        """Of a model on all GPUs of several."""
        self.recording = recording()
        self.fits = 10**9
        """Tokens of the largest context."""

    def on_step(self, step: int, steps: int, line: str) -> None:
        """No model is written here."""

    def _there(self, reply: dict[str, Any], gpu: gpu.Gpu | None) -> dict[str, Any]:
        """With the addresses of the GPUs that the process sees."""
        reply = json.loads(json.dumps(reply))
        buses = [gpu.bus_id] if gpu else [bus_id(0), bus_id(1)]
        for one in (reply, *reply.get("models", [])):
            if "graph" in one:
                names = one["graph"]["devices"]
                one["graph"]["devices"] = dict(zip(names, buses, strict=False))
        return reply

    def run(self, task: str, name: str = "", gpu: gpu.Gpu | None = None, **request: Any) -> Outcome:
        self.asked.append((name or task, request))
        self.on.append((name or task, gpu.uuid if gpu else ""))
        reply, text = self.answers[name or task]
        if task == "generate" and gpu is None and self.together:
            reply, text = self.together
        problem = None if reply is not None else "the process was ended by SIGABRT; log: " + text
        if task == "context" and request["n_ctx"] > self.fits:
            reply, text, problem = None, "CUDA error: out of memory", "out of memory"
        if reply is not None:
            reply = self._there(reply, gpu) | {"timings": {"load_s": 1.0, "init_s": 0.5}}
        path = self.folder / f"worker-{task}.log"
        return Outcome(task, reply, problem, text, path, 1.0, self.recording)


# Once for all tests: it takes a second, and the file stays the same.
read_weights = cache(weights.read)

Host = tuple[Answers, Callable[..., dict[str, Any]]]


@pytest.fixture
def host(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with one 4090 and a build for it; the second value verifies it."""
    library = tmp_path / "prefix" / "lib" / "libggml-cuda.so"
    library.parent.mkdir(parents=True)
    library.write_bytes((DATA / "fatbin" / "sm89-compute89-two-units.so").read_bytes())
    answers = Answers(tmp_path, [library])
    monkeypatch.setattr(verification, "Children", lambda *_, **__: answers)
    monkeypatch.setattr(gpu, "Nvml", lambda: Nvml(Recorded(pid=None)))
    monkeypatch.setattr(weights, "read", read_weights)
    # Of this machine nothing is read: no cards, no memory.
    monkeypatch.setenv("LLAMAFLEET_ROOT", str(tmp_path / "root"))
    stamp = tmp_path / "stamp.json"
    digest = synth.sha256_of(library)
    stamp.write_text(json.dumps(stamped({"lib/libggml-cuda.so": digest})))
    places = {"prefix": tmp_path / "prefix", "stamp": stamp, "job": tmp_path / "job"}
    places |= {"results": tmp_path / "results", "models": models}
    data = good() | {key: str(value) for key, value in places.items()}
    data["inputs"] |= {"model": "synthetic:160m-q4_0"}
    data["inputs"] |= {"bench": {"prompt": 8, "gen": 8, "repetitions": 2}}
    config = verify_config.parse(tmp_path / "verify.json", data)

    def run(
        faults: Faults | None = None,
        environment: dict[str, str] | None = None,
        chosen: tuple[str, ...] = (),
        busy_minutes: int = 0,
        **changes: Any,
    ) -> dict[str, Any]:
        inputs = replace(config.inputs, **changes)
        told = replace(config, inputs=inputs, environment=environment or {}, gpus=chosen)
        told = replace(told, busy_minutes=busy_minutes)
        code = verify.verify(told, faults or Faults())
        result: dict[str, Any] = json.loads((tmp_path / "results" / "latest.json").read_text())
        assert code == (0 if result["verdict"] == "PASS" else 1)
        return result

    return answers, run


def every(result: dict[str, Any]) -> list[dict[str, str]]:
    """The checks of the host and of its GPUs."""
    return [*result["checks"], *(c for gpu in result["gpus"] for c in gpu["checks"])]


def status(result: dict[str, Any], wanted: str) -> set[str]:
    return {check["name"] for check in every(result) if check["status"] == wanted}


def said(result: dict[str, Any], name: str) -> str:
    check = next(check for check in every(result) if check["name"] == name)
    return f"{check['found']} {check['next']}"


def test_a_good_host_passes(host: Host) -> None:
    answers, run = host
    result = run()
    assert result["verdict"] == "PASS"
    assert status(result, "pass") == set(checks.NAMES)
    asked = dict(answers.asked)
    assert [name for name, _ in answers.asked] == [
        *("probe", "control", "generate", "logits", "context", "bench")
    ]
    assert [asked[n]["n_gpu_layers"] for n in ("generate", "logits", "control", "bench")] == [
        *(-1, -1, 0, -1)
    ]
    assert asked["bench"]["discard"] == 1
    (row,) = result["gpus"]
    assert (row["uuid"], row["bus_id"], row["verdict"]) == ("GPU-0", bus_id(0), "PASS")
    assert (row["compute_capability"], row["vram_mib"]) == ("8.9", 24564)
    assert row["benchmark"]["gpu"]["utilisation_mean"] == 95
    assert row["benchmark"]["peak_vram_mib"] == 900
    assert row["model"] == "synthetic:160m-q4_0"
    assert row["timings"] == {"load_s": 1.0, "init_s": 0.5}
    assert result["benchmark"] is None, "of several GPUs together"
    assert result["system"]["driver"] == "580.159.04"
    assert received_result(result) == decode(Result, result)


PLANNED: dict[str, Any] = {"driver": "570.86.10", "gpus": ()}
INPUTS: dict[str, Any] = {
    "fingerprint": "f00",
    "driver": "580.159.04",
    "gpus": ["NVIDIA GeForce RTX 4090 GPU-0"],
    "model": "synthetic:160m-q4_0",
    "bench": {"prompt": 8, "gen": 8, "repetitions": 2},
    "context": 4096,
}


def test_a_result_names_the_driver_and_gpus_that_were_there(host: Host, tmp_path: Path) -> None:
    """With the very key that the next plan of this host has: it then finds nothing to do."""
    result = host[1](**PLANNED)
    assert result["inputs"] == INPUTS and result["key"] == fingerprint(INPUTS)
    for name in ("progress", "stamp"):
        job = json.loads((tmp_path / "job" / f"{name}.json").read_text())
        assert job["key"] == fingerprint(INPUTS), name


def test_without_nvml_it_names_the_module(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> Nvml:
        raise gpu.NvmlUnavailable("Driver/library version mismatch")

    monkeypatch.setattr(gpu, "Nvml", refuse)
    monkeypatch.setenv("LLAMAFLEET_ROOT", str(tmp_path))
    module = tmp_path / "sys/module/nvidia/version"
    module.parent.mkdir(parents=True)
    module.write_text("580.95.05\n")
    result = host[1](**PLANNED)
    assert result["verdict"] == "FAIL" and "gpus_visible" in status(result, "fail")
    planned = INPUTS | {"gpus": [], "driver": "580.95.05"}
    assert result["inputs"] == planned
    assert result["key"] == fingerprint(result["inputs"])


def test_a_verdict_takes_the_place_of_what_the_driver_check_said(
    host: Host, tmp_path: Path
) -> None:
    stale = tmp_path / "results/stale.json"
    stale.parent.mkdir()
    stale.write_text('{"reason": "the driver changed"}')
    assert host[1]()["verdict"] == "PASS"
    assert not stale.exists()


def test_a_driver_that_changes_meanwhile_gets_no_verdict_of_before(
    host: Host, tmp_path: Path
) -> None:
    answers, run = host
    results = tmp_path / "results"

    def update(task: str, name: str = "", **request: Any) -> Outcome:
        if task == "bench":
            (results / "stale.json").write_text('{"reason": "reboot needed"}')
        return Answers.run(answers, task, name, **request)

    answers.run = update  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError):
        run()
    assert (results / "stale.json").exists()
    assert len(list(results.glob("*-f00.json"))) == 1, "it is kept as what it is"


def test_ptx_alone_passes_with_a_warning(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorded, "nvmlDeviceGetCudaComputeCapability", lambda *_: (9, 0))
    result = host[1]()
    assert result["verdict"] == "PASS"
    assert status(result, "warn") == {"machine_code"}


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("cuda-half", HALF),
        ("cuda-zero", ON_CPU),
        ("cuda-init-error", ON_CPU),
        # Where graph and log disagree, whichever is right.
        *(("cuda-full", graph) for graph in (HALF, ON_CPU, UNSEEN)),
        *((name, ON_GPU) for name in ("cuda-half", "cuda-zero", "cuda-init-error")),
    ],
)
def test_a_model_off_the_gpu_fails(host: Host, name: str, graph: Graph) -> None:
    answers, run = host
    answers.answers["generate"] = ({"graph": sent(graph)}, log(name))
    result = run()
    assert result["verdict"] == "FAIL"
    assert status(result, "fail") == {"offload"}
    assert status(result, "skip") == {"context", "benchmark"}


def test_a_log_whose_wording_changed_is_no_fault(host: Host) -> None:
    answers, run = host
    for task in ("generate", "logits", "control"):
        reply, text = answers.answers[task]
        silent = re.sub("assigned to device|buffer size", "goes to", text)
        answers.answers[task] = (reply, silent)
    # The graph is of 1024 tokens, the log that is silent here of 512.
    answers.recording = recording(all_=110)
    result = run()
    assert result["verdict"] == "PASS"
    assert "log: says nothing of layers" in said(result, "offload")


def test_a_worker_that_shows_no_graph_fails(host: Host) -> None:
    answers, run = host
    answers.answers["generate"] = ({}, log("cuda-full"))
    assert status(run(), "fail") == {"offload"}


@pytest.mark.parametrize("task", ["probe", "generate", "logits", "control", "context", "bench"])
def test_a_task_that_dies_fails(host: Host, task: str) -> None:
    answers, run = host
    answers.answers[task] = (None, answers.answers[task][1])
    result = run()
    assert result["verdict"] == "FAIL"
    assert "SIGABRT" in json.dumps(every(result))


@pytest.mark.parametrize(
    ("figures", "red"),
    [
        (recording(weights=3), {"vram"}),
        (recording(all_=66), {"vram"}),
        (recording(util=0), {"busy"}),
        (Recording(), {"vram", "busy"}),
    ],
)
def test_figures_of_an_idle_gpu_fail(host: Host, figures: Recording, red: set[str]) -> None:
    answers, run = host
    answers.recording = figures
    assert status(run(), "fail") == red


def test_logits_off_the_gpu_are_no_comparison(host: Host) -> None:
    answers, run = host
    answers.answers["logits"] = compared("cuda-zero", SMALL_ON_CPU)
    result = run()
    assert status(result, "fail") == {"logits"}
    assert "not on the GPU" in said(result, "logits")


def test_other_logits_fail(host: Host) -> None:
    answers, run = host
    other = base64.b64encode(array("f", [1.0] * 512).tobytes()).decode()
    answers.answers["logits"] = compared("cuda-full", SMALL_ON_GPU, other)
    assert status(run(), "fail") == {"logits"}


def test_a_control_on_the_gpu_fails(host: Host) -> None:
    answers, run = host
    answers.answers["control"] = compared("cuda-full", SMALL_ON_GPU)
    assert status(run(), "fail") == {"control", "logits"}


def test_a_context_too_large_is_named_with_one_that_fits(host: Host) -> None:
    answers, run = host
    answers.fits = 500_000
    result = run(context=10_000_000)
    assert status(result, "fail") == {"context"}
    fits = int(re.findall(r"set context = (\d+)", said(result, "context"))[0])
    assert 450_000 <= fits <= 500_000
    assert fits in [request["n_ctx"] for name, request in answers.asked if name == "context"]


def test_a_context_shorter_than_asked_fails(host: Host) -> None:
    """llama.cpp may make another one than it is asked for, and says no error."""
    answers, run = host
    answers.answers["context"] = ({"n_ctx": 2048}, "")
    result = run()
    assert result["verdict"] == "FAIL" and status(result, "fail") == {"context"}
    assert "set context = 2048" in said(result, "context")


def test_code_for_another_gpu_fails(host: Host, tmp_path: Path) -> None:
    _, run = host
    library = tmp_path / "prefix" / "lib" / "libggml-cuda.so"
    library.write_bytes((DATA / "fatbin" / "sm120a-sm90a-sm100f.so").read_bytes())
    result = run()
    assert status(result, "fail") == {"library_origin", "machine_code"}


def test_another_toolkit_or_a_stub_in_the_process_fails(host: Host) -> None:
    """The build's own libraries are right, and run with what LD_LIBRARY_PATH put before theirs."""
    answers, run = host
    reply, text = answers.answers["probe"]
    assert reply is not None
    own = ["/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05"]
    answers.answers["probe"] = (reply | {"runtime_libraries": own}, text)
    assert "library_origin" not in status(run(), "fail")
    for path in ("/opt/cuda-13.2/lib64/libcublas.so.13", "/opt/cuda-13.0/lib64/stubs/libcuda.so"):
        answers.answers["probe"] = (reply | {"runtime_libraries": [*own, path]}, text)
        result = run()
        assert status(result, "fail") == {"library_origin"}
        assert f"loaded from elsewhere: {path}" in said(result, "library_origin")


def test_a_library_replaced_while_it_runs_fails(host: Host) -> None:
    answers, run = host
    reply, text = answers.answers["probe"]
    assert reply is not None
    reply = reply | {"libraries": [path + " (deleted)" for path in reply["libraries"]]}
    answers.answers["probe"] = (reply, text)
    assert "library_origin" in status(run(), "fail")


def test_hidden_gpus_fail(host: Host) -> None:
    answers, run = host
    reply, _ = answers.answers["probe"]
    assert reply is not None
    answers.answers["probe"] = (reply | {"devices": []}, log("cuda-init-error"))
    result = run(environment={"CUDA_VISIBLE_DEVICES": ""})
    assert "gpus_visible" in status(result, "fail")
    assert "unset CUDA_VISIBLE_DEVICES" in said(result, "gpus_visible")


@pytest.mark.parametrize(("asked", "layers"), [("half", 6), ("0", 0), ("3", 3)])
def test_planted_layers_reach_the_tasks(host: Host, asked: str, layers: int) -> None:
    answers, run = host
    run(Faults(n_gpu_layers=asked))
    assert dict(answers.asked)["generate"]["n_gpu_layers"] == layers


def test_a_crash_of_a_step_leaves_a_result(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = host
    monkeypatch.setattr(weights, "read", lambda path: 1 / 0)
    result = run()
    assert result["verdict"] == "FAIL"
    assert "ZeroDivisionError" in json.dumps(every(result))
    assert {check["name"] for check in every(result)} == set(checks.NAMES)


# -- a GPU that is not free ----------------------------------------------------------------------


def test_another_process_makes_the_verdict_busy(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured before: PASS, tg128 64.8 in place of 343.9 t/s."""
    monkeypatch.setattr(gpu, "Nvml", lambda: Nvml(Recorded()))
    monkeypatch.setattr(conditions, "IDLE_S", 0.0)
    result = host[1]()
    assert result["verdict"] == "BUSY"
    assert status(result, "busy") == {"benchmark"}
    (row,) = result["gpus"]
    assert row["verdict"] == "BUSY" and row["benchmark"]["attempts"] == 1
    assert "another process on GPU 0: pid 1 " in row["benchmark"]["busy"][0]
    assert [one["pid"] for one in row["benchmark"]["conditions"][0]["others"]] == [1, PID]
    assert "[pp8 2.00 ± 0.00 t/s, tg8 2.00 ± 0.00 t/s, load 1.0 s]" in said(result, "benchmark")
    assert "ps -fp 1" in said(result, "benchmark")
    assert received_result(result) == decode(Result, result)


def test_a_busy_gpu_is_measured_again_for_the_minutes_of_the_settings(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, run = host
    module = Recorded()
    monkeypatch.setattr(gpu, "Nvml", lambda: Nvml(module))
    monkeypatch.setattr(conditions, "IDLE_S", 0.0)

    def ends(seconds: float) -> None:
        if module.pid is not None and ("bench", "GPU-0") in answers.on:
            module.pid, module.used, module.utilisation = None, 0, 0

    monkeypatch.setattr(measuring, "PAUSE_S", 0.0)
    monkeypatch.setattr(measuring.time, "sleep", ends)
    monkeypatch.setattr(measuring.until_free, "__defaults__", (lambda line: None, ends))
    result = run(busy_minutes=1)
    assert result["verdict"] == "PASS"
    (row,) = result["gpus"]
    assert (row["benchmark"]["attempts"], row["benchmark"]["busy"]) == (2, [])


def test_a_gpu_that_is_red_already_is_not_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = host
    monkeypatch.setattr(gpu, "Nvml", lambda: Nvml(Recorded()))
    monkeypatch.setattr(conditions, "IDLE_S", 0.0)
    monkeypatch.setattr(measuring, "PAUSE_S", 0.0)
    never = (pytest.fail, lambda seconds: pytest.fail("it waits"))
    monkeypatch.setattr(measuring.until_free, "__defaults__", never)
    result = run(busy_minutes=1, environment={"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1"})
    (row,) = result["gpus"]
    assert row["verdict"] == "FAIL" and "vram" in status(result, "fail")
    assert row["benchmark"]["attempts"] == 1 and row["benchmark"]["busy"]


def test_a_sick_card_that_computes_is_red(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Recorded, "nvmlDeviceGetRemappedRows", lambda *_: (0, 1, 1, 0), raising=False
    )
    result = host[1]()
    assert result["verdict"] == "FAIL" and status(result, "fail") == {"health"}


# -- several GPUs ------------------------------------------------------------------------------


@pytest.fixture
def two(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The same host with a second GPU of that kind."""
    answers, _ = host
    monkeypatch.setattr(gpu, "Nvml", lambda: Nvml(Recorded(count=2, pid=None)))
    reply, text = answers.answers["probe"]
    assert reply is not None
    first = reply["devices"][0]
    second = first | {"name": "CUDA1", "bus_id": bus_id(1)}
    # CUDA's order is another than NVML's.
    answers.answers["probe"] = (reply | {"devices": [second, first]}, text)
    answers.together = ({"graph": sent(ON_TWO)}, log("cuda-two-gpus"))
    return host


def rows(result: dict[str, Any]) -> dict[str, str]:
    return {gpu["uuid"]: gpu["verdict"] for gpu in result["gpus"]}


def test_each_gpu_is_verified_by_itself_and_then_all_together(two: Host) -> None:
    answers, run = two
    result = run()
    assert result["verdict"] == "PASS" and rows(result) == {"GPU-0": "PASS", "GPU-1": "PASS"}
    assert answers.on == [
        ("probe", ""),
        ("control", ""),
        *((task, "GPU-0") for task in ("generate", "logits", "context")),
        *((task, "GPU-1") for task in ("generate", "logits", "context")),
        ("bench", "GPU-0"),
        ("bench", "GPU-1"),
        *((task, "") for task in ("generate", "context", "bench")),
    ]
    assert result["benchmark"] is not None and all(g["benchmark"] for g in result["gpus"])
    assert {c["name"] for c in result["checks"]} == {
        *checks.OF_HOST,
        *("offload", "vram", "busy", "context", "benchmark", "health"),
    }


def test_a_gpu_that_sickens_while_all_work_together_is_red(
    two: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked only behind the work that it did alone."""
    answers, run = two

    def errors(self: Recorded, device: int, *_: int) -> int:
        return int(device == 1 and ("bench", "") in answers.on)

    monkeypatch.setattr(Recorded, "nvmlDeviceGetTotalEccErrors", errors, raising=False)
    result = run()
    assert rows(result) == {"GPU-0": "PASS", "GPU-1": "PASS"}
    assert result["verdict"] == "FAIL" and status(result, "fail") == {"health"}
    assert "GPU 1: 1 uncorrected memory errors" in said(
        {"checks": result["checks"], "gpus": []}, "health"
    )


def test_a_gpu_that_cuda_does_not_show_fails_and_is_named(two: Host) -> None:
    """Measured before: one GPU of two hidden from CUDA was a PASS."""
    answers, run = two
    reply, text = answers.answers["probe"]
    assert reply is not None
    shown = [device for device in reply["devices"] if device["bus_id"] == bus_id(0)]
    answers.answers["probe"] = (reply | {"devices": shown}, text)
    result = run()
    assert result["verdict"] == "FAIL"
    assert rows(result) == {"GPU-0": "PASS", "GPU-1": "FAIL"}
    (hidden,) = [gpu for gpu in result["gpus"] if gpu["uuid"] == "GPU-1"]
    red = [check for check in hidden["checks"] if check["status"] == "fail"]
    assert [check["name"] for check in red] == ["gpus_visible"]
    assert bus_id(1) in red[0]["expected"]
    assert ("generate", "GPU-1") not in answers.on, "nothing can be tried on it"
    assert ("generate", "") not in answers.on, "nor on all"
    assert said(result, "offload") == "not tried: CUDA does not show GPU 1 "


def test_the_code_for_a_gpu_is_read_where_cuda_does_not_show_it(two: Host, tmp_path: Path) -> None:
    answers, run = two
    reply, text = answers.answers["probe"]
    assert reply is not None
    library = tmp_path / "prefix" / "lib" / "libggml-cuda.so"
    library.unlink()
    loaded = [path for path in reply["libraries"] if path != str(library)]
    answers.answers["probe"] = (reply | {"devices": [], "libraries": loaded}, text)
    result = run()
    for row in result["gpus"]:
        red = {check["name"] for check in row["checks"] if check["status"] == "fail"}
        assert red == {"gpus_visible", "machine_code"}


def test_a_gpu_hidden_by_the_environment_fails_too(two: Host) -> None:
    answers, run = two
    reply, text = answers.answers["probe"]
    assert reply is not None
    answers.answers["probe"] = (reply | {"devices": reply["devices"][1:]}, text)
    result = run(environment={"CUDA_VISIBLE_DEVICES": "0"})
    assert rows(result) == {"GPU-0": "PASS", "GPU-1": "FAIL"} and result["verdict"] == "FAIL"
    assert "CUDA_VISIBLE_DEVICES='0'" in json.dumps(result["gpus"])


def test_a_gpu_of_two_that_gets_no_layer_fails(two: Host) -> None:
    """Of the model on both of them: each by itself has passed."""
    answers, run = two
    answers.together = ({"graph": sent(ON_GPU)}, log("cuda-full"))
    result = run()
    assert result["verdict"] == "FAIL" and rows(result) == {"GPU-0": "PASS", "GPU-1": "PASS"}
    assert status(result, "fail") == {"offload"}
    (red,) = [check for check in result["checks"] if check["status"] == "fail"]
    assert f"no layer on NVIDIA GeForce RTX 4090, 8.9 at {bus_id(1)}" in red["found"]


def test_one_sick_gpu_of_two_is_the_host_s_verdict(two: Host) -> None:
    answers, run = two
    whole = answers.run

    def sick(task: str, name: str = "", gpu: gpu.Gpu | None = None, **request: Any) -> Outcome:
        done = whole(task, name, gpu, **request)
        if task == "generate" and gpu and gpu.uuid == "GPU-1":
            return replace(done, reply=None, problem="the process was ended by SIGABRT")
        return done

    answers.run = sick  # type: ignore[method-assign]
    result = run()
    assert result["verdict"] == "FAIL"
    assert rows(result) == {"GPU-0": "PASS", "GPU-1": "FAIL"}


def test_without_addresses_as_many_devices_as_gpus_are_taken_for_them(two: Host) -> None:
    answers, run = two
    reply, text = answers.answers["probe"]
    assert reply is not None
    unnamed = [device | {"bus_id": None} for device in reply["devices"]]
    answers.answers["probe"] = (reply | {"devices": unnamed}, text)
    assert run()["verdict"] == "PASS"
    answers.answers["probe"] = (reply | {"devices": unnamed[:1]}, text)
    assert rows(run()) == {"GPU-0": "FAIL", "GPU-1": "FAIL"}, "which of them is not known"


def test_a_model_too_big_for_one_gpu_is_measured_on_all_of_them(
    two: Host, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, run = two
    mine = tmp_path / "mine.gguf"
    written, _ = synth.ensure(models, "160m", "q4_0")
    mine.write_bytes(written.read_bytes())
    small = read_weights(written)
    big = replace(small, total_bytes=40 << 30)
    monkeypatch.setattr(weights, "read", lambda path: big if path == mine else small)
    monkeypatch.setattr(synth, "ensure", lambda *_: (tmp_path / "seven.gguf", {"sha256": "0"}))
    result = run(model=str(mine))
    assert {gpu["model"] for gpu in result["gpus"]} == {"synthetic:7b-q4_0"}
    loaded = [request["model"] for name, request in answers.asked if name == "bench"]
    assert loaded == [str(tmp_path / "seven.gguf")] * 2 + [str(mine)]


# -- what the others need --------------------------------------------------------------------------


def test_a_library_that_dies_is_one_red_check_on_two_gpus(two: Host) -> None:
    """It was nine a GPU."""
    answers, run = two
    answers.answers["probe"] = (None, "libcublas.so.13: cannot open shared object file")
    result = run()
    assert rows(result) == {"GPU-0": "FAIL", "GPU-1": "FAIL"} and result["verdict"] == "FAIL"
    red = [check["name"] for check in every(result) if check["status"] == "fail"]
    assert red == ["library_cuda"] and "libcublas.so.13" in said(result, "library_cuda")
    assert [name for name, _ in answers.asked] == ["probe"], "nothing else is tried"
    assert said(result, "logits") == "not tried: the library can't be loaded "


def test_a_library_that_is_damaged_on_disk_is_why_it_can_t_be_loaded(
    host: Host, tmp_path: Path
) -> None:
    answers, run = host
    answers.answers["probe"] = (None, "file too short")
    (tmp_path / "prefix/lib/libggml-cuda.so").write_bytes(b"")
    result = run()
    assert status(result, "fail") == {"library_origin", "machine_code"}
    assert "not what the build made" in said(result, "library_origin")
    assert "see library_origin" in said(result, "library_cuda")


def test_memory_that_the_host_lends_is_red_by_its_name(host: Host) -> None:
    """Whatever the figures say: these are good ones."""
    result = host[1](environment={"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "0"})
    assert status(result, "fail") == {"vram"}
    assert "GGML_CUDA_ENABLE_UNIFIED_MEMORY=0 in the environment" in said(result, "vram")
