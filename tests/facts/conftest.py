from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.facts.fakehost import SHELLS, FakeHost


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    """A host without GPU, driver, compiler, python and systemd."""
    return FakeHost(tmp_path)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not shutil.which(SHELLS[name][0]):
        pytest.skip(f"this machine has no {SHELLS[name][0]}")
    return name
