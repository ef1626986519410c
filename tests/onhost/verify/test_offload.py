"""Graph and log, judged together: whatever is off the GPU is red, and a silent log is no fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafleet.onhost.verify.checks.control import judge_control
from llamafleet.onhost.verify.checks.offload import graph_of as decoded
from llamafleet.onhost.verify.checks.offload import judge_log, judge_offload
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.onhost.verify.graph import OUTPUT, UNSEEN, Graph, Kind, Seen
from llamafleet.onhost.verify.llama_log import Placement, parse
from llamafleet.onhost.verify.weights import Weights
from llamafleet.protocol.result import Check
from tests.onhost.verify.graphs import (
    BUS_IDS,
    HALF,
    ON_CPU,
    ON_GPU,
    ON_TWO,
    card,
    graph_of,
    like,
    recorded,
    tiny,
    w160m,
    without_output,
)

LOGS = Path(__file__).parents[1] / "data" / "logs"
SILENT = Placement({}, None, {}, {}, None, ())


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


@cache
def placed(name: str) -> Placement:
    return parse(log(name))


def judged(graph: Graph, placement: Placement, gpus: Sequence[Gpu] = ()) -> Check:
    return judge_offload(graph, placement, w160m(), gpus)


# -- the graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layers"), [("one", "(CUDA0 5)"), ("two", "(CUDA0 3, CUDA1 2)")])
def test_a_whole_model_on_gpus_passes(name: str, layers: str) -> None:
    check = judge_offload(graph_of(name), SILENT, tiny())
    assert check.status == "pass", check
    assert check.found.startswith(f"5 of 5 layers on CUDA devices {layers}, ")
    operations, _, told = check.found.partition("operations: ")[2].partition("; log: ")
    computed = "CUDA0 81" if name == "one" else "CUDA0 57, CUDA1 24"
    assert operations == f"{computed}, and those of the input layer (GET_ROWS embd)"
    assert told == "says nothing of layers: llama.cpp's wording may have changed"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zero", "38 weights of layers 0-3, output in CPU_Mapped (blk.0.attn_norm.weight, "),
        ("half", "27 weights of layers 0-2 in CPU_Mapped (blk.0.attn_norm.weight, "),
        ("four-of-five", "9 weights of layer 0 in CPU_Mapped (blk.0.attn_norm.weight, "),
        ("zero-64-tokens", "40 copies, made for each operation, of weights or caches of "),
    ],
)
def test_layers_on_the_cpu_are_red_and_named(name: str, said: str) -> None:
    check = judge_offload(graph_of(name), SILENT, tiny())
    assert check.status == "fail" and said in check.found, check.found
    assert "KV caches of layer" in check.found
    assert check.next


def leaves(name: str) -> list[str]:
    """Weights and caches of a recording, without those of the input layer."""
    found = {source[0] for node in recorded(name) for source in node[3] if source[1] == "NONE"}
    return sorted(n for n in found if n.startswith(("blk.", "cache_", "output")))


@given(st.data())
def test_any_single_weight_or_cache_on_the_cpu_is_red(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["one", "two"]))
    moved = data.draw(st.sampled_from(leaves(name)))
    to = data.draw(st.sampled_from(["CPU", "CPU_Mapped", "CUDA_Host", "CPU_REPACK", "RPC0"]))
    graph = graph_of(name, lambda leaf, buffer: to if leaf == moved else buffer)
    check = judge_offload(graph, SILENT, tiny())
    assert check.status == "fail"
    assert moved in check.found and to in check.found


@given(st.data())
def test_any_single_weight_or_cache_on_another_gpu_is_red(data: st.DataObject) -> None:
    moved = data.draw(st.sampled_from([leaf for leaf in leaves("two") if "output" not in leaf]))
    other = {"CUDA0": "CUDA1", "CUDA1": "CUDA0"}
    graph = graph_of("two", lambda leaf, buffer: other[buffer] if leaf == moved else buffer)
    check = judge_offload(graph, SILENT, tiny())
    assert check.status == "fail" and "is on CUDA0 and CUDA1 at once" in check.found


@given(st.data())
def test_any_row_of_the_graph_that_is_missing_or_astray_is_red(data: st.DataObject) -> None:
    """Of the big model, and of operations too: on the CPU without being the input layer's."""
    rows = [number for number, row in enumerate(ON_TWO.seen) if row.layer != "input"]
    number = data.draw(st.sampled_from(rows))
    row = ON_TWO.seen[number]
    to = data.draw(st.sampled_from(["CPU", "CUDA_Host", "CPU_Mapped", "CUDA0 (host)"]))
    seen = list(ON_TWO.seen)
    seen[number] = replace(row, buffer=to)
    check = judged(replace(ON_TWO, seen=tuple(seen)), placed("cuda-two-gpus"))
    assert check.status == "fail" and f" in {to} (" in check.found
    if row.kind == "weight":
        del seen[number]
        check = judged(replace(ON_TWO, seen=tuple(seen)), placed("cuda-two-gpus"))
        assert check.status == "fail" and "no weight of layer" in check.found


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (UNSEEN, "graph: can't be read, the worker shows none; it proves nothing; log: "),
        (Graph(), "no weight of layers 0-11, output in the graph of 0 nodes"),
        (without_output(ON_GPU), "no weight of layer output in the graph of 378 nodes"),
        (like(["CUDA0"] * 12), "no weight of layer 11 in the graph"),
        # A draft model's, say: all of it is on the GPU.
        (like(["CUDA0"] * 9), "another model: 8 layers and 0 to predict further tokens, the file "),
        (replace(ON_GPU, n_layer_nextn=1), "another model: 12 layers and 1 to predict further "),
        (
            replace(ON_GPU, seen=tuple(row for row in ON_GPU.seen if row.kind != "cache")),
            "no KV cache in the graph of 378 nodes",
        ),
    ],
)
def test_a_graph_that_shows_too_little_is_red(graph: Graph, said: str) -> None:
    check = judged(graph, placed("cuda-full"))
    assert check.status == "fail" and said in check.found, check.found


