"""The models that a host has, as the account sees them, and what is odd about them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llamafleet.facts.host import ModelFile
from tests.facts.fakehost import FakeHost

KEY = "a" * 16


@pytest.fixture
def proven(fake: FakeHost) -> Path:
    """A host with one model; its folder."""
    folder = fake.state / "gguf" / KEY
    fake.write(folder / "model.gguf", b"GGUF" * 100, mode=0o444)
    found = (folder / "model.gguf").stat()
    file = {"name": "model.gguf", "sha256": "", "size": 400, "changed_ns": found.st_ctime_ns}
    stamp = {"version": 1, "kind": "model", "key": KEY, "ok": True, "inputs": {"parts": ["x"]}}
    more = {"fetched_bytes": 9, "shape": None, "newer": 1}
    fake.write(folder / "model.json", json.dumps({**stamp, "files": [file], **more}))
    return folder


def test_a_model_is_there_as_it_was_proven(fake: FakeHost, proven: Path) -> None:
    changed = int((proven / "model.gguf").stat().st_ctime)
    model = fake.snapshot().models[KEY]
    assert model.files == {"model.gguf": ModelFile(400, changed)}
    assert model.changed == "" and model.product is not None
    assert model.product.fetched_bytes == 9


def test_what_changed_since_is_seen(fake: FakeHost, proven: Path) -> None:
    (proven / "model.gguf").chmod(0o644)
    (proven / "model.gguf").write_bytes(b"GGUF" * 99)
    assert "has changed" in fake.snapshot().models[KEY].changed
    (proven / "model.gguf").unlink()
    assert fake.snapshot().models[KEY].changed == "model.gguf is gone"


def test_a_link_of_ours_tells_of_the_file_behind_it(fake: FakeHost, proven: Path) -> None:
    theirs = fake.write(fake.folder / "theirs.gguf", b"x" * 77)
    (proven / "model.gguf").unlink()
    (proven / "model.gguf").symlink_to(theirs)
    assert fake.snapshot().models[KEY].files["model.gguf"].size == 77


def test_half_a_model_and_odd_things(fake: FakeHost, proven: Path) -> None:
    fake.write(proven.parent / "half" / "model.gguf.incoming", b"x" * 5)
    (proven.parent / "linked").symlink_to(proven)
    (proven.parent / "a\nb").mkdir()
    os.mkfifo(proven / "pipe.gguf")
    (proven / "loop.gguf").symlink_to("loop.gguf")
    fake.write(proven / "with a\ttab.gguf", b"x")
    models = fake.snapshot().models
    assert set(models) == {KEY, "half"} and set(models[KEY].files) == {"model.gguf"}
    assert models["half"].bytes == 5 and models["half"].changed == "it was never whole"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 5}', '{"ok": 1}'])
def test_a_proof_that_is_none(fake: FakeHost, proven: Path, text: str) -> None:
    fake.write(proven / "model.json", text)
    model = fake.snapshot().models[KEY]
    assert model.changed == "it was never whole" and model.files
