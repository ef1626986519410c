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

from llamafleet.onhost.verify import checks, gpu, synth, weights
from llamafleet.onhost.verify import run as verify
from llamafleet.onhost.verify import session as verification
from llamafleet.onhost.verify.child import Outcome
from llamafleet.onhost.verify.gpu import Nvml, Recording, Sample
from llamafleet.onhost.verify.session import Faults
from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.fingerprint import fingerprint
from tests.onhost.llama import models
from tests.onhost.verify.test_gpu import Recorded
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


def recording(weights: float = 65, all_: float = 90, util: float = 95) -> Recording:
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


class Answers:
    """In the place of Children: what each task answers."""

    def __init__(self, folder: Path, libraries: list[Path]) -> None:
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []
        probe = {
            "llama_cpp_python": "0.3.36",
            "system_info": INFO,
            "supports_gpu_offload": True,
            "devices": [{"name": "CUDA0", "description": "NVIDIA GeForce RTX 4090"}],
            "libraries": list(map(str, libraries)),
        }
        self.answers: dict[str, tuple[dict[str, Any] | None, str]] = {
            "probe": (probe, log("cuda-full")),
            "generate": ({"n_layer": 12}, log("cuda-full")),
            "logits": ({"n_vocab": 512, "logits": LOGITS}, small(log("cuda-full"))),
            "control": ({"n_vocab": 512, "logits": LOGITS}, small(log("cuda-zero"))),
            "context": ({"n_ctx": 4096}, ""),
            "bench": ({"pp": SPEED, "tg": SPEED, "threads": 8}, ""),
        }
        self.recording = recording()
        self.fits = 10**9
        """Tokens of the largest context."""

    def run(self, task: str, name: str = "", **request: Any) -> Outcome:
        self.asked.append((name or task, request))
        reply, text = self.answers[name or task]
        problem = None if reply is not None else "the process was ended by SIGABRT; log: " + text
        if task == "context" and request["n_ctx"] > self.fits:
            reply, text, problem = None, "CUDA error: out of memory", "out of memory"
        if reply is not None:
            reply = reply | {"timings": {"load_s": 1.0, "init_s": 0.5}}
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
    monkeypatch.setattr(gpu, "Nvml", lambda: Nvml(Recorded()))
    monkeypatch.setattr(weights, "read", read_weights)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stamp = tmp_path / "stamp.json"
    digest = synth.sha256_of(library)
    stamp.write_text(json.dumps({"libraries": {"lib/libggml-cuda.so": digest}}))
    places = {"prefix": tmp_path / "prefix", "stamp": stamp, "job": tmp_path / "job"}
    places |= {"results": tmp_path / "results", "models": models}
    data = good() | {key: str(value) for key, value in places.items()}
    data |= {"model": "synthetic:160m-q4_0", "bench": {"prompt": 8, "gen": 8, "repetitions": 2}}
    config = verify_config.parse(tmp_path / "verify.json", data)

    def run(faults: Faults | None = None, **changes: Any) -> dict[str, Any]:
        code = verify.verify(replace(config, **changes), faults or Faults())
        result: dict[str, Any] = json.loads((tmp_path / "results" / "latest.json").read_text())
        assert code == (1 if result["verdict"] == "FAIL" else 0)
        return result

    return answers, run


def status(result: dict[str, Any], wanted: str) -> set[str]:
    return {check["name"] for check in result["checks"] if check["status"] == wanted}


def said(result: dict[str, Any], name: str) -> str:
    check = next(check for check in result["checks"] if check["name"] == name)
    return f"{check['found']} {check['next']}"


def test_a_good_host_passes(host: Host) -> None:
    answers, run = host
    result = run()
    assert result["verdict"] == "PASS"
    assert status(result, "pass") == set(checks.NAMES)
    asked = dict(answers.asked)
    assert [name for name, _ in answers.asked] == [
        *("probe", "generate", "control", "logits", "context", "bench")
    ]
    assert [asked[n]["n_gpu_layers"] for n in ("generate", "logits", "control", "bench")] == [
        *(-1, -1, 0, -1)
    ]
    assert asked["bench"]["discard"] == 1
    assert result["benchmark"]["gpu"]["utilisation_mean"] == 95
    assert result["benchmark"]["peak_vram_mib"] == 900
    assert result["system"]["gpus"][0]["compute_capability"] == "8.9"
    assert result["system"]["driver"] == "580.159.04"
    assert result["timings"] == {"load_s": 1.0, "init_s": 0.5}


