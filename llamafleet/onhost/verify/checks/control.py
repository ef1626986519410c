"""A run on the CPU turns the offload check red: proof that it can fail here."""

from __future__ import annotations

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
    rows = list(seen.of("weight", "copy", "cache", "operation", "refused"))
    on_gpu = [row for row in rows if is_cuda(row.buffer)]
    shown = sum(row.count for row in on_gpu)
    told = listed(placed.layers_per_device) if placed.layers else "says nothing of layers"
    found = (
        f"offload is {'red' if verdict.status == 'fail' else 'not red: ' + verdict.status}, "
        f"graph: {seen.problem or f'{sum(row.count for row in rows) - shown} things on the CPU'}, "
        f"{shown} on CUDA devices; log: {told}"
    )
    whole = {row.kind for row in rows} >= {"weight", "cache", "operation"}
    on_cpu = set(placed.layers.values()) <= {"CPU"}
    if verdict.status == "fail" and whole and not on_gpu and not seen.problem and on_cpu:
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


SPEC = Spec(NAME, host=_host)
