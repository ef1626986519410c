"""Addresses of the web that settings may name, as they may be shown and stored."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

LONGEST_URL = 2000
URL = r"^https?://[!-$&-~]+$"
WEB_URL = "an http:// or https:// URL"
_NOT_IN_URL = re.compile(r"[\"'$\\?#;<>`{|}^]")
"""Besides what means more: queries and fragments, which hold tokens and no part of an address."""


def judged(value: str) -> str:
    """The address, if it may be shown: its password would be in logs and readable on the host.

    Raises ValueError with what is allowed.
    """
    try:
        parts = urlsplit(value)
        address = (parts.hostname, parts.port)
    except ValueError:
        raise ValueError(f"{WEB_URL} with a host and a port that there can be") from None
    if "@" in parts.netloc:
        raise ValueError(f"{WEB_URL} without user and password: the setting netrc takes them")
    odd = _NOT_IN_URL.search(value) or "%" in parts.netloc
    if odd or (not address[0] and parts.scheme != "file"):
        raise ValueError(f"{WEB_URL} without query, fragment, quotes and a shell's signs")
    return value
