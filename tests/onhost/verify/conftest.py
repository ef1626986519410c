from __future__ import annotations

from tests.onhost.catalogue import catalogue

__all__ = ["catalogue"]
