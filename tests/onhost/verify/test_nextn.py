"""A model with layers for the prediction of further tokens, on the real library: healthy is green.

llama.cpp assigns them to a device as any layer, counts them apart and, where it is not asked for
them, does not load them. The library here is a CPU build: its log and graph stand for a GPU's once
the devices are named as a GPU's are.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from llamafleet.onhost.verify import llama_log, weights
from llamafleet.onhost.verify.checks.control import judge_control
from llamafleet.onhost.verify.checks.offload import graph_of, judge_log, judge_offload
from llamafleet.onhost.verify.child import Children
from llamafleet.onhost.verify.graph import INPUT, OUTPUT, Graph
from llamafleet.onhost.verify.weights import Weights
from tests.onhost.llama import PYTHON, needs_llama
from tests.onhost.verify import nextn

pytestmark = needs_llama
TRUNK = nextn.LAYERS - nextn.PREDICTING

Run = tuple[Weights, Graph, str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the file holds, what the graph shows and what the log says."""
    folder = tmp_path_factory.mktemp("nextn")
    model = nextn.write(folder / "nextn.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", PYTHON)
        ended = Children(folder, None).run("logits", models=[str(model)], n_gpu_layers=-1)
    (reply,) = ended.result["models"]
    (text,) = llama_log.by_model(ended.log)
    return weights.read(model), graph_of(reply), text


def on_gpu(run: Run) -> tuple[Graph, str]:
    """Graph and log of such a run on a GPU."""
    _, graph, text = run
    seen = tuple(row if row.layer == INPUT else replace(row, buffer="CUDA0") for row in graph.seen)
    text = text.replace("assigned to device CPU", "assigned to device CUDA0")
    text = text.replace("CPU_Mapped model buffer", "CUDA0 model buffer")
    return replace(graph, seen=seen), text.replace("CPU KV buffer", "CUDA0 KV buffer")


def test_they_are_assigned_and_not_computed(run: Run) -> None:
    held, graph, text = run
    assert (graph.n_layer, graph.n_layer_nextn) == (TRUNK, nextn.PREDICTING)
    assert set(llama_log.parse(text).layers) == set(range(nextn.LAYERS + 1))
    assert held.layers == nextn.LAYERS and held.computed == frozenset(range(TRUNK))
    layers = {row.layer for row in graph.of("weight")}
    assert layers == {INPUT, *map(str, held.computed), OUTPUT}


def test_the_weights_are_those_that_are_loaded(run: Run) -> None:
    """To the byte, the embedding that is also the output matrix among them: found before was the
    whole file, more than any healthy GPU held."""
    held, graph, text = run
    computed = sum(row.bytes for row in graph.of("weight") if row.layer != INPUT)
    assert held.device_bytes == computed
    (mib,) = llama_log.parse(text).model_mib.values()
    assert abs(mib - held.device_bytes / (1 << 20)) <= 0.005


def test_a_healthy_gpu_is_green(run: Run) -> None:
    held = run[0]
    graph, text = on_gpu(run)
    check = judge_offload(graph, llama_log.parse(text), held)
    assert check.status == "pass", check
    assert check.found.startswith("4 of 4 layers on CUDA devices (CUDA0 4)")
    assert "log: 5 of 5 layers on CUDA devices (CUDA0 5)" in check.found


def test_one_that_is_not_is_red(run: Run) -> None:
    held, graph, text = run
    assert judge_offload(graph, llama_log.parse(text), held).status == "fail"
    assert judge_control(graph, llama_log.parse(text), held).status == "pass"
    healthy, told = on_gpu(run)
    assert judge_log(llama_log.parse(text), healthy, held).says == "no"
    cut = told.replace("layer   3 assigned to device CUDA0", "layer   3 assigned to device CPU")
    assert judge_log(llama_log.parse(cut), healthy, held).says == "no"
