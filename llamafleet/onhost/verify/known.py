"""What the catalogue of failures knows of a run: its cause and fix in the words of a check."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from llamafleet.onhost.diagnose import diagnose
from llamafleet.onhost.verify.child import Outcome
from llamafleet.protocol.diagnose import Match
from llamafleet.protocol.result import Check

DIED = ("import", "runtime")
"""What can end a task of the worker."""
ENDED = ("runtime", "verify")
"""What the log of a run that ended can hold."""

OUT_OF_MEMORY = frozenset({"oom-context", "oom-weights", "oom-host"})
"""After one of these a smaller context may fit."""
LIBRARY_NOT_FOUND = "import-cuda-runtime"
TOOLKITS = ("/usr/local/cuda*/lib64", "/opt/llamafleet/toolkits/*/lib*")
"""Where a toolkit's libraries lie."""
_LIBRARY = re.compile(r"(?<![\w+.-])(lib[\w+.-]+\.so[\d.]*): ")


def of_task(outcome: Outcome) -> Match | None:
    """Why a task ended without a reply; None: not known."""
    return diagnose(f"{outcome.log}\n{outcome.problem or ''}", stages=DIED)


def with_match(check: Check, match: Match | None) -> Check:
    """The check with what is known of it; None: nothing, the check stays as it is."""
    if match is None:
        return check
    return replace(check, found=f"{check.found}; {match}", next=_on_this_host(match) or match.fix)


def explained(check: Check, *texts: str, stages: Collection[str] = ENDED) -> Check:
    """A red check with what is known of the texts, the narrow before the wide."""
    red = check.status == "fail"
    return with_match(check, diagnose(*texts, stages=stages) if red else None)


def priced(check: Check, log: str) -> Check:
    """A pass becomes a warning where the log of that run says at what price."""
    match = diagnose(log, stages=("verify",)) if check.status == "pass" else None
    return replace(with_match(check, match), status="warn") if match else check


def _on_this_host(match: Match) -> str:
    """What to do about a library that is there, where the loader does not look; "": it is not."""
    library = _LIBRARY.search(match.line) if match.id == LIBRARY_NOT_FOUND else None
    if library is None:
        return ""
    found = (path for place in TOOLKITS for path in Path("/").glob(f"{place[1:]}/{library[1]}"))
    folders = sorted({str(path.parent) for path in found})
    if not folders:
        return ""
    return (
        f"{library[1]} is in {', '.join(folders)}: deploy again, or put that folder into a file in "
        "/etc/ld.so.conf.d, followed by `ldconfig`"
    )
