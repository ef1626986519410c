"""A model that the settings name: whether the account that verifies can read it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import Layout
from llamafleet.plans.make import to_read
from llamafleet.settings import Settings
from tests.facts.fakehost import FakeHost


def test_the_model_is_looked_at() -> None:
    assert "/srv/m.gguf" in to_read(Settings(model="/srv/m.gguf"))[2]
    assert to_read(Settings(model="auto"))[2] == ()
    assert to_read(Settings(model="synthetic:tiny-f16"))[2] == ()


def test_what_is_no_file_that_can_be_read(fake: FakeHost) -> None:
    model = fake.write(fake.home / "m.gguf", "GGUF")
    fake.extra = (str(model), "$HOME/none.gguf", str(fake.home))
    assert fake.snapshot().unreadable == (str(fake.home / "none.gguf"), str(fake.home))


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that anybody may enter: those of pytest are its user's own."""
    folder = Path(tempfile.mkdtemp(prefix="llamafleet-model."))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def here(model: Path) -> HostSnapshot:
    """This machine, as a deploy with that model reads it."""
    script = render(Layout.system(), (), (str(model),))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    return parse(done.stdout.split("\n"))


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can leave its rights behind")
def test_with_the_rights_of_the_account_and_not_of_root(outside: Path) -> None:
    model = outside / "m.gguf"
    model.write_text("GGUF")
    model.chmod(0o644)
    assert here(model).unreadable == ()
    model.chmod(0o600)
    found = here(model)
    assert found.unreadable == found.extra_there == (str(model),)
    model.chmod(0o644)
    outside.chmod(0o700)
    assert here(model).unreadable == (str(model),)
