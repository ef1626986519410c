"""What each check takes from its place, and what it says where that is not to be had."""

from __future__ import annotations

import base64
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.onhost.verify import checks
from llamafleet.onhost.verify.checks import (
    benchmark,
    context,
    control,
    gpus_visible,
    library_cuda,
    library_origin,
    logits,
    machine_code,
    offload,
    vram,
)
from llamafleet.onhost.verify.checks.logits import compare_logits
from llamafleet.onhost.verify.checks.offload import judge_offload
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.child import Outcome, TaskProblem
from llamafleet.onhost.verify.gpu import Gpu, NvmlUnavailable, Recording, Sample
from llamafleet.onhost.verify.llama_log import parse
from llamafleet.protocol.result import Benchmark, Check, Rates

DATA = Path(__file__).parents[1] / "data"
LAYERS, DEVICE_BYTES = 12, 68012544
"""Of the model that the logs are of."""
OOM = "CUDA error: out of memory\n"


def log(name: str) -> str:
    return (DATA / f"logs/{name}.log").read_text(encoding="utf-8")


def ended(task: str, reply: dict[str, Any] | None, text: str = "", **more: Any) -> Outcome:
    problem = None if reply is not None else "it died"
    return Outcome(task, reply, problem, text, Path("/job/worker.log"), 1.0, **more)


def model(synthetic: bool = True) -> SimpleNamespace:
    held = SimpleNamespace(layers=LAYERS, device_bytes=DEVICE_BYTES)
    return SimpleNamespace(weights=held, synthetic=synthetic)


def of_place(spec: Spec, place: SimpleNamespace) -> Check:
    assert spec.place is not None
    return spec.place(place)  # type: ignore[arg-type]


def of_host(spec: Spec, evidence: SimpleNamespace) -> Check:
    assert spec.host is not None
    return spec.host(evidence)  # type: ignore[arg-type]


# -- context -----------------------------------------------------------------------------------


def room(fits: int, guess: float = 2000.0, cuda: bool = True) -> SimpleNamespace:
    """A place where so many tokens fit, and so many are thought to."""

    def tried(n_ctx: int) -> Outcome:
        answer = {"n_ctx": n_ctx} if n_ctx <= fits else None
        return ended("context", answer, "" if answer else OOM)

    inputs = SimpleNamespace(context=4096)
    return SimpleNamespace(
        offloaded=True,
        evidence=SimpleNamespace(
            config=SimpleNamespace(inputs=inputs), cuda_devices=lambda: ["RTX 4090"] * cuda
        ),
        context=tried,
        model=model,
        tokens_that_fit=lambda: guess,
    )


EXPECTED = "the model and a context of 4096 tokens fit"


def test_a_context_that_fits() -> None:
    assert of_place(context.SPEC, room(4096)) == Check(
        "context", "pass", "4096 tokens fit", EXPECTED
    )


def test_a_context_is_not_tried_off_the_gpu() -> None:
    check = of_place(context.SPEC, SimpleNamespace(offloaded=False))
    assert (check.status, check.found) == ("skip", "not tried: offload is red")


def test_a_context_too_large_names_the_largest_that_fits() -> None:
    check = of_place(context.SPEC, room(3000))
    assert (check.status, check.expected) == ("fail", EXPECTED)
    assert check.found.startswith(
        "out of memory: 4096 tokens do not fit into the GPU's memory, 2816 do: "
        "CUDA error: out of memory; "
    )
    assert check.next == "set context = 2816"


def test_where_no_context_fits_a_smaller_model_is_named() -> None:
    check = of_place(context.SPEC, room(0))
    assert check.status == "fail" and check.expected == EXPECTED
    assert "not even 256 tokens fit into the GPU's memory" in check.found
    assert check.next and "set context" not in check.next


