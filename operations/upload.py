"""Files for a host, written so that nobody else can have a part in it.

With sudo, pyinfra's own upload goes through a file of a name that can be foretold in /tmp. Here the
content comes by the standard input of a command, which writes it beside its place, in a folder that
is the writer's own, compares its sha256 and renames it: its place never has half of it. The sha256
comes that way too: everybody can read a command line, and try passwords on it.
"""

from __future__ import annotations

import hashlib
from base64 import encodebytes
from collections.abc import Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

from pyinfra.api import QuoteString, StringCommand

from llamafleet.managed import Access, unfinished

CHUNK = 48 << 10
"""Bytes that are read and encoded at once; a multiple of 3, so that base64 pads the end alone."""
PART = 8 << 20
"""Bytes that one command carries, since each has a limit of time."""
END = "."
"""The line behind the content: a terminal, where sudo wants one, knows no end of input."""

# Each is one line without a "!", which tcsh as a login shell would take for its own. What is left
# of the input is read in any case, or its sender would wait.
_RECEIVE = (
    "umask 022; read -r sha; d=${p%/*}; "
    'bad() { cat >/dev/null; test -z "$1" || echo "$1" >&2; exit 1; }; '
    'mkdir -p -- "$d" || bad; '
    'test -O "$d/." || bad "$d: found a folder of somebody else; expected one of $(id -un); '
    'next: ls -ld $d"; '
    'umask 077; if test "$first" = 1; then rm -f -- "$p" || bad; fi; '
    f"{{ sed -n '/^[{END}]$/q;p' | base64 -d; }} >>\"$p\" || bad; "
)
_PLACE = (
    'has=$(sha256sum <"$p") || exit 1; has=${has%% *}; '
    'if test "$has" = "$sha"; then :; else rm -f -- "$p"; '
    'echo "$to: found sha256 $has of what came; expected $sha; next: run it again" >&2; '
    "exit 1; fi; "
    '{ test -z "$owner" || chown -h -- "$owner" "$p"; } && chmod "$mode" "$p" && '
    '{ sync "$p" 2>/dev/null || sync; } && mv -fT -- "$p" "$to" && '
    '{ sync "${to%/*}" 2>/dev/null || sync; }'
)


class Input(list[str]):
    """The sha256 of a file and a part of it as lines of a command's input, read when they are sent.

    pyinfra takes lists alone, and a list of these lines would be all of them in memory.
    """

    def __init__(self, source: bytes | Path, sha256: str, start: int, size: int) -> None:
        super().__init__([END])
        self.source, self.sha256, self.start, self.size = source, sha256, start, size

    def _open(self) -> IO[bytes]:
        return BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")

    def __iter__(self) -> Iterator[str]:
        with self._open() as file:
            yield self.sha256
            file.seek(self.start)
            left = self.size
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield encodebytes(chunk).decode("ascii")
        yield END


def write(
    content: bytes | Path, path: str, access: Access, sha256: str | None = None
) -> Generator[StringCommand, None, None]:
    """One file in place of what was there: a link of that name is replaced and not followed.

    `content`: itself, or a file of this controller, whose `sha256` must be given.
    """
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if isinstance(content, bytes):
        sha256 = hashlib.sha256(content).hexdigest()
    assert sha256 is not None
    values = {"p": unfinished(path), "to": path, "mode": f"{access.mode:o}"}
    values["owner"] = f"{access.user}:{access.group}" if access.user else ""
    for start in range(0, max(size, 1), PART):
        last = _PLACE if start + PART >= size else ":"
        first = {"first": "1" if start == 0 else ""}
        yield StringCommand(
            "env",
            *(QuoteString(f"{name}={value}") for name, value in {**values, **first}.items()),
            "sh -c",
            QuoteString(_RECEIVE + last),
            _stdin=Input(content, sha256, start, PART),
        )
