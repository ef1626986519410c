"""Whose a process is, by /proc."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

PROC = Path("/proc")
LONGEST = 60
"""Characters of a command that are shown."""
DEEPEST = 64
"""Generations between a process and the verification that started it."""


def described(pid: int) -> tuple[str, str]:
    """User and command; "" for what can't be seen: it ended, or is in another container."""
    return _user(pid), _command(pid)


def ours(pid: int) -> bool:
    """It is this process, or was started by it."""
    own, current = os.getpid(), pid
    for _ in range(DEEPEST):
        if current == own:
            return True
        if current <= 1:
            return False
        current = _parent(current)
    return False


def _user(pid: int) -> str:
    try:
        uid = (PROC / str(pid)).stat().st_uid
    except OSError:
        return ""
    try:
        return _shown(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return f"uid {uid}"


def _command(pid: int) -> str:
    for name, blank in (("cmdline", "\0"), ("comm", "\n")):
        try:
            text = (PROC / str(pid) / name).read_bytes().decode(errors="replace")
        except OSError:
            return ""
        if text.strip("\0\n "):
            return _shown(text.replace(blank, " ").strip())
    return ""


def _parent(pid: int) -> int:
    """0 where it is not to be seen."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        # The name in brackets before it may hold blanks and brackets of its own.
        return int(stat.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _shown(text: str) -> str:
    """On one line, without what a terminal would obey."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= LONGEST else f"{clean[:LONGEST]}..."