def test_operations_alone_on_the_cpu_are_named() -> None:
    """Every weight and cache is on the GPU."""
    rows = [
        replace(row, buffer="CUDA_Host") if row.kind == "operation" and row.layer == "7" else row
        for row in ON_GPU.seen
    ]
    check = judged(replace(ON_GPU, seen=tuple(rows)), placed("cuda-full"))
    assert check.status == "fail"
    assert "19 results of operations of layer 7 in CUDA_Host (RMS_NORM norm-7, " in check.found


def test_a_model_with_layers_without_tensors_passes() -> None:
    """As some pruned models have: llama.cpp leaves such a layer out of the graph."""
    pruned = replace(w160m(), computed=frozenset(range(12)) - {5})
    seen = tuple(row for row in ON_GPU.seen if row.layer != "5")
    check = judge_offload(replace(ON_GPU, seen=seen), placed("cuda-full"), pruned)
    assert check.status == "pass" and check.found.startswith("12 of 12 layers on CUDA devices")


def test_a_model_that_only_embeds_texts_passes() -> None:
    """It has neither a memory nor an output layer; llama.cpp's log assigns one all the same."""
    embeds = replace(w160m(), output=False)
    seen = tuple(row for row in without_output(ON_GPU).seen if row.kind != "cache")
    check = judge_offload(replace(ON_GPU, seen=seen, memory=False), placed("cuda-full"), embeds)
    assert check.status == "pass" and check.found.startswith("12 of 12 layers on CUDA devices")


def test_an_operation_that_no_gpu_can_do_is_a_price_and_no_fault() -> None:
    row = Seen("3", "refused", "CUDA_Host", 2, 0, ("SSM_SCAN node_7", "SSM_SCAN node_9"))
    check = judged(replace(ON_GPU, seen=(*ON_GPU.seen, row)), placed("cuda-full"))
    assert check.status == "warn"
    assert "no kernel for them: 2 of layer 3 (SSM_SCAN node_7, SSM_SCAN node_9)" in check.found


# -- which GPUs ----------------------------------------------------------------------------------


TWO: dict[str, str | None] = {"CUDA0": BUS_IDS[0], "CUDA1": BUS_IDS[1]}


@pytest.mark.parametrize("ids", [TWO, {"CUDA0": BUS_IDS[1], "CUDA1": BUS_IDS[0]}])
def test_all_gpus_are_used_in_whatever_order(ids: dict[str, str | None]) -> None:
    graph = like(["CUDA0"] * 7 + ["CUDA1"] * 6, ids)
    assert judged(graph, placed("cuda-two-gpus"), (card(0), card(1))).status == "pass"


