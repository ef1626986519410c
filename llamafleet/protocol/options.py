"""CMake options of llama.cpp's own name space."""

from __future__ import annotations

import re

OWN = re.compile(r"(?:GGML|LLAMA|LLAVA|MTMD)_\w+")
"""Their names; others are CMake's, or a tool's."""

READ_UNDECLARED = frozenset(
    f"{name}_BUILD_{what}" for name in ("GGML", "LLAMA") for what in ("COMMIT", "NUMBER")
)
"""Variables that the tree reads where they are set, and never declares."""
