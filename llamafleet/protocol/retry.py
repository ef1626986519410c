"""When a build that failed is tried once more on its own: where that is certain and safe."""

from __future__ import annotations

from collections.abc import Sequence

from llamafleet.protocol.diagnose import Match
from llamafleet.protocol.job import Retry

OUT_OF_MEMORY = "compile-killed"
"""Id of the failure after which fewer jobs need less memory, and change nothing else."""
COMPILE = "compile"
"""Phase of a build; what is killed in another was not the compiler."""
SHARE = 4
"""One in so many of the jobs is left: there is no third attempt that could be smaller still."""


def retry_for(found: Sequence[Match], phase: str, jobs: int) -> Retry | None:
    """What is changed for a second attempt; None: there is none.

    `found`: all that is known of the first one's log, the root first.
    """
    if phase != COMPILE or jobs < 2 or not found or found[0].id != OUT_OF_MEMORY:
        return None
    if any(match.rank == "cause" for match in found[1:]):
        return None  # It would stop the second attempt too.
    return Retry(found[0].id, found[0].line, before=jobs, jobs=max(1, jobs // SHARE))