def test_memory_of_a_host_is_estimated_and_not_filled() -> None:
    place = room(0, guess=2000.0, cuda=False)
    check = of_place(context.SPEC, place)
    assert "out of memory: 4096 tokens do not fit into memory: " in check.found
    assert check.next == "set context = 1792 or less (an estimate)"


def test_a_context_that_fails_otherwise_is_the_task_s_failure() -> None:
    place = room(4096)
    place.context = lambda n_ctx: ended("context", None, "nonsense")
    check = of_place(context.SPEC, place)
    assert (check.status, check.found, check.next) == ("fail", "it died", "read /job/worker.log")


# -- offload, control, logits ------------------------------------------------------------------


def seen(task: str, name: str, reply: dict[str, Any] | None = None) -> SimpleNamespace:
    outcome = ended(task, reply, log(name))
    small = {"small": model, "control": lambda: ended("logits", LOGITS)}
    return SimpleNamespace(
        offloaded=False,
        model=model,
        generate=lambda: outcome,
        logits=lambda: outcome,
        evidence=SimpleNamespace(**small),
    )


@pytest.mark.parametrize(
    ("name", "reply", "status", "offloaded"),
    [
        ("cuda-full", {}, "pass", True),
        ("cuda-half", {}, "fail", False),
        ("cuda-full", None, "fail", False),
        ("cuda-half", None, "fail", False),
    ],
)
def test_only_a_run_that_ended_well_proves_offload(
    name: str, reply: dict[str, Any] | None, status: str, offloaded: bool
) -> None:
    place = seen("generate", name, reply)
    check = of_place(offload.SPEC, place)
    assert (check.status, place.offloaded) == (status, offloaded)
    died = reply is None and name == "cuda-full"
    assert check.found.startswith("it died") is died


def test_buffers_may_be_rounded_and_no_more() -> None:
    """Half a hundredth of a MiB for each buffer that the log tells."""
    full = parse(log("cuda-full"))
    assert full.cuda_model_mib == 64.86 and len(full.model_mib) == 2
    assert judge_offload(full, LAYERS, int(64.8699 * (1 << 20))).status == "pass"
    assert judge_offload(full, LAYERS, int(64.8701 * (1 << 20))).status == "fail"


LOGITS = {
    "n_vocab": 4,
    "logits": base64.b64encode(array("f", [0.0, 1.0, 2.0, 3.0] * 2).tobytes()).decode(),
}


def test_equal_logits_of_the_gpu_pass() -> None:
    check = of_place(logits.SPEC, seen("logits", "cuda-full", LOGITS))
    assert check.status == "pass" and "100.0% of 2 positions" in check.found


def test_logits_of_the_cpu_prove_nothing() -> None:
    check = of_place(logits.SPEC, seen("logits", "cuda-zero", LOGITS))
    assert check == Check(
        "logits",
        "fail",
        "the run to compare was not on the GPU: 0 of 13 layers on CUDA devices (CPU 13), CUDA "
        "model buffers 0.00 MiB (CPU_Mapped 78.05)",
        "13 of 13 layers on CUDA devices, at least 64.86 MiB in their buffers",
        "see offload",
    )


def test_logits_are_compared_position_by_position() -> None:
    found = compare_logits([0.0, 1.0, 2.0, 1.0], [0.0, 1.5, 0.0, 1.0], 2)
    assert (found.max_abs, found.top1, found.positions) == (2.0, 0.5, 2)
    assert found.std == pytest.approx(0.7071068)
    assert found.relative == pytest.approx(2.8284271)


@pytest.mark.parametrize(
    ("cpu", "gpu", "n_vocab", "said"),
    [
        ([], [], 2, "0 and 0 logits with a vocabulary of 2"),
        ([1.0, 2.0], [1.0, 2.0], 0, "2 and 2 logits with a vocabulary of 0"),
        ([1.0, 2.0], [1.0], 1, "2 and 1 logits with a vocabulary of 1"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 2, "3 and 3 logits with a vocabulary of 2"),
        ([float("nan")], [1.0], 1, "a logit is not a finite number"),
        ([1.0], [float("inf")], 1, "a logit is not a finite number"),
    ],
)
def test_logits_that_cannot_be_compared(
    cpu: list[float], gpu: list[float], n_vocab: int, said: str
) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        compare_logits(cpu, gpu, n_vocab)


