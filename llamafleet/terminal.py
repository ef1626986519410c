"""Text of others, on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every character that can't be seen as its escape: also line ends and tabs.

    What a host sends or a file holds can't move the cursor, colour or hide what stands around it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
