"""Files on the controller that settings name: read whole, bounded, and without waiting."""

from __future__ import annotations

import netrc
import os
import re
import stat
from pathlib import Path

from llamafleet.protocol.serve import SHORTEST_KEY
from llamafleet.serving import LONGEST_KEY

MOST_BYTES = 1 << 20
"""Of such a file; keys and lists of passwords have some thousand."""

PRIVATE = 0o077
"""Permissions that a file with passwords must give to nobody."""

_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_WORD = re.compile(r"[!$-&(-\[\]-~][!#-&(-\[\]-~]{0,1023}")
"""Without quotes and backslashes, and no # at its begin: apt, pip and curl would differ."""


def small_file(file: Path, *, private: bool = False) -> bytes:
    """A regular file's content; `private`: one that belongs to us and that nobody else can read.

    Raises OSError, and ValueError with what was found instead.
    """
    with open(os.fspath(file), "rb", opener=_at_once) as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no regular file")
        if private and found.st_uid != os.geteuid():
            raise ValueError(f"it belongs to user {found.st_uid}, not to {os.geteuid()}")
        if private and found.st_mode & PRIVATE:
            raise ValueError(f"mode {stat.S_IMODE(found.st_mode):04o}; next: chmod 600 {file}")
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    return content


def _at_once(path: str, flags: int) -> int:
    """An open for reading that does not wait for a pipe's writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def api_key(file: Path) -> str:
    """The API key of a service: one line of printable ASCII without blanks, that we alone read.

    Raises OSError and ValueError as `small_file` does, without a word of the file itself.
    """
    text = small_file(file, private=True).removesuffix(b"\n").removesuffix(b"\r")
    if not text:
        raise ValueError("an empty file")
    if b"\n" in text or b"\r" in text:
        raise ValueError(f"{len(text.splitlines())} lines")
    if not re.fullmatch(rb"[!-~]+", text):
        raise ValueError("blanks or what is no printable ASCII in it")
    if not SHORTEST_KEY <= len(text) <= LONGEST_KEY:
        limits = f"{SHORTEST_KEY} to {LONGEST_KEY}"
        raise ValueError(
            f"{len(text)} characters, not {limits}; next: openssl rand -hex 32 >{file}"
        )
    return text.decode("ascii")


def credentials(file: Path) -> str:
    """The machines of a netrc(5) file with login and password, a line each, as all readers agree.

    Raises OSError and ValueError as `small_file` does, without a word of the file itself.
    """
    small_file(file, private=True)
    try:
        hosts = netrc.netrc(str(file)).hosts
    except netrc.NetrcParseError as error:
        raise ValueError(f"line {error.lineno} is not understood") from None
    except Exception as error:  # Its parser is not made for odd input, and may quote it.
        raise ValueError(f"it is not understood ({type(error).__name__})") from None
    if "default" in hosts:
        raise ValueError("an entry default, which would send a password to any machine")
    if not hosts:
        raise ValueError("no machine in it")
    for machine, (login, _, password) in hosts.items():
        if not _MACHINE.fullmatch(machine):
            raise ValueError("a machine that is no host name")
        if not (_WORD.fullmatch(login or "") and _WORD.fullmatch(password or "")):
            raise ValueError(
                f"machine {machine} without a login and a password of printable ASCII "
                "without blanks, quotes and backslashes"
            )
    return "".join(
        f"machine {machine} login {login} password {password}\n"
        for machine, (login, _, password) in hosts.items()
    )
