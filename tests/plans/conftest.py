"""Plans are tested on frozen tables; tests/tables/test_plans.py does it on the live ones."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _frozen(frozen_tables: None) -> None:
    """For each test of this folder."""
