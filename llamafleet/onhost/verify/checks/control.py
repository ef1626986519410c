"""A run on the CPU turns the offload check red: proof that it can fail here."""

from __future__ import annotations

from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.checks.offload import judge_offload
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Evidence
from llamafleet.onhost.verify.llama_log import Placement, listed
from llamafleet.protocol.result import Check, failed, passed

NAME = "control"


def judge_control(placed: Placement, n_layer: int, device_bytes: int) -> Check:
    """Of a run with n_gpu_layers=0.

    Red alone is not enough, an unreadable log is red too: the log must say of every layer that it
    is on the CPU.
    """
    verdict = judge_offload(placed, n_layer, device_bytes)
    expected = "with n_gpu_layers=0 the offload check is red and all layers are on the CPU"
    found = (
        f"offload is {'red' if verdict.status == 'fail' else 'not red: ' + verdict.status}, "
        f"layers: {listed(placed.layers_per_device)}"
    )
    on_cpu = placed.layers_per_device == {"CPU": n_layer + 1}
    if verdict.status == "fail" and on_cpu:
        return passed(NAME, found, expected)
    return failed(
        NAME,
        found,
        expected,
        "the offload check proves nothing on this host: report it with the worker's logs",
    )


def _host(evidence: Evidence) -> Check:
    small, run = evidence.small(), evidence.control()
    _ = run.result
    placed = llama_log.parse(run.log)
    return judge_control(placed, small.weights.layers, small.weights.device_bytes)


SPEC = Spec(NAME, host=_host, needs=frozenset({"small model"}))
