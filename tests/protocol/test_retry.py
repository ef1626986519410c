"""When a build is tried once more on its own."""

from __future__ import annotations

import pytest

from llamafleet.protocol.diagnose import causes, signatures_from
from llamafleet.protocol.retry import COMPILE, OUT_OF_MEMORY, retry_for
from llamafleet.tables import failures

SIGNATURES = signatures_from(failures.rows())
KILLED = "c++: fatal error: Killed signal terminated program cc1plus"


def test_fewer_jobs_where_the_kernel_ended_a_compiler() -> None:
    assert OUT_OF_MEMORY in {row["id"] for row in failures.rows()}
    made = {}
    for jobs in (2, 3, 4, 16, 33):
        retry = retry_for(causes(SIGNATURES, KILLED), COMPILE, jobs)
        assert retry and (retry.before, retry.line) == (jobs, KILLED)
        made[jobs] = retry.jobs
    assert made == {2: 1, 3: 1, 4: 1, 16: 4, 33: 8}


@pytest.mark.parametrize(
    ("log", "phase", "jobs"),
    [
        (KILLED, COMPILE, 1),
        (KILLED, "configure", 8),
        (f"x.o: No space left on device\n{KILLED}", COMPILE, 8),
        (f"{KILLED}\nnvcc fatal : Unsupported gpu architecture 'compute_89'", COMPILE, 8),
        ("x.c:3:1: error: no such type", COMPILE, 8),
        (KILLED.replace("Killed", "Terminated"), COMPILE, 8),
        ("", COMPILE, 8),
    ],
)
def test_what_would_fail_again_is_not_tried(log: str, phase: str, jobs: int) -> None:
    assert retry_for(causes(SIGNATURES, log), phase, jobs) is None