def test_a_gpu_without_a_layer_is_red_and_named() -> None:
    graph = like(["CUDA0"] * 13, TWO)
    check = judged(graph, placed("cuda-full"), (card(0), card(1)))
    assert check.status == "fail"
    assert f"no layer on NVIDIA H200, 9.0 at {BUS_IDS[1]}" in check.found


def test_layers_on_a_gpu_that_is_not_this_one_are_red() -> None:
    graph = like(["CUDA0"] * 13, {"CUDA0": BUS_IDS[1]})
    check = judged(graph, placed("cuda-full"), (card(0),))
    assert check.status == "fail"
    assert f"layers on another GPU, at {BUS_IDS[1]}" in check.found


def test_a_layer_too_many_on_a_second_gpu_is_red() -> None:
    check = judged(like(["CUDA0"] * 12 + ["CUDA1"], TWO), SILENT, (card(0),))
    assert check.status == "fail" and f"on another GPU, at {BUS_IDS[1]}" in check.found


@pytest.mark.parametrize(
    "gpus",
    [
        (card(0, ""), card(1, "")),
        (card(0, ""), card(1)),
        # MIG devices of one card.
        (card(0, BUS_IDS[0]), card(1, BUS_IDS[0])),
    ],
)
def test_without_addresses_as_many_devices_as_gpus_must_be_used(gpus: tuple[Gpu, ...]) -> None:
    addresses = {"CUDA0": gpus[0].bus_id or None, "CUDA1": gpus[1].bus_id or None}
    both = like(["CUDA0"] * 7 + ["CUDA1"] * 6, addresses)
    assert judged(both, placed("cuda-two-gpus"), gpus).status == "pass"
    check = judged(like(["CUDA0"] * 13, {"CUDA0": None}), placed("cuda-full"), gpus)
    assert check.status == "fail" and "no layer on 1 of the GPUs" in check.found


def test_a_gpu_whose_share_is_less_than_a_layer_may_have_none() -> None:
    small = replace(card(1), vram_mib=16_000)
    graph = like(["CUDA0"] * 13, TWO)
    assert judged(graph, placed("cuda-full"), (card(0), small)).status == "pass"
    check = judged(graph, placed("cuda-full"), (card(0), replace(small, vram_mib=20_000)))
    assert check.status == "fail" and f"at {BUS_IDS[1]}" in check.found


def test_more_gpus_than_layers_can_not_all_be_used() -> None:
    gpus = tuple(card(0, f"0000:{number:02x}:00.0") for number in range(16))
    devices = [f"CUDA{number}" for number in range(13)]
    ids = {name: gpu.bus_id for name, gpu in zip(devices, gpus, strict=False)}
    assert judged(like(devices, dict(ids)), SILENT, gpus).status == "pass"


# -- the log -------------------------------------------------------------------------------------


def test_a_graph_and_a_log_that_agree_pass() -> None:
    for name, graph in (("cuda-full", ON_GPU), ("cuda-colon", ON_GPU), ("cuda-two-gpus", ON_TWO)):
        check = judged(graph, placed(name))
        assert check.status == "pass", check
        assert "13 of 13 layers" in check.found.partition("log: ")[0]
        assert "13 of 13 layers" in check.found.partition("log: ")[2]


@pytest.mark.parametrize(
    ("name", "graph", "said"),
    [
        ("cuda-half", ON_GPU, "6 of 13 layers on CUDA devices (CPU 7, CUDA0 6)"),
        ("cuda-zero", ON_GPU, "0 of 13 layers on CUDA devices (CPU 13)"),
        ("cuda-init-error", ON_GPU, "CUDA did not start: no CUDA-capable device is detected"),
        ("cuda-two-gpus", ON_GPU, "layer 7 on CUDA1"),
        ("cuda-full", ON_TWO, "layer 7 on CUDA0"),
    ],
)
def test_a_log_that_contradicts_is_red_and_both_are_shown(
    name: str, graph: Graph, said: str
) -> None:
    check = judged(graph, placed(name))
    assert check.status == "fail"
    assert check.found.startswith("graph and log disagree; graph: 13 of 13 layers on CUDA devices")
    assert said in check.found.partition("; log: ")[2]


