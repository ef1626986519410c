"""Where a served model comes from, as settings say it: a path, a file of the controller, a URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from llamafleet.addresses import LONGEST_URL, URL, judged
from llamafleet.protocol.place import MOST_PARTS, PART_OF, key_of

Kind = Literal["path", "file", "url"]
"""path: on the host, and not llamafleet's; file: on the controller; url: from the web."""

FILE = "file:"
MOST_BYTES = 4 << 40
"""Of one part."""
LONGEST_PATH = 4096
_PATH = re.compile(r"/[A-Za-z0-9._+@:,=~/-]*\.gguf")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL = (
    "the absolute path of a .gguf file on the host (no blanks, quotes, $ or %), "
    "file:PATH of one on the controller, or an http:// or https:// URL of one"
)


@dataclass(frozen=True)
class ModelSource:
    """A model by its parts, in their order."""

    kind: Kind
    parts: tuple[str, ...]
    """Paths or URLs."""
    sha256: tuple[str, ...] = ()
    """Of each part; (): not stated."""
    sizes: tuple[int, ...] = ()
    """Bytes of each part; (): not stated."""

    @property
    def first(self) -> str:
        return self.parts[0]

    def key(self, sha256: Sequence[str] = ()) -> str:
        """Of its folder on a host. `sha256`: of files whose settings do not state it."""
        known = () if self.kind == "path" else self.sha256 or tuple(sha256)
        return key_of(known or self.parts)


def source_of(model: str, sha256: Sequence[str] = (), sizes: Sequence[int] = ()) -> ModelSource:
    """A model as a profile names it: of a split one the first part, with a sha256 for each part.

    Raises ValueError with the key, what was found there and what is allowed.
    """
    kind, first = _place(model)
    parts = _parts(first)
    for digest in sha256:
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"sha256: found {digest[:70]!r}; allowed: 64 hex digits in lower case")
    for size in sizes:
        if not 0 < size <= MOST_BYTES:
            raise ValueError(f"size: found {size}; allowed: bytes, at most {MOST_BYTES}")
    if kind == "url" and not sha256:
        raise ValueError(f"sha256: found none; allowed: one for each of {len(parts)} parts of it")
    for name, values in (("sha256", sha256), ("size", sizes)):
        if values and len(values) != len(parts):
            raise ValueError(
                f"{name}: found {len(values)}; allowed: {len(parts)}, one for each part of "
                f"{PurePosixPath(first).name}"
            )
    if len(set(sha256)) < len(sha256):
        raise ValueError("sha256: found one twice; allowed: that of each part, in their order")
    return ModelSource(kind, parts, tuple(sha256), tuple(sizes))


def _place(model: str) -> tuple[Kind, str]:
    if model.startswith(FILE):
        return "file", _of_controller(model.removeprefix(FILE))
    if re.match(URL, model):
        if len(model) > LONGEST_URL:
            raise ValueError(f"model: found {len(model)} characters; allowed: {LONGEST_URL}")
        try:
            judged(model)
        except ValueError as error:
            # The address may hold what nobody should see.
            raise ValueError(f"model: found another one; allowed: {error}") from None
        return "url", model
    if not _PATH.fullmatch(model) or len(model) > LONGEST_PATH:
        raise ValueError(f"model: found {model[:100]!r}; allowed: {_MODEL}")
    return "path", str(PurePosixPath(model))


def _of_controller(text: str) -> str:
    """The path of a file here, whatever the working directory is later."""
    wanted = text.isprintable() and text.endswith(".gguf") and not text.startswith("//")
    if not wanted or len(text) > LONGEST_PATH:
        raise ValueError(f"model: found {FILE}{text[:100]!a}; allowed: file:PATH of a .gguf file")
    # Not resolved: the parts of a split model may be links to files of other names.
    return str(Path(text).expanduser().absolute())


def _parts(first: str) -> tuple[str, ...]:
    """All parts by the name of the first one."""
    found = PART_OF.search(first)
    if found is None:
        return (first,)
    number, count = int(found[1]), int(found[2])
    if number != 1 or not 1 <= count <= MOST_PARTS:
        raise ValueError(
            f"model: found part {number} of {count}; allowed: the first part, of {MOST_PARTS} at "
            "most; its name leads to all others"
        )
    stem = first[: found.start()]
    return tuple(f"{stem}-{at:05d}-of-{count:05d}.gguf" for at in range(1, count + 1))
