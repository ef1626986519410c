"""A run on the CPU turns the offload check red: proof that it can fail here."""

from __future__ import annotations

from collections import Counter

from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.checks.offload import graph_of, judge_offload
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Evidence
from llamafleet.onhost.verify.graph import Graph
from llamafleet.onhost.verify.llama_log import Placement, is_cuda, listed
from llamafleet.onhost.verify.weights import Weights
from llamafleet.protocol.result import Check, failed, passed

NAME = "control"


def judge_control(seen: Graph, placed: Placement, held: Weights) -> Check:
    """Of a run with n_gpu_layers=0.

    Red alone is not enough, a graph that can't be read is red too: the graph must show everything
    on the CPU, and the log must not say otherwise of any layer.
    """
    verdict = judge_offload(seen, placed, held)
    expected = "with n_gpu_layers=0 the offload check is red, and graph and log show the CPU alone"
    shown: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for row in seen.seen:
        shown[is_cuda(row.buffer)][row.kind] += row.count
    told = listed(placed.layers_per_device) if placed.layers else "says nothing of layers"
    graph = f"{listed(shown[False])} on the CPU, {listed(shown[True])} on CUDA devices"
    found = (
        f"offload is {'red' if verdict.status == 'fail' else 'not red: ' + verdict.status}, "
        f"graph: {seen.problem or graph}; log: {told}"
    )
    whole = shown[False].keys() >= {"weight", "cache", "operation"}
    on_cpu = not shown[True] and set(placed.layers.values()) <= {"CPU"}
    if verdict.status == "fail" and whole and on_cpu and not seen.problem:
        return passed(NAME, found, expected)
    return failed(
        NAME,
        found,
        expected,
        "the offload check proves nothing on this host: report it with the worker's logs",
    )


def _host(evidence: Evidence) -> Check:
    run = evidence.control()
    # Of the first model: that every one of them was on the CPU is asked where they are compared.
    first = run.result["models"][0] if run.result.get("models") else None
    log = next(iter(llama_log.by_model(run.log)), "")
    held = evidence.compared()[0].weights
    return judge_control(graph_of(first), llama_log.parse(log), held)


SPEC = Spec(NAME, host=_host, needs=frozenset({"small model"}))
