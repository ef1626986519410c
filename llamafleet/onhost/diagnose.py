"""The known failures that the zipapp carries, for jobs and for the verification."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Collection
from functools import cache

from llamafleet.protocol.diagnose import Match, Signature, signatures_from
from llamafleet.protocol.diagnose import causes as causes_by
from llamafleet.protocol.diagnose import diagnose as diagnose_by

TABLE = "failures.json"
"""Name of the table in the zipapp, beside this module; made from tables/failures.yaml."""

OF_JOBS = ("toolkit", "deps", "configure", "compile", "link", "import")
"""What a job that installs or builds can end in."""


@cache
def shipped() -> tuple[Signature, ...]:
    """The zipapp's own table; empty where these modules run from elsewhere."""
    try:
        data = pkgutil.get_data(__package__, TABLE)
    except OSError:
        data = None
    return signatures_from(json.loads(data)) if data else ()


def causes(text: str, stages: Collection[str]) -> tuple[Match, ...]:
    """All that the zipapp's table knows of a text, the root first."""
    return causes_by(shipped(), text, stages)


def diagnose(*texts: str, stages: Collection[str]) -> Match | None:
    """What the zipapp's table knows of the texts, the narrow before the wide."""
    return diagnose_by(shipped(), *texts, stages=stages)
