"""What each check takes from its place, and what it says where that is not to be had."""

from __future__ import annotations

import base64
from array import array
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.onhost.verify import checks, llama_log
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
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.child import Outcome, TaskProblem
from llamafleet.onhost.verify.gpu import Gpu, NvmlUnavailable, Sample
from llamafleet.onhost.verify.graph import UNSEEN, Graph, Seen
from llamafleet.onhost.verify.measuring import Measured
from llamafleet.onhost.verify.present import Present
from llamafleet.onhost.verify.sampling import Recording
from llamafleet.plans.toolkit.compatibility import miscompiles
from llamafleet.protocol.models import COMPARED
from llamafleet.protocol.result import Benchmark, Check, Rates
from tests.onhost.verify.graphs import HALF, ON_CPU, ON_GPU, like, sent, w160m

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


def seen(name: str, graph: Graph | None) -> SimpleNamespace:
    """A place where the model generated, as log and graph tell; None: it died."""
    outcome = ended("generate", None if graph is None else {"graph": sent(graph)}, log(name))
    return SimpleNamespace(
        offloaded=False,
        gpus=(),
        model=lambda: SimpleNamespace(weights=w160m()),
        generate=lambda: outcome,
    )


@pytest.mark.parametrize(
    ("name", "graph", "status", "offloaded"),
    [
        ("cuda-full", ON_GPU, "pass", True),
        ("cuda-half", HALF, "fail", False),
        ("cuda-half", ON_GPU, "fail", False),
        ("cuda-full", HALF, "fail", False),
        ("cuda-full", None, "fail", False),
        ("cuda-half", None, "fail", False),
    ],
)
def test_only_a_run_that_ended_well_proves_offload(
    name: str, graph: Graph | None, status: str, offloaded: bool
) -> None:
    place = seen(name, graph)
    check = of_place(offload.SPEC, place)
    assert (check.status, place.offloaded) == (status, offloaded)
    assert check.found.startswith("it died") is (graph is None)
    half = "6 of 13 layers on CUDA devices (CPU 7, CUDA0 6)"
    assert (half in check.found) is (name == "cuda-half")


def test_an_operation_without_a_kernel_leaves_the_rest_to_be_tried() -> None:
    row = Seen("3", "refused", "CUDA_Host", 1, 0, ("SSM_SCAN node_7",))
    place = seen("cuda-full", replace(ON_GPU, seen=(*ON_GPU.seen, row)))
    assert of_place(offload.SPEC, place).status == "warn" and place.offloaded


def test_a_place_s_own_gpu_must_be_the_one() -> None:
    place = seen("cuda-full", like(["CUDA0"] * 13, {"CUDA0": "0000:02:00.0"}))
    place.gpus = (card(0),)
    check = of_place(offload.SPEC, place)
    assert check.status == "fail" and "on another GPU, at 0000:02:00.0" in check.found


LOGITS = {
    "n_vocab": 4,
    "logits": base64.b64encode(array("f", [0.0, 1.0, 2.0, 3.0] * 2).tobytes()).decode(),
}


def compared(name: str, graph: Graph, task: str = "logits") -> Outcome:
    """A run of the models in which GPU and CPU are compared."""
    text = "".join(llama_log.mark(number) + log(name) for number in range(len(COMPARED)))
    return ended(task, {"models": [LOGITS | {"graph": sent(graph)}] * len(COMPARED)}, text)


def computing(gpu: Outcome, cpu: Outcome) -> SimpleNamespace:
    models = tuple(SimpleNamespace(name=f"tiny-{one}", weights=w160m()) for one in COMPARED)
    evidence = SimpleNamespace(compared=lambda: models, control=lambda: cpu)
    return SimpleNamespace(gpus=(), logits=lambda: gpu, evidence=evidence)


def test_equal_logits_of_the_gpu_pass() -> None:
    place = computing(compared("cuda-full", ON_GPU), compared("cuda-zero", ON_CPU))
    assert of_place(logits.SPEC, place).status == "pass"


@pytest.mark.parametrize(
    ("gpu", "cpu", "said", "next_"),
    [
        (("cuda-zero", ON_CPU), ("cuda-zero", ON_CPU), "was not on the GPU: ", "see offload"),
        (("cuda-full", ON_CPU), ("cuda-zero", ON_CPU), "was not on the GPU: ", "see offload"),
        (("cuda-zero", ON_GPU), ("cuda-zero", ON_CPU), "was not on the GPU: ", "see offload"),
        (("cuda-full", UNSEEN), ("cuda-zero", ON_CPU), "was not on the GPU: ", "see offload"),
        (("cuda-full", ON_GPU), ("cuda-full", ON_GPU), "was not on the CPU: ", "see control"),
        (("cuda-full", ON_GPU), ("cuda-zero", ON_GPU), "was not on the CPU: ", "see control"),
    ],
)
def test_logits_of_another_place_prove_nothing(
    gpu: tuple[str, Graph], cpu: tuple[str, Graph], said: str, next_: str
) -> None:
    check = of_place(logits.SPEC, computing(compared(*gpu), compared(*cpu)))
    assert check.status == "fail" and check.next == next_
    assert said in check.found and COMPARED[0] in check.found


