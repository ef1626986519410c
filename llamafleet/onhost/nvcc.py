"""What an nvcc tells of itself, and what the zipapp's table knows against it."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
from collections.abc import Collection, Mapping
from functools import cache

from llamafleet.protocol.miscompiles import Miscompile, from_rows, wrong_build

TABLE = "miscompiles.json"
"""Name of the table in the zipapp, beside this module; made from tables/miscompiles.yaml."""
ANSWER_S = 60.0
"""For nvcc to tell its version."""

_TOLD = re.compile(r"release (\d{1,4}\.\d{1,4})(?:, V(\d{1,4}\.\d{1,4}\.\d{1,6}))?")


@cache
def shipped() -> tuple[Miscompile, ...]:
    """The zipapp's own table; empty where these modules run from elsewhere."""
    try:
        data = pkgutil.get_data(__package__, TABLE)
    except OSError:
        data = None
    return from_rows(json.loads(data)) if data else ()


def miscompiles(build: str, version: str, capabilities: Collection[str]) -> str:
    """Why code of that nvcc is wrong on these GPUs; "": nothing is known against it."""
    return wrong_build(shipped(), build, version, capabilities)


def told(text: str) -> tuple[str, str]:
    """Version (13.2) and build (13.2.78) in the answer to --version; "" each where it has none."""
    found = _TOLD.search(text)
    return (found[1], found[2] or "") if found else ("", "")


def asked(path: str, env: Mapping[str, str]) -> tuple[str, str]:
    """The same of the nvcc there; "" each where it does not answer."""
    try:
        answer = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=dict(env),
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    return told(answer.stdout) if answer.returncode == 0 else ("", "")
