"""What an out of memory brings: a smaller placement, once, and visibly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llamafleet.onhost import oom as on_host
from llamafleet.protocol import oom
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import read_json, write_json
from llamafleet.protocol.serve import REDUCED, Reduction, ServeConfig


def read(config: ServeConfig) -> Reduction | None:
    """The one in force; None: there is none, or it was of another placement."""
    try:
        found = decode(Reduction, read_json(_file(config)))
    except DecodeError:
        return None
    return found if config.on_oom == "reduce" and found.was == config.placement else None


def forget(config: ServeConfig) -> None:
    """Remove one that is of another placement than the settings ask for."""
    _file(config).unlink(missing_ok=True)


def proposed(config: ServeConfig, lines: Sequence[str], gpus: Sequence[str]) -> Reduction | None:
    """Of a process that ended with these lines; None: it did not run out of memory, or nothing
    smaller would fit."""
    found = oom.read(lines)
    now = on_host.reduced(config, config.placement, found, gpus) if found else None
    if found is None or now is None:
        return None
    return Reduction(at=time.time(), reason=str(found), was=config.placement, now=now)


def write(config: ServeConfig, made: Reduction) -> None:
    write_json(_file(config), asdict(made))


def _file(config: ServeConfig) -> Path:
    return Path(config.folder, REDUCED)