def test_a_log_that_praises_a_model_on_the_cpu_does_not_help_it() -> None:
    for graph, of in ((ON_CPU, "0 of 13"), (HALF, "6 of 13")):
        check = judged(graph, placed("cuda-full"))
        assert check.status == "fail"
        assert f"graph: {of} layers on CUDA devices" in check.found
        assert "log: 13 of 13 layers on CUDA devices (CUDA0 13)" in check.found


@pytest.mark.parametrize(
    "text",
    ["", "nothing to read", log("cuda-full").replace("assigned to device", "goes to")],
)
def test_a_log_whose_wording_changed_is_silent_and_no_fault(text: str) -> None:
    text = text.replace("buffer size =", "buffer:")
    check = judged(ON_GPU, parse(text))
    assert check.status == "pass"
    assert "log: says nothing of layers" in check.found


def test_memory_alone_can_contradict() -> None:
    text = log("cuda-full").replace("assigned to device", "goes to").replace("64.86", "12.00")
    check = judged(ON_GPU, parse(text))
    assert check.status == "fail" and "too little for the weights" in check.found


def test_buffers_may_be_rounded_and_no_more() -> None:
    """Half a hundredth of a MiB for each buffer that the log tells."""
    full = placed("cuda-full")
    assert full.cuda_model_mib == 64.86 and len(full.model_mib) == 2
    for mib, says in ((64.8699, "yes"), (64.8701, "no")):
        held = replace(w160m(), device_bytes=int(mib * (1 << 20)))
        assert judge_log(full, ON_GPU, held).says == says


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_mib": {"CUDA_Host": 64.86}}, "too little"),
        ({"kv_mib": {"CPU": 18.0}}, "KV cache on CPU"),
        ({"kv_mib": {"CUDA0": 9.0, "CUDA_Host": 9.0}}, "KV cache on CUDA_Host"),
        ({"init_error": "unknown error"}, "CUDA did not start"),
        ({"layers": {13: "CUDA0"}}, "layer 13 on CUDA0"),
        ({"layers": {3: "CPU"}}, "layer 3 on CPU"),
    ],
)
def test_each_part_of_the_log_can_contradict(changes: dict[str, Any], said: str) -> None:
    witness = judge_log(replace(placed("cuda-full"), **changes), ON_GPU, w160m())
    assert witness.says == "no" and said in witness.text


def test_a_line_that_is_lost_contradicts_nothing() -> None:
    full = placed("cuda-full")
    layers = {number: device for number, device in full.layers.items() if number != 5}
    assert judged(ON_GPU, replace(full, layers=layers)).status == "pass"


@pytest.mark.parametrize("prefix", ["0.00.060 I ", "service-1  | ", "0.12.345.678 D "])
@pytest.mark.parametrize("name", ["cuda-full", "cuda-two-gpus", "cuda-half"])
def test_lines_with_a_prefix_are_read(prefix: str, name: str) -> None:
    text = "".join(prefix + line for line in log(name).splitlines(keepends=True))
    assert parse(text) == placed(name)


@pytest.mark.parametrize("function", ["llama_model::load_tensors", "operator()", "assign_layers"])
def test_the_function_s_name_is_no_part_of_a_layer_s_line(function: str) -> None:
    assert parse(log("cuda-full").replace("load_tensors", function)) == placed("cuda-full")


def test_a_draft_model_in_the_same_process_misleads_nobody() -> None:
    """Its lines look like the main model's: the log then says nothing, and the graph of the main
    model's context decides."""
    draft = log("cuda-zero")
    for text in (log("cuda-full") + draft, draft + log("cuda-full")):
        check = judged(ON_GPU, parse(text))
        assert check.status == "pass", check
        assert "log: speaks of 2 models" in check.found
        assert judged(ON_CPU, parse(text)).status == "fail"
    assert judged(ON_CPU, parse(log("cuda-zero") + log("cuda-full"))).status == "fail"


def test_the_cache_of_the_context_that_is_looked_at_counts_once() -> None:
    """The worker makes a second context for it, after a line of its own."""
    text = log("cuda-full") + "llamafleet: graph\nllama_kv_cache: CUDA0 KV buffer size = 18.00 MiB"
    assert parse(text).kv_mib == placed("cuda-full").kv_mib


