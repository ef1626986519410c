"""Files of results and reports that are whole or absent."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from pathlib import Path

from llamafleet.terminal import masked_data


def to_set_aside(*paths: object) -> str:
    """The command that lets a file be what nobody reads, and keeps it."""
    names = [(shlex.quote(str(path)), shlex.quote(f"{path}.unreadable")) for path in paths]
    return "; ".join(f"mv {name} {other}" for name, other in names)


def to_look_at(path: object) -> str:
    """The command that says why a file can't be opened."""
    return f"ls -ld {shlex.quote(str(path))}"


def write_json(path: Path, data: object) -> None:
    """A reader sees the old file or the new one, never half of it, and no secret in it."""
    write_text(path, json.dumps(masked_data(data), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same of a text, as it is. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