PLANNED = {"driver": "570.86.10", "gpus": ["NVIDIA GeForce RTX 4090 GPU-9"], "context": 4096}
NOW = {"driver": "580.159.04", "gpus": ["NVIDIA GeForce RTX 4090 GPU-0"], "context": 4096}


def test_a_result_names_the_driver_and_gpus_that_were_there(host: Host, tmp_path: Path) -> None:
    """With the very key that the next plan of this host has: it then finds nothing to do."""
    result = host[1](inputs=PLANNED)
    assert result["inputs"] == NOW and result["key"] == fingerprint(NOW)
    for name in ("progress", "stamp"):
        job = json.loads((tmp_path / "job" / f"{name}.json").read_text())
        assert job["key"] == fingerprint(NOW), name


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
    result = host[1](inputs=PLANNED)
    assert result["verdict"] == "FAIL" and "gpus_visible" in status(result, "fail")
    assert result["inputs"] == PLANNED | {"driver": "580.95.05"}
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


def test_ptx_alone_passes_with_a_warning(host: Host, tmp_path: Path) -> None:
    answers, run = host
    reply, text = answers.answers["probe"]
    answers.answers["probe"] = (reply, text.replace("capability 8.9", "capability 9.0"))
    result = run()
    assert result["verdict"] == "PASS"
    assert status(result, "warn") == {"machine_code"}


@pytest.mark.parametrize(
    ("task", "name", "red"),
    [
        ("generate", "cuda-half", {"offload"}),
        ("generate", "cuda-zero", {"offload"}),
        ("generate", "cuda-init-error", {"offload"}),
    ],
)
def test_a_model_off_the_gpu_fails(host: Host, task: str, name: str, red: set[str]) -> None:
    answers, run = host
    answers.answers[task] = (answers.answers[task][0], log(name))
    result = run()
    assert result["verdict"] == "FAIL"
    assert status(result, "fail") == red
    assert status(result, "skip") == {"context", "benchmark"}


@pytest.mark.parametrize("task", ["probe", "generate", "logits", "control", "context", "bench"])
def test_a_task_that_dies_fails(host: Host, task: str) -> None:
    answers, run = host
    answers.answers[task] = (None, answers.answers[task][1])
    result = run()
    assert result["verdict"] == "FAIL"
    assert "SIGABRT" in json.dumps(result["checks"])


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
    answers.answers["logits"] = (answers.answers["logits"][0], small(log("cuda-zero")))
    result = run()
    assert status(result, "fail") == {"logits"}
    assert "not on the GPU" in said(result, "logits")


def test_other_logits_fail(host: Host) -> None:
    answers, run = host
    other = base64.b64encode(array("f", [1.0] * 512).tobytes()).decode()
    answers.answers["logits"] = ({"n_vocab": 512, "logits": other}, small(log("cuda-full")))
    assert status(run(), "fail") == {"logits"}


def test_a_control_on_the_gpu_fails(host: Host) -> None:
    answers, run = host
    answers.answers["control"] = (answers.answers["control"][0], small(log("cuda-full")))
    assert status(run(), "fail") == {"control"}


def test_a_context_too_large_is_named_with_one_that_fits(host: Host) -> None:
    answers, run = host
    answers.fits = 500_000
    result = run(context=10_000_000)
    assert status(result, "fail") == {"context"}
    fits = int(re.findall(r"set context = (\d+)", said(result, "context"))[0])
    assert 450_000 <= fits <= 500_000
    assert fits in [request["n_ctx"] for name, request in answers.asked if name == "context"]


def test_code_for_another_gpu_fails(host: Host, tmp_path: Path) -> None:
    _, run = host
    library = tmp_path / "prefix" / "lib" / "libggml-cuda.so"
    library.write_bytes((DATA / "fatbin" / "sm120a-sm90a-sm100f.so").read_bytes())
    result = run()
    assert status(result, "fail") == {"library_origin", "machine_code"}


def test_a_library_replaced_while_it_runs_fails(host: Host) -> None:
    answers, run = host
    reply, text = answers.answers["probe"]
    assert reply is not None
    reply = reply | {"libraries": [path + " (deleted)" for path in reply["libraries"]]}
    answers.answers["probe"] = (reply, text)
    assert "library_origin" in status(run(), "fail")


def test_hidden_gpus_fail(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, run = host
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reply, _ = answers.answers["probe"]
    assert reply is not None
    answers.answers["probe"] = (reply | {"devices": []}, log("cuda-init-error"))
    result = run()
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
    assert "ZeroDivisionError" in json.dumps(result["checks"])
    assert {check["name"] for check in result["checks"]} == set(checks.NAMES)
