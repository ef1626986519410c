"""Whether the kernel killed a process of this service because the host ran out of memory."""

from __future__ import annotations

import re
from pathlib import Path

GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
TOLD = (
    "the server: found that the kernel killed it for want of the host's memory; expected room for "
    "the model; next: sudo journalctl -k -g 'Out of memory|oom-kill', then a smaller model or less "
    "beside it"
)


def killed() -> int:
    """Processes of this control group that the kernel has killed for that; 0 also where there is no
    word of it."""
    try:
        told = _events(GROUP.read_text(encoding="utf-8")).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return 0
    found = re.search(r"^oom_kill (\d+)$", told, re.MULTILINE)
    return int(found[1]) if found else 0


def _events(groups: str) -> Path:
    """The file that counts them: of version 1 of the groups where memory has one of those."""
    older = re.search("^[0-9]+:memory:/(.*)$", groups, re.MULTILINE)
    if older:
        return GROUPS / "memory" / older[1] / "memory.oom_control"
    own = re.search("^0::/(.*)$", groups, re.MULTILINE)
    return GROUPS / (own[1] if own else "") / "memory.events"
