"""What the catalogue of failures knows of nvidia-smi's words and of the kernel's log."""

from __future__ import annotations

from functools import lru_cache

from llamafleet.facts.host import HostSnapshot
from llamafleet.protocol.diagnose import Match, Signature, diagnose, signatures_from
from llamafleet.tables import failures

MISMATCH = "nvml-driver-library-mismatch"
SAID = "detection"
"""The stage of what they say."""
NO_DRIVER = "nvidia-smi-no-driver"


@lru_cache
def _signatures() -> tuple[Signature, ...]:
    return signatures_from(row for row in failures.rows() if row["stage"] == SAID)


def known(*texts: str) -> Match | None:
    """What is known of the texts, the narrow before the wide; None: nothing."""
    return diagnose(_signatures(), *texts)


def is_known(text: str, id: str) -> bool:
    """The text is of that row of the catalogue."""
    match = known(text)
    return match is not None and match.id == id


def known_of(snapshot: HostSnapshot) -> Match | None:
    """What nvidia-smi says is nearer to the cause than the log of the whole boot."""
    driver = snapshot.driver
    return known(driver.smi_error, "\n".join(driver.kernel_log or ()))
