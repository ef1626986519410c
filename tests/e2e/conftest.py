"""What the end-to-end tests share, once per module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.booted import BootedHost, boot
from tests.e2e.runs import checkout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh checkout to run the real commands in."""
    return checkout(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def booted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedHost]:
    """A real host with the name that the module gives as HOST."""
    host = boot(request.module.HOST, tmp_path_factory.mktemp("hosts"))
    yield host
    host.stop()