def test_a_vocabulary_of_one_can_be_compared() -> None:
    assert compare_logits([1.0, 2.0], [1.0, 2.0], 1).positions == 2


@pytest.mark.parametrize(("name", "status"), [("cuda-zero", "pass"), ("cuda-full", "fail")])
def test_the_control_is_a_run_that_ended(name: str, status: str) -> None:
    evidence = SimpleNamespace(small=model, control=lambda: ended("logits", {}, log(name)))
    assert of_host(control.SPEC, evidence).status == status


# -- GPUs and libraries ------------------------------------------------------------------------


def card(number: int = 0) -> Gpu:
    name = f"RTX 409{number}"
    return Gpu(number, name, f"GPU-{number}", f"0000:0{number + 1}:00.0", "8.9", 24564)


def probed(name: str = "cuda-full", **more: Any) -> SimpleNamespace:
    reply = {"libraries": ["/v/libggml-cuda.so"], "system_info": "CUDA : ARCHS = 890 | "}
    outcome = ended("probe", reply | {"supports_gpu_offload": True}, log(name))
    return SimpleNamespace(probe=lambda: outcome, foreign=lambda: False, **more)


def told(visible: str | None = None) -> SimpleNamespace:
    """A configuration whose environment has that CUDA_VISIBLE_DEVICES."""
    return SimpleNamespace(environment={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


@pytest.mark.parametrize("visible", [None, "0"])
def test_gpus_are_those_of_the_driver_and_of_cuda(
    visible: str | None,
) -> None:
    evidence = probed(
        config=told(visible),
        gpus=(card(0), card(1)),
        nvml_problem=None,
        cuda_devices=lambda: ["RTX 4090"],
        cuda_bus_ids=lambda: ["0000:01:00.0"],
    )
    of_all = of_host(gpus_visible.SPEC, evidence)
    assert of_all.status == "fail" and str(card(1)) in of_all.found
    first = SimpleNamespace(gpus=(card(0),), evidence=evidence, hidden=None)
    second = SimpleNamespace(gpus=(card(1),), evidence=evidence, hidden=None)
    assert of_place(gpus_visible.SPEC, first).status == "pass" and first.hidden is False
    hidden = of_place(gpus_visible.SPEC, second)
    assert hidden.status == "fail" and second.hidden is True
    assert f"{card(1)} at 0000:02:00.0" in hidden.expected
    for check in (of_all, hidden):
        assert ("CUDA_VISIBLE_DEVICES='0'" in check.found) is (visible is not None)


def test_nvml_s_own_words_reach_the_check() -> None:
    evidence = SimpleNamespace(
        config=told(), gpus=(), nvml_problem="version mismatch", cuda_devices=list
    )
    assert "NVML: version mismatch; CUDA: none" in of_host(gpus_visible.SPEC, evidence).found


@pytest.mark.parametrize(("visible", "known"), [(None, True), ("", False)])
def test_why_cuda_shows_none_is_told_unless_a_variable_hides_them(
    visible: str | None, known: bool
) -> None:
    evidence = probed(
        "cuda-init-error",
        config=told(visible),
        gpus=(card(),),
        nvml_problem=None,
        cuda_devices=list,
        cuda_bus_ids=list,
    )
    place = SimpleNamespace(gpus=(card(),), evidence=evidence)
    for check in (of_host(gpus_visible.SPEC, evidence), of_place(gpus_visible.SPEC, place)):
        assert check.status == "fail" and ("known as" in check.found) is known, check


def test_why_nvml_does_not_start_is_told() -> None:
    problem = "Failed to initialize NVML: Driver/library version mismatch"
    evidence = SimpleNamespace(config=told(), gpus=(), nvml_problem=problem, cuda_devices=list)
    assert "known as" in of_host(gpus_visible.SPEC, evidence).found


def test_the_backend_is_judged_by_what_was_probed() -> None:
    check = of_host(library_cuda.SPEC, probed())
    assert (check.status, check.found) == (
        "pass",
        "libggml-cuda loaded, system info: ARCHS = 890, GPU offload supported",
    )


def test_libraries_are_judged_by_where_the_build_really_lies(tmp_path: Path) -> None:
    (tmp_path / "f00").mkdir()
    (tmp_path / "current").symlink_to("f00")
    evidence = probed(
        config=SimpleNamespace(prefix=str(tmp_path / "current"), stamp="/job/stamp.json"),
        product=SimpleNamespace(libraries={"libllama.so": "aa"}),
        libraries=lambda: {str(tmp_path / "f00/libllama.so"): "aa"},
    )
    check = of_host(library_origin.SPEC, evidence)
    assert check.status == "pass" and check.expected.endswith("sha256 as in /job/stamp.json")
    evidence.product = None
    assert of_host(library_origin.SPEC, evidence).found == "no list of libraries in /job/stamp.json"


def code_of(
    prefix: Path, *loaded: str, gpus: tuple[Gpu, ...] = (), name: str = "cuda-full"
) -> Check:
    config = SimpleNamespace(prefix=str(prefix), compute_capabilities=("7.5",))
    evidence = probed(name, config=config, probed_libraries=lambda: dict.fromkeys(loaded, "aa"))
    return of_place(machine_code.SPEC, SimpleNamespace(evidence=evidence, gpus=gpus))


LIBRARY = DATA / "fatbin/sm89-compute89-two-units.so"


def test_code_is_that_of_the_loaded_library_or_of_the_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    there = tmp_path / "lib/libggml-cuda.so.0"
    there.write_bytes((DATA / "fatbin/compute80.so").read_bytes())
    assert code_of(tmp_path).status == "warn"
    loaded = tmp_path / "other/libggml-cuda.so"
    loaded.parent.mkdir()
    loaded.write_bytes(LIBRARY.read_bytes())
    assert code_of(tmp_path, "/v/libllama.so", str(loaded)).status == "pass"


def test_code_that_is_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    check = code_of(tmp_path, "/v/libllama.so")
    assert check == Check(
        "machine_code",
        "fail",
        f"no libggml-cuda.so below {tmp_path}",
        "machine code that runs on compute capability 8.9",
        "build with -DGGML_CUDA=on",
    )
    text = tmp_path / "libggml-cuda.so"
    text.write_text("text")
    check = code_of(tmp_path, str(text))
    assert check.status == "fail" and str(text) in check.found
    assert check.expected == "machine code that runs on compute capability 8.9"
    assert check.next == "build with -DGGML_CUDA=on"


@pytest.mark.parametrize(
    ("gpus", "name", "capabilities"),
    [
        ((card(0), card(1)), "cpu-160m", "8.9, 8.9"),
        ((), "cuda-full", "8.9"),
        ((Gpu(0, "old", "GPU-0", "", "", 1),), "cuda-full", "8.9"),
        ((), "cpu-160m", "7.5"),
    ],
)
def test_capabilities_are_told_by_nvml_else_by_cuda_else_as_configured(
    tmp_path: Path, gpus: tuple[Gpu, ...], name: str, capabilities: str
) -> None:
    check = code_of(tmp_path, gpus=gpus, name=name)
    assert check.expected == f"machine code that runs on compute capability {capabilities}"


# -- figures -----------------------------------------------------------------------------------


def grown(loaded: float | None, ready: float | None) -> SimpleNamespace:
    def at(mib: float | None) -> Sample:
        return Sample(0, mib, mib, 95, 2500, 300, 60, 0)

    marks = {"initialised": at(400.0), "loaded": at(loaded), "ready": at(ready)}
    outcome = ended("generate", {}, log("cuda-full"), recording=Recording([], marks))
    evidence = SimpleNamespace(variables=dict)
    return SimpleNamespace(watched=lambda: outcome, model=model, evidence=evidence)


def test_memory_grows_by_the_weights_and_by_the_cache() -> None:
    check = of_place(vram.SPEC, grown(465.0, 490.0))
    assert (check.status, check.found) == (
        "pass",
        "65 MiB by loading the model, 90 MiB with the context "
        "(weights 65, weights and KV cache 83)",
    )


@pytest.mark.parametrize("value", ["1", "0", ""])
def test_memory_that_the_host_lends_is_red_however_its_figures_look(value: str) -> None:
    """llama.cpp asks whether the variable is set, and not to what."""
    place = grown(465.0, 490.0)
    place.evidence.variables = lambda: {"GGML_CUDA_ENABLE_UNIFIED_MEMORY": value}
    check = of_place(vram.SPEC, place)
    assert check.status == "fail" and f"GGML_CUDA_ENABLE_UNIFIED_MEMORY={value}" in check.found
    assert "unset GGML_CUDA_ENABLE_UNIFIED_MEMORY" in check.next


@pytest.mark.parametrize(("loaded", "ready"), [(None, 490.0), (465.0, None)])
def test_memory_that_nvml_does_not_tell_is_no_figure(
    loaded: float | None, ready: float | None
) -> None:
    with pytest.raises(NvmlUnavailable, match=r"^NVML tells no memory figures$"):
        of_place(vram.SPEC, grown(loaded, ready))


def test_a_benchmark_is_not_made_off_the_gpu_and_counts_its_samples() -> None:
    check = of_place(benchmark.SPEC, SimpleNamespace(offloaded=False))
    assert (check.status, check.found) == ("skip", "not measured: offload is red")
    rates = Rates(8, median_ts=2.0, stdev_ts=0.1, samples_ts=(2.0,) * 3)
    inputs = SimpleNamespace(bench=SimpleNamespace(repetitions=3))
    evidence = SimpleNamespace(config=SimpleNamespace(inputs=inputs))
    place = SimpleNamespace(
        offloaded=True,
        evidence=evidence,
        benchmark=lambda: Benchmark(rates, rates),
        bench=lambda: ended("bench", {}),
    )
    assert of_place(benchmark.SPEC, place).status == "pass"
    inputs.bench.repetitions = 4
    assert of_place(benchmark.SPEC, place).status == "fail"


def test_each_kind_of_place_has_its_checks() -> None:
    every = ("offload", "vram", "busy", "context", "benchmark")
    gpu = ("gpus_visible", "machine_code", "offload", "vram", "busy", "logits")
    assert checks.of("gpu") == (*gpu, "context", "benchmark")
    assert checks.of("unnamed") == checks.of("cpu") == (*gpu[1:], "context", "benchmark")
    assert checks.of("all") == every
    assert checks.OF_HOST == ("gpus_visible", "library_origin", "library_cuda", "model", "control")


def test_what_loads_a_model_needs_one() -> None:
    """And the library with it: without them it is skipped, and one check says why."""
    needs = {spec.name: " ".join(spec.needs) for spec in checks.REGISTRY if spec.needs}
    mine = dict.fromkeys(("offload", "vram", "busy", "context", "benchmark"), "model")
    assert needs == mine | dict.fromkeys(("control", "logits"), "small model")


def test_a_control_that_died_is_none_however_well_its_log_reads() -> None:
    evidence = SimpleNamespace(small=model, control=lambda: ended("logits", None, log("cuda-zero")))
    with pytest.raises(TaskProblem, match="it died"):
        of_host(control.SPEC, evidence)
