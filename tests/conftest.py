"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llamafleet.tables import overlaid
from tests.frozen_tables import FROZEN


@pytest.fixture
def frozen_tables() -> Iterator[None]:
    with overlaid(FROZEN):
        yield
