"""What to try after an out of memory, by what the model takes and what is free on the GPUs now."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.gpu import MIB, Nvml, NvmlUnavailable
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol import oom
from llamafleet.protocol.fit import Gpu, Room, Use
from llamafleet.protocol.serve import Placement, ServeConfig
from llamafleet.protocol.shape import Shape


def reduced(
    config: ServeConfig, placement: Placement, found: oom.OutOfMemory, uuids: Sequence[str]
) -> Placement | None:
    """The placement to try; None: nothing is left that may help. The process that failed is gone.

    `uuids`: of the GPUs that it saw, in its order; empty: all of the host.
    """
    shape = _shape(Path(config.model))
    room = _room(config, uuids)
    layers, use = shape.layers if shape else None, Use(flash_attention=config.flash_attention)
    return oom.reduced(placement, found, layers, shape, room, use=use)


def _shape(model: Path) -> Shape | None:
    try:
        return shape_of(modelfile.read(model))
    except (ModelError, OSError):
        return None


def _room(config: ServeConfig, uuids: Sequence[str]) -> Room | None:
    """None: NVML does not tell what is free."""
    try:
        with closing(Nvml()) as nvml:
            there = {gpu.uuid: gpu for gpu in nvml.gpus()}
            asked = [nvml.asker(there[uuid])("nvmlDeviceGetMemoryInfo") for uuid in uuids or there]
            gpus = tuple(Gpu(memory.free // MIB) for memory in asked)
    except (NvmlUnavailable, KeyError, AttributeError):
        return None
    use = Use(flash_attention=config.flash_attention)
    return Room(gpus, config.reserve_mib, use) if gpus else None
