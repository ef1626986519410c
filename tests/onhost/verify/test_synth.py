"""Synthetic models: whole, the same every time, never written twice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamafleet.onhost.verify import synth, weights
from llamafleet.protocol import models

STD = {"token_embd.weight": 0.5, "blk.0.ffn_down.weight": 1 / math.sqrt(512)}


EVERY = tuple(dict.fromkeys((*models.TYPES, *models.COMPARED)))


@pytest.mark.parametrize("type_", EVERY)
def test_every_type_is_a_whole_model(tmp_path: Path, type_: str) -> None:
    path = tmp_path / "tiny.gguf"
    about = synth.write(path, "tiny", type_)
    assert json.loads(synth.sidecar(path).read_text())["sha256"] == about["sha256"]
    assert about["bytes"] == path.stat().st_size <= models.estimate_bytes("tiny", type_)
    assert models.estimate_bytes("tiny", type_) < 1.05 * path.stat().st_size
    reader = gguf.GGUFReader(path)
    names = [tensor.name for tensor in reader.tensors]
    assert names == [tensor.name for tensor in models.tensors(models.SHAPES["tiny"], type_)]
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all(), tensor.name
        if tensor.name in STD:
            assert float(values.std()) == pytest.approx(STD[tensor.name], rel=0.04)
            # The mean of q4_0 and q8_0 is off by half a step of their quants.
            assert abs(float(values.mean())) < 0.12 * STD[tensor.name]
    assert {path.name, synth.sidecar(path).name} == {p.name for p in tmp_path.iterdir()}


def test_the_bytes_follow_from_the_seed(tmp_path: Path) -> None:
    first = synth.write(tmp_path / "a.gguf", "tiny", "q4_0", seed=1)
    again = synth.write(tmp_path / "b.gguf", "tiny", "q4_0", seed=1)
    other = synth.write(tmp_path / "c.gguf", "tiny", "q4_0", seed=2)
    assert first["sha256"] == again["sha256"] != other["sha256"]


@pytest.mark.parametrize("shape", models.SHAPES)
def test_every_shape_can_be_written(shape: str) -> None:
    dims = models.SHAPES[shape]
    assert dims.embd % dims.heads == 0 and dims.heads % dims.heads_kv == 0
    every = EVERY if dims.embd % 256 == 0 else models.TYPES
    for type_ in every:
        for tensor in models.tensors(dims, type_):
            size, count = models.BLOCKS[tensor.type]
            assert (
                tensor.columns % count == 0 and tensor.row_bytes == tensor.columns // count * size
            )
    tokens, scores, types = synth.vocabulary(dims.vocab)
    assert len(set(tokens)) == len(scores) == len(types) == dims.vocab


def test_sizes_of_the_big_shapes() -> None:
    """Llama 2 7B as q4_0 by llama-quantize has 3.56 GiB of tensors."""
    assert models.estimate_bytes("7b", "q4_0") / 2**30 == pytest.approx(3.56, abs=0.02)


def test_a_finished_model_is_not_written_again(tmp_path: Path) -> None:
    path, about = synth.ensure(tmp_path, "tiny", "q4_0")
    before = path.stat()
    assert synth.ensure(tmp_path, "tiny", "q4_0") == (path, about | {"version": 1})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_model_without_its_description_is_written_again(tmp_path: Path) -> None:
    """The description comes last: without it the file may be of a run that was cut off."""
    path, about = synth.ensure(tmp_path, "tiny", "q4_0")
    synth.sidecar(path).unlink()
    assert synth.ensure(tmp_path, "tiny", "q4_0")[1]["sha256"] == about["sha256"]


def test_a_changed_byte_is_named(tmp_path: Path) -> None:
    path, _ = synth.ensure(tmp_path, "tiny", "q4_0")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(synth.ModelError, match="damaged: sha256") as error:
        synth.ensure(tmp_path, "tiny", "q4_0")
    assert str(path) in error.value.next
    path.write_bytes(data[:-1])
    with pytest.raises(synth.ModelError, match="damaged: 15"):
        synth.ensure(tmp_path, "tiny", "q4_0")


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(synth.ModelError, match="can't write") as error:
        synth.ensure(Path("/proc/models"), "tiny", "q4_0")
    assert "MiB free" in error.value.next


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "deeper" / "m.gguf"
    assert synth.main(["--shape", "tiny", "--type", "q8_0", "-o", str(target)]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == target.stat().st_size
    assert synth.main(["--shape", "tiny", "-o", "/proc/m.gguf"]) == 1
    assert "/proc/m.gguf" in capsys.readouterr().err


def test_weights_are_read_from_the_file(tmp_path: Path) -> None:
    path, _ = synth.ensure(tmp_path, "tiny", "q4_0")
    read = weights.read(path)
    parts = models.tensors(models.SHAPES["tiny"], "q4_0")
    total = sum(tensor.bytes for tensor in parts)
    assert (read.layers, read.total_bytes) == (4, total)
    assert read.device_bytes == total - parts[0].bytes
    # 4 layers, keys and values, 2 heads of 64 numbers, 2 bytes each
    assert read.kv_bytes_per_token == 4 * 2 * 2 * 64 * 2
