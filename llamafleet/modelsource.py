"""Where a served model comes from, as settings say it: a path, a file of the controller, a URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from llamafleet.addresses import LONGEST_URL, judged
from llamafleet.protocol.place import MOST_PARTS, PART_OF, key_of

Kind = Literal["path", "file", "url"]
"""path: on the host, and not llamafleet's; file: on the controller; url: from the web."""

FILE = "file:"
MOST_BYTES = 4 << 40
"""Of one part."""
LONGEST_PATH = 4096
_PATH = re.compile(r"/[A-Za-z0-9._+@:,=~/-]*\.gguf")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https?://[!-~]+")
"""With %20, say: it reaches no unit and no shell."""
ALLOWED = (
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
    """A model as a profile names it, of a split one the first part. Raises ValueError as below."""
    kind, parts = parts_of(model)
    return ModelSource(kind, parts, digests_of(model, sha256), sizes_of(model, sizes))


def parts_of(model: str) -> tuple[Kind, tuple[str, ...]]:
    """Where the parts of a model lie. Raises ValueError with what is allowed."""
    kind, first = _place(model)
    return kind, _parts(first)


def digests_of(model: str, sha256: Sequence[str]) -> tuple[str, ...]:
    """sha256 of each part. Raises ValueError with what is allowed."""
    kind, parts = parts_of(model)
    allowed = "64 hex digits in lower case" + _each(parts)
    # Of what comes from elsewhere nothing else says that it is what was wanted.
    wrong = not sha256 and kind == "url"
    wrong |= bool(sha256) and len(sha256) != len(parts)
    wrong |= not all(map(_SHA256.fullmatch, sha256)) or len(set(sha256)) < len(sha256)
    if wrong:
        raise ValueError(f"{allowed}; a model that has a URL needs it")
    return tuple(sha256)


def sizes_of(model: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Bytes of each part. Raises ValueError with what is allowed."""
    parts = parts_of(model)[1]
    wrong = bool(sizes) and len(sizes) != len(parts)
    if wrong or not all(0 < size <= MOST_BYTES for size in sizes):
        raise ValueError(f"a number of bytes{_each(parts)}, or no key")
    return tuple(sizes)


def _each(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return ""
    return f", a list of {len(parts)}, one for each part of {PurePosixPath(parts[0]).name}"


def _place(model: str) -> tuple[Kind, str]:
    if model.startswith(FILE):
        return "file", _of_controller(model.removeprefix(FILE))
    if _URL.fullmatch(model):
        if len(model) > LONGEST_URL:
            raise ValueError(f"a URL of at most {LONGEST_URL} characters")
        return "url", judged(model)
    if not _PATH.fullmatch(model) or len(model) > LONGEST_PATH:
        raise ValueError(ALLOWED)
    return "path", str(PurePosixPath(model))


def _of_controller(text: str) -> str:
    """The path of a file here, whatever the working directory is later."""
    wanted = text.isprintable() and text.endswith(".gguf")
    if not wanted or len(text) > LONGEST_PATH:
        raise ValueError("file:PATH of a .gguf file on the controller")
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
            f"the first part of a split model, of at most {MOST_PARTS}: its name leads to all "
            "others, as -00001-of-00003.gguf"
        )
    stem = first[: found.start()]
    return tuple(f"{stem}-{at:05d}-of-{count:05d}.gguf" for at in range(1, count + 1))