def test_the_type_at_which_a_run_died_is_named() -> None:
    whole = compared("cuda-full", ON_GPU)
    marks = "".join(llama_log.mark(number) for number in range(COMPARED.index("mxfp4") + 1))
    died = replace(whole, reply=None, problem="ended by SIGABRT", log=marks + OOM)
    check = of_place(logits.SPEC, computing(died, compared("cuda-zero", ON_CPU)))
    assert check.status == "fail" and check.found.startswith("at tiny-mxfp4: ended by SIGABRT")


def test_an_answer_without_its_log_is_no_comparison() -> None:
    cut = replace(compared("cuda-full", ON_GPU), log=llama_log.mark(0))
    with pytest.raises(ValueError, match="7 answers and 1 logs of 7 models"):
        of_place(logits.SPEC, computing(cut, compared("cuda-zero", ON_CPU)))


@pytest.mark.parametrize("broken", COMPARED)
def test_one_type_that_is_computed_wrongly_is_red_by_name(broken: str) -> None:
    whole = compared("cuda-full", ON_GPU)
    other = base64.b64encode(array("f", [3.0, 1.0, 2.0, 0.0] * 2).tobytes()).decode()
    answers = [LOGITS | {"graph": sent(ON_GPU)} for _ in COMPARED]
    answers[COMPARED.index(broken)]["logits"] = other
    wrong = replace(whole, reply={"models": answers})
    check = of_place(logits.SPEC, computing(wrong, compared("cuda-zero", ON_CPU)))
    assert check.status == "fail" and check.found.startswith(f"wrong: {broken}; ")


def test_logits_are_compared_position_by_position() -> None:
    found = compare_logits([0.0, 1.0, 2.0, 1.0], [0.0, 1.5, 0.0, 1.0], 2)
    assert (found.max_abs, found.top1, found.positions) == (2.0, 0.5, 2)
    assert found.std == pytest.approx(0.7071068)
    assert found.largest == pytest.approx(2.8284271)


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


@pytest.mark.parametrize(
    ("name", "graph", "status"),
    [("cuda-zero", ON_CPU, "pass"), ("cuda-full", ON_GPU, "fail"), ("cuda-zero", ON_GPU, "fail")],
)
def test_the_control_is_a_run_that_ended(name: str, graph: Graph, status: str) -> None:
    run = compared(name, graph)
    evidence = computing(run, run).evidence
    assert of_host(control.SPEC, evidence).status == status


def test_a_control_of_no_model_is_none() -> None:
    run = ended("logits", {"models": []})
    assert of_host(control.SPEC, computing(run, run).evidence).status == "fail"


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


def gpus_of(
    name: str = "cuda-full",
    visible: str | None = None,
    gpus: tuple[Gpu, ...] = (),
    shown: tuple[int, ...] = (),
    problem: str | None = None,
) -> SimpleNamespace:
    """What CUDA shows of these GPUs, by number, in a process that wrote that log."""
    outcome = ended("probe", {}, log(name))
    ids = [gpus[number].bus_id for number in shown]
    return SimpleNamespace(
        config=told(visible),
        there=Present(gpus),
        gpus=gpus,
        nvml=None,
        nvml_problem=problem,
        whole=lambda: outcome,
        probe=lambda: outcome,
        singles=dict,
        log_of=lambda gpu: outcome.log,
        shows=lambda gpu: gpu.bus_id in ids,
        cuda_devices=lambda: ["RTX 4090"] * len(ids),
        cuda_bus_ids=lambda: ids,
    )


@pytest.mark.parametrize("visible", [None, "0"])
def test_gpus_are_those_of_the_driver_and_of_cuda(
    visible: str | None,
) -> None:
    evidence = gpus_of(visible=visible, gpus=(card(0), card(1)), shown=(0,))
    of_all = of_host(gpus_visible.SPEC, evidence)
    assert of_all.status == "fail" and str(card(1)) in of_all.found
    first, second = (
        SimpleNamespace(gpus=(one,), evidence=evidence, hidden=None, missing=None)
        for one in (card(0), card(1))
    )
    assert of_place(gpus_visible.SPEC, first).status == "pass" and first.hidden is False
    hidden = of_place(gpus_visible.SPEC, second)
    assert hidden.status == "fail" and second.hidden is True
    assert f"{card(1)} at 0000:02:00.0" in hidden.expected
    for check in (of_all, hidden):
        assert ("CUDA_VISIBLE_DEVICES='0'" in check.found) is (visible is not None)


def test_nvml_s_own_words_reach_the_check() -> None:
    evidence = gpus_of(problem="version mismatch")
    assert "NVML: version mismatch; CUDA: none" in of_host(gpus_visible.SPEC, evidence).found


@pytest.mark.parametrize(("visible", "known"), [(None, True), ("", False)])
def test_why_cuda_shows_none_is_told_unless_a_variable_hides_them(
    visible: str | None, known: bool
) -> None:
    evidence = gpus_of("cuda-init-error", visible, gpus=(card(),))
    place = SimpleNamespace(gpus=(card(),), evidence=evidence, missing=None)
    for check in (of_host(gpus_visible.SPEC, evidence), of_place(gpus_visible.SPEC, place)):
        assert check.status == "fail" and ("known as" in check.found) is known, check


