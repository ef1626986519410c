"""The catalogue of failures for code that runs from the source tree: a zipapp carries its own."""

from __future__ import annotations

import pytest

from llamafleet.onhost import diagnose
from llamafleet.protocol.diagnose import signatures_from
from llamafleet.tables import failures


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "shipped", lambda: signatures_from(failures.rows()))