# -- layers that predict further tokens ----------------------------------------------------------


def nextn() -> tuple[Weights, Placement]:
    """The 160m model with a thirteenth layer, which llama.cpp assigns and does not load."""
    full = placed("cuda-full")
    return replace(w160m(), layers=13), replace(full, layers={**full.layers, 13: "CUDA0"})


def test_layers_for_the_prediction_of_further_tokens_take_no_part() -> None:
    held, placement = nextn()
    check = judge_offload(replace(ON_GPU, n_layer_nextn=1), placement, held)
    assert check.status == "pass", check
    assert "13 of 13 layers" in check.found and "14 of 14 layers" in check.found
    assert "predict further tokens, which take no part: 1; log" in check.found


def test_a_model_with_such_layers_is_red_all_the_same_on_the_cpu() -> None:
    held, placement = nextn()
    assert judge_offload(ON_CPU, placement, held).status == "fail"
    on_cpu = replace(placement, layers=placement.layers | {12: "CPU"})
    assert judge_offload(ON_GPU, on_cpu, held).status == "fail"


# -- the control ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu-160m", "cuda-zero"])
def test_a_run_on_the_cpu_is_a_control(name: str) -> None:
    check = judge_control(ON_CPU, placed(name), w160m())
    assert check.status == "pass", check
    assert check.found == (
        "offload is red, graph: weight 111, operation 234, cache 24 on the CPU, none on CUDA "
        "devices; log: CPU 13"
    )


def test_a_recorded_run_on_the_cpu_of_a_cuda_build_is_a_control() -> None:
    assert judge_control(graph_of("zero"), SILENT, tiny()).status == "pass"


def test_a_control_whose_log_is_silent_is_one() -> None:
    check = judge_control(ON_CPU, SILENT, w160m())
    assert check.status == "pass" and check.found.endswith("log: says nothing of layers")


def of_kind(*kinds: Kind) -> Graph:
    return replace(ON_CPU, seen=tuple(ON_CPU.of(*kinds)))


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        (ON_GPU, "cuda-full"),
        (HALF, "cuda-half"),
        (ON_GPU, "cuda-zero"),
        (ON_CPU, "cuda-full"),
        (ON_CPU, "cuda-half"),
        (UNSEEN, "cuda-zero"),
        (Graph(), "cuda-zero"),
        (replace(ON_CPU, problem="broke off"), "cuda-zero"),
        (of_kind("weight", "operation"), "cuda-zero"),
        (of_kind("cache", "operation"), "cuda-zero"),
        (of_kind("weight", "cache"), "cuda-zero"),
    ],
)
def test_a_control_that_shows_less_or_uses_the_gpu_is_red(graph: Graph, name: str) -> None:
    """Else a change of llama.cpp would pass for a proof."""
    assert judge_control(graph, placed(name), w160m()).status == "fail"


@pytest.mark.parametrize("name", ["one", "two", "half", "four-of-five", "zero-64-tokens"])
def test_no_recorded_run_with_a_gpu_is_a_control(name: str) -> None:
    assert judge_control(graph_of(name), SILENT, tiny()).status == "fail"


@given(st.sampled_from(leaves("zero")))
def test_a_control_with_any_single_weight_or_cache_on_the_gpu_is_red(moved: str) -> None:
    graph = graph_of("zero", lambda leaf, buffer: "CUDA0" if leaf == moved else buffer)
    assert judge_control(graph, SILENT, tiny()).status == "fail"


# -- what the worker sends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (None, "the worker shows none"),
        ({}, "the worker shows none"),
        ({"graph": []}, "what the worker shows of it: the whole: found [], expected an object"),
        ({"graph": {"seen": [{"layer": 0}]}}, "what the worker shows of it: seen[0].layer: "),
        ({"graph": {"nodes": True}}, "what the worker shows of it: nodes: found true"),
    ],
)
def test_a_reply_without_a_graph_is_a_problem_in_words(reply: Any, problem: str) -> None:
    assert decoded(reply).problem.startswith(problem)
    assert judged(decoded(reply), placed("cuda-full")).status == "fail"


def test_the_output_layer_counts_as_one() -> None:
    check = judged(without_output(ON_GPU), SILENT)
    assert OUTPUT in check.found and "12 of 13 layers" in check.found
