"""What must not be said: credentials in URLs and in HTTP headers, masked in any text."""

from __future__ import annotations

import re

MASK = "***"

_WORD = re.compile(r"\S+")
_QUERY_VALUE = re.compile(r"=[^&#]*")
_HEADER = re.compile(r"(?i)\b(authorization:[ \t]*[a-z]{1,20}[ \t]+)\S+")


def redacted(text: str) -> str:
    """The text with user, password and the values of queries masked in every URL.

    Masks rather too much than too little: within a word all between the first "://" and the last
    "@" goes, since a password may hold any other sign. Takes time linear in the text's length.
    """
    if "://" in text:
        text = _WORD.sub(lambda word: _url(word[0]), text)
    return _HEADER.sub(rf"\1{MASK}", text)


def _url(word: str) -> str:
    """One word without blanks, masked where it holds a URL."""
    before, mark, rest = word.partition("://")
    if not mark:
        return word
    _, at, after = rest.rpartition("@")
    rest = f"{MASK}@{after}" if at else rest
    address, question, query = rest.partition("?")
    if question:
        query = _QUERY_VALUE.sub(f"={MASK}", query) if "=" in query else MASK if query else ""
    return f"{before}{mark}{address}{question}{query}"
