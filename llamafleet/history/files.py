"""Files of results that are whole or absent."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from llamafleet.terminal import masked_data


def write_json(path: Path, data: object) -> None:
    """A reader sees the old file or the new one, never half of it, and no secret in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(masked_data(data), file, indent=1)
            file.write("\n")
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
