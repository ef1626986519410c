"""What the callback makes of llama.cpp's graphs, recorded on H200s and replayed."""

from __future__ import annotations

import ctypes
import json
import subprocess
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from llamafleet.onhost.verify import ggml
from llamafleet.onhost.verify.graph import BETWEEN, INPUT, OUTPUT, Graph, Recorder, weight_layer
from llamafleet.protocol.decode import decode
from tests.onhost.llama import PYTHON, ROOT, needs_llama
from tests.onhost.verify.graphs import Replay, graph_of, recorded, recorder_of, shown


def where(graph: Graph, kind: str) -> dict[str, set[str]]:
    """Buffers of that kind by layer."""
    found: dict[str, set[str]] = {}
    for row in graph.seen:
        if row.kind == kind:
            found.setdefault(row.layer, set()).add(row.buffer)
    return found


def counted(graph: Graph, kind: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in graph.seen:
        if row.kind == kind:
            found[row.buffer] = found.get(row.buffer, 0) + row.count
    return found


def test_each_layer_s_weights_and_caches_are_counted_once() -> None:
    graph = graph_of("one")
    assert graph.nodes == 130 and not graph.problem
    assert where(graph, "weight") == {
        INPUT: {"CPU_Mapped"},
        **{str(layer): {"CUDA0"} for layer in range(4)},
        OUTPUT: {"CUDA0"},
    }
    assert counted(graph, "weight") == {"CPU_Mapped": 1, "CUDA0": 4 * 9 + 2}
    assert where(graph, "cache") == {str(layer): {"CUDA0"} for layer in range(4)}
    assert counted(graph, "cache") == {"CUDA0": 8}
    assert where(graph, "operation")[INPUT] == {"CUDA_Host"}
    assert counted(graph, "operation") == {"CUDA_Host": 1, "CUDA0": 4 * 19 + 3 + 2}
    assert "copy" not in {row.kind for row in graph.seen}, "of an input, a copy is usual"


@pytest.mark.parametrize("name", ["one", "zero"])
def test_a_replay_shows_what_the_real_graph_showed(name: str) -> None:
    """The recorder's own summary, made on the same host: all but the sizes."""
    real = shown(f"tiny-{name}")
    rows = tuple(replace(row, bytes=0) for row in real.seen)
    assert tuple(replace(row, bytes=0) for row in graph_of(name).seen) == rows


def test_two_gpus_are_told_apart_node_by_node() -> None:
    graph = graph_of("two")
    split = {layer: {"CUDA0" if layer < "3" else "CUDA1"} for layer in "0123"}
    assert where(graph, "cache") == split
    assert where(graph, "weight") == {INPUT: {"CPU_Mapped"}, **split, OUTPUT: {"CUDA1"}}
    assert where(graph, "operation") == {
        **{INPUT: {"CUDA_Host"}, **split},
        **{OUTPUT: {"CUDA1"}, BETWEEN: {"CUDA1"}},
    }


def test_without_layers_on_the_gpu_nothing_is_there() -> None:
    graph = graph_of("zero")
    assert counted(graph, "weight") == {"CPU_Mapped": 4 * 9 + 3}
    assert counted(graph, "cache") == {"CPU": 8}
    assert set(counted(graph, "operation")) == {"CUDA_Host", "CPU"}


def test_a_prompt_shows_copies_in_place_of_the_weights() -> None:
    """The trap: nearly all results are in the GPU's memory, and no weight is."""
    graph = graph_of("zero-64-tokens")
    operations = counted(graph, "operation")
    assert operations["CUDA0"] > 3 * operations["CPU"]
    assert counted(graph, "copy") == {"CUDA0": 40}
    assert "CUDA0" not in counted(graph, "weight") and counted(graph, "cache") == {"CPU": 8}
    names = {name for row in graph.of("copy") for name in row.names}
    assert "CUDA0#blk.0.attn_q.weight#0" in names
    assert {row.layer for row in graph.of("copy")} == set("0123")


def test_an_operation_without_a_kernel_is_told_from_one_that_is_astray() -> None:
    assert not list(graph_of("zero").of("refused"))
    refused = graph_of("zero", kernels=False)
    assert counted(refused, "operation") == {"CUDA_Host": 1}, "the input layer's"
    assert where(refused, "refused")["3"] == {"CUDA_Host", "CPU"}


def test_a_buffer_that_the_cpu_reads_is_no_gpu_s() -> None:
    replay = Replay(recorded("one"))
    functions = replay.functions()
    functions.backend_buffer_is_host = lambda buffer: True
    recorder = Recorder(functions)
    recorder.on = True
    for node in replay.order:
        recorder.see(ctypes.addressof(node), True, None)
    assert "CUDA0 (host)" in {row.buffer for row in recorder.seen()}
    assert "CUDA0" not in {row.buffer for row in recorder.seen()}


def test_it_looks_only_while_it_should() -> None:
    replay = Replay(recorded("one"))
    recorder = Recorder(replay.functions())
    address = ctypes.addressof(replay.order[0])
    assert recorder.see(address, True, None) is False and recorder.nodes == 0
    recorder.on = True
    assert recorder.see(address, False, None) is False and recorder.nodes == 0
    assert recorder.see(address, True, None) is False and recorder.nodes == 1


def test_what_fails_in_the_callback_is_kept_and_ends_it() -> None:
    """An exception can't get out of there."""
    replay = Replay(recorded("one"))
    functions = replay.functions()
    recorder = Recorder(functions)
    recorder.on = True
    del functions.op_name
    assert recorder.see(ctypes.addressof(replay.order[0]), True, None) is False
    assert recorder.problem.startswith("AttributeError: ") and recorder.nodes == 1
    assert recorder.see(ctypes.addressof(replay.order[1]), True, None) is False
    assert recorder.nodes == 1


def test_views_without_an_end_are_a_problem() -> None:
    loop = ggml.Tensor(name=b"loop")
    loop.view_src = ctypes.addressof(loop)
    recorder = Recorder(Replay([]).functions())
    recorder.on = True
    recorder.see(ctypes.addressof(loop), True, None)
    assert "a view of a view" in recorder.problem


def test_names_of_a_model_can_t_reach_a_terminal_as_commands() -> None:
    nodes = [["MUL", "out", "CUDA0", [["blk.0.\x1b[2J.weight", "NONE", "CUDA0", None]]]]
    (weight,) = [row for row in recorder_of(Replay(nodes)).seen() if row.kind == "weight"]
    assert weight.names == ("blk.0. [2J.weight",)


@pytest.mark.parametrize(
    ("name", "op", "layer"),
    [
        ("blk.07.attn_q.weight", "MUL_MAT", "7"),
        ("token_embd.weight", "GET_ROWS", INPUT),
        ("per_layer_token_embd.weight", "GET_ROWS", INPUT),
        ("token_embd.weight", "MUL_MAT", OUTPUT),
        ("token_types.weight", "ADD", INPUT),
        ("token_embd_norm.weight", "MUL", BETWEEN),
        ("output_norm.weight", "MUL", OUTPUT),
        ("output.weight", "MUL_MAT", OUTPUT),
        ("rope_freqs.weight", "ROPE", BETWEEN),
    ],
)
def test_a_weight_s_layer(name: str, op: str, layer: str) -> None:
    assert weight_layer(name, op) == layer


def test_the_embedding_that_is_also_the_output_matrix_is_two_weights() -> None:
    nodes = [
        ["GET_ROWS", "embd", "CPU", [["token_embd.weight", "NONE", "CPU_Mapped", None]]],
        ["MUL_MAT", "result_output", "CPU", [["token_embd.weight", "NONE", "CPU_Mapped", None]]],
    ]
    seen = recorder_of(Replay(nodes)).seen()
    assert {(row.layer, row.kind) for row in seen} == {
        *((INPUT, "weight"), (INPUT, "operation")),
        *((OUTPUT, "weight"), (OUTPUT, "operation")),
    }


def test_what_prepares_the_input_is_the_input_layer_s() -> None:
    """A scaled embedding, a position added to it: no weight of a layer, no name of one."""
    nodes = [
        ["GET_ROWS", "embd", "CPU", [["token_embd.weight", "NONE", "CPU_Mapped", None]]],
        ["SCALE", "inp_scaled", "CPU", [["embd", "GET_ROWS", "CPU", None]]],
        ["CPY", "mask", "CPU", [["inp_mask", "NONE", "CPU", None]]],
        ["ADD", "mixed", "CPU", [["inp_scaled", "SCALE", "CPU", None]]],
        ["ADD", "other", "CPU", [["CPU#l_out-3#0", "NONE", "CPU", None]]],
        ["RMS_NORM", "norm-0", "CPU", [["mixed", "ADD", "CPU", None]]],
    ]
    rows = [row for row in recorder_of(Replay(nodes)).seen() if row.kind == "operation"]
    assert [(row.layer, row.count) for row in rows] == [(INPUT, 4), (BETWEEN, 1), ("0", 1)]


def test_an_operation_s_name_tells_more_than_a_weight_of_no_layer() -> None:
    nodes = [["ROPE", "Qcur-3", "CUDA0", [["rope_freqs.weight", "NONE", "CUDA0", None]]]]
    rows = {row.kind: row.layer for row in recorder_of(Replay(nodes)).seen()}
    assert rows == {"weight": BETWEEN, "operation": "3"}


def test_a_weight_without_a_buffer_is_told() -> None:
    nodes = [["MUL", "out", "CUDA0", [["blk.0.attn_q.weight", "NONE", "CUDA0", None]]]]
    replay = Replay(nodes)
    replay.tensors["blk.0.attn_q.weight", "NONE"].buffer = None
    (weight,) = [row for row in recorder_of(replay).seen() if row.kind == "weight"]
    assert (weight.layer, weight.buffer) == ("0", "no buffer")


def test_a_graph_reaches_the_parent_whole_and_small() -> None:
    graph = graph_of("zero-64-tokens")
    sent = json.dumps(asdict(graph))
    assert decode(Graph, json.loads(sent)) == graph
    assert len(sent) < 8000


# -- ggml itself ---------------------------------------------------------------------------------


def test_a_ggml_that_lacks_a_function_is_named() -> None:
    class Library(dict[str, object]):
        def __missing__(self, name: str) -> object:
            if name == "ggml_nbytes":
                raise AttributeError(name)
            return SimpleNamespace()

    with pytest.raises(ggml.Unreadable, match="ggml does not export ggml_nbytes"):
        ggml.opened(Library())


PROBE = """
import ctypes, sys
from llama_cpp._ggml import libggml
from llamafleet.onhost.verify import ggml
fields = list(ggml.Tensor._fields_)
{change}
class Tensor(ctypes.Structure):
    _fields_ = tuple(fields)
ggml.Tensor = Tensor
try:
    ggml.opened(libggml)
except ggml.Unreadable as error:
    print(error)
"""
CHANGES = {
    "": "",
    "fields[7] = ('src', ctypes.c_void_p * 11)": "a tensor of ggml has 336 bytes, 344 are known",
    "fields[1], fields[10] = fields[10], fields[1]": "another layout: buffer, data",
    "fields[2], fields[3] = fields[3], fields[2]": "another layout: ne, nb",
    "fields[4], fields[6] = fields[6], fields[4]": "another layout: op, flags",
    "fields[8], fields[9] = fields[9], fields[8]": "another layout: view_src, view_offs",
    "fields[11:] = [fields[12], fields[11], fields[13]]": "another layout: name",
    "fields[7] = ('src', ctypes.c_int64 * 10)": "another layout: src",
}


@needs_llama
@pytest.mark.parametrize(("change", "said"), CHANGES.items())
def test_a_layout_that_is_not_ggml_s_is_seen(change: str, said: str) -> None:
    """By the real library; its own layout is read without a complaint."""
    done = subprocess.run(
        [PYTHON, "-c", PROBE.format(change=change)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert said in done.stdout and bool(done.stdout) is bool(said)
