"""After an out of memory the shape of the model and what is free decide what is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.onhost import oom
from llamafleet.protocol.fit import Gpu, Room
from llamafleet.protocol.oom import OutOfMemory
from llamafleet.protocol.serve import Placement, ServeConfig
from tests.fakenvml import Fake, fake_nvml, fake_nvml_library
from tests.fit import ggufs

__all__ = ["fake_nvml", "fake_nvml_library"]

WHOLE = Placement(-1, 16384)
FOUND = OutOfMemory("context", 0, 2048, "x")
BY_STEP = Placement(-1, 16384, "q8_0")


def config(tmp_path: Path, *, model: bool = True) -> ServeConfig:
    path = tmp_path / "m.gguf"
    if model:
        ggufs.write(path, ggufs.MODELS["dense"])
    return ServeConfig(
        version=1, profile="chat", host="h", verify="/v", folder="/f", libraries="/l",
        model=str(path), alias="chat", placement=WHOLE, address="127.0.0.1", port=8000, key=False,
    )  # fmt: skip


def test_what_is_free_decides(tmp_path: Path, fake_nvml: Fake) -> None:
    fake_nvml.devices(1)
    room = oom._room(config(tmp_path), ())
    assert room is not None and room.gpus[0].free_mib > 100_000
    assert room.reserve_mib == 1024
    found = oom.reduced(config(tmp_path), WHOLE, OutOfMemory("weights", 0, 4000, "x"), ())
    # All fits by the account, which has been proven wrong: as little as is needed is given up.
    assert found is not None and found.n_gpu_layers == -1


def test_little_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "_room", lambda *_: Room((Gpu(3500),), 1024))
    found = oom.reduced(config(tmp_path), WHOLE, FOUND, ())
    assert found is not None and 0 < found.n_gpu_layers < 33


def test_a_gpu_that_is_gone_or_a_model_that_can_t_be_read(tmp_path: Path, fake_nvml: Fake) -> None:
    fake_nvml.devices(1)
    assert oom.reduced(config(tmp_path), WHOLE, FOUND, ("GPU-gone",)) == BY_STEP
    assert oom.reduced(config(tmp_path / "none", model=False), WHOLE, FOUND, ()) == BY_STEP
