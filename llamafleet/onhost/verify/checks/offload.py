"""The whole model is on CUDA devices, by what llama.cpp says of each layer and buffer."""

from __future__ import annotations

from llamafleet.onhost.verify import known, llama_log
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import MIB, Place, task_failed
from llamafleet.onhost.verify.llama_log import Placement, listed
from llamafleet.protocol.result import Check, failed, passed

NAME = "offload"
READ_LOG = "read the worker's log beside progress.json"
"""Where the catalogue has no better advice."""
ROUNDING_MIB = 0.005
"""The log gives a buffer's size with two decimals."""


def judge_offload(placed: Placement, n_layer: int, device_bytes: int) -> Check:
    """`n_layer` is the model's number of repeating layers: with the output layer one more must be
    assigned to CUDA devices. `device_bytes` is the size of the tensors that a full offload puts
    there (all but the input embedding): the CUDA model buffers must hold at least that much.

    Neither the "offloaded N/M" line nor llama_supports_gpu_offload() counts: both are also right
    with every layer on the CPU.
    """
    wanted = n_layer + 1
    mib = device_bytes / MIB
    found = (
        f"{placed.cuda_layers} of {wanted} layers on CUDA devices "
        f"({listed(placed.layers_per_device)}), CUDA model buffers "
        f"{placed.cuda_model_mib:.2f} MiB ({listed(placed.model_mib)})"
    )
    expected = (
        f"{wanted} of {wanted} layers on CUDA devices, at least {mib:.2f} MiB in their buffers"
    )
    if placed.init_error:
        return failed(
            NAME,
            f"CUDA did not start: {placed.init_error}; {found}",
            expected,
            READ_LOG,
        )
    everywhere = set(placed.layers) == set(range(wanted))
    if not everywhere and not placed.layers:
        return failed(
            NAME,
            "no line that assigns a layer to a device",
            expected,
            f"{READ_LOG}; another version of llama.cpp may write other lines",
        )
    rounding = ROUNDING_MIB * max(1, len(placed.model_mib))
    if placed.cuda_layers != wanted or not everywhere:
        return failed(NAME, found, expected, READ_LOG)
    if placed.cuda_model_mib + rounding < mib:
        return failed(
            NAME,
            found,
            expected,
            f"the log assigns the layers but the memory is not on the GPU: rebuild, and {READ_LOG}",
        )
    return passed(NAME, found, expected)


def _place(place: Place) -> Check:
    model, ended = place.model(), place.generate()
    placed = llama_log.parse(ended.log)
    check = judge_offload(placed, model.weights.layers, model.weights.device_bytes)
    # A run that died is no proof, however well its layers were placed.
    if ended.problem and (check.status == "pass" or not placed.layers):
        return task_failed(NAME, ended)
    place.offloaded = check.status == "pass"
    return known.explained(check, ended.log)


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "all", "unnamed"}), needs=frozenset({"model"}))