def test_why_nvml_does_not_start_is_told() -> None:
    problem = "Failed to initialize NVML: Driver/library version mismatch"
    assert "known as" in of_host(gpus_visible.SPEC, gpus_of(problem=problem)).found


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
        config=SimpleNamespace(
            prefix=str(tmp_path / "current"), stamp="/job/stamp.json", backend="cpu"
        ),
        product=SimpleNamespace(libraries={"libllama.so": "aa"}),
        libraries=lambda: {str(tmp_path / "f00/libllama.so"): "aa"},
    )
    check = of_host(library_origin.SPEC, evidence)
    assert check.status == "pass" and check.expected.endswith("sha256 as in /job/stamp.json")
    evidence.product = None
    assert of_host(library_origin.SPEC, evidence).found == "no list of libraries in /job/stamp.json"


def code_of(
    prefix: Path,
    *loaded: str,
    gpus: tuple[Gpu, ...] = (),
    name: str = "cuda-full",
    nvcc: str = "13.0.88",
) -> Check:
    config = SimpleNamespace(
        prefix=str(prefix), compute_capabilities=("7.5",), toolkit=nvcc.rpartition(".")[0]
    )
    evidence = probed(
        name,
        config=config,
        probed_libraries=lambda: dict.fromkeys(loaded, "aa"),
        product=SimpleNamespace(nvcc=nvcc),
    )
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


BLACKWELL = DATA / "fatbin/sm120a-sm90a-sm100f.so"


@pytest.mark.parametrize(
    ("nvcc", "capability", "status"),
    [
        ("13.2.78", "12.0", "fail"),
        ("13.2.86", "12.0", "pass"),
        ("13.2.78", "9.0", "pass"),
        # Not told by an older build: what it computes decides.
        ("", "12.0", "pass"),
    ],
)
def test_code_of_a_compiler_that_makes_it_wrong_is_red_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvcc: str, capability: str, status: str
) -> None:
    monkeypatch.setattr("llamafleet.onhost.nvcc.shipped", miscompiles)
    loaded = tmp_path / "libggml-cuda.so"
    loaded.write_bytes(BLACKWELL.read_bytes())
    one = replace(card(), compute_capability=capability)
    check = code_of(tmp_path, str(loaded), gpus=(one,), nvcc=nvcc)
    assert check.status == status
    if status == "fail":
        assert check.found.startswith("compiled by nvcc 13.2.78 computes iq1_s, iq2_s, iq3_s wrong")


def test_code_of_an_older_capability_is_right_by_any_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library with PTX of 8.0 alone, on a GPU of 12.0: slow to start, and no fault."""
    monkeypatch.setattr("llamafleet.onhost.nvcc.shipped", miscompiles)
    loaded = tmp_path / "libggml-cuda.so"
    loaded.write_bytes((DATA / "fatbin/compute80.so").read_bytes())
    one = replace(card(), compute_capability="12.0")
    assert code_of(tmp_path, str(loaded), gpus=(one,), nvcc="13.2.78").status == "warn"


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


def test_the_cache_s_size_is_the_graph_s_where_the_log_is_silent() -> None:
    place = grown(465.0, 490.0)
    silent = replace(place.watched(), log="", reply={"graph": sent(ON_GPU)})
    place.watched = lambda: silent
    check = of_place(vram.SPEC, place)
    assert "(weights 65, weights and KV cache 101)" in check.found


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
        measuring=lambda: Measured(Benchmark(rates, rates)),
        bench=lambda: ended("bench", {}),
    )
    assert of_place(benchmark.SPEC, place).status == "pass"
    inputs.bench.repetitions = 4
    assert of_place(benchmark.SPEC, place).status == "fail"


def test_each_kind_of_place_has_its_checks() -> None:
    every = ("offload", "vram", "busy", "context", "benchmark")
    gpu = ("gpus_visible", "machine_code", "offload", "vram", "busy", "logits")
    assert checks.of("gpu") == (*gpu, "context", "benchmark", "health")
    assert checks.of("unnamed") == (*gpu[1:], "context", "benchmark")
    assert checks.of("cpu") == (*gpu[1:], "context", "benchmark", "health")
    assert checks.of("all") == (*every, "health")
    assert checks.OF_HOST == ("gpus_visible", "library_origin", "library_cuda", "model", "control")


def test_what_loads_a_model_needs_one() -> None:
    """And the library with it: without them it is skipped, and one check says why."""
    needs = {spec.name: " ".join(spec.needs) for spec in checks.REGISTRY if spec.needs}
    mine = dict.fromkeys(("offload", "vram", "busy", "context", "benchmark"), "model")
    assert needs == mine | dict.fromkeys(("control", "logits"), "small model")


def test_a_control_that_died_is_none_however_well_its_log_reads() -> None:
    run = ended("logits", None, compared("cuda-zero", ON_CPU).log)
    with pytest.raises(TaskProblem, match="it died"):
        of_host(control.SPEC, computing(run, run).evidence)
