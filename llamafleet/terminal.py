"""Text of others, on a terminal or in a file that is kept."""

from __future__ import annotations

from llamafleet.protocol.redact import redacted


def printable(text: str) -> str:
    """The text without secrets, and with every character that can't be seen as its escape.

    Also line ends and tabs: what a host sends or a file holds can't move the cursor, colour or
    hide what stands around it.
    """
    text = redacted(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
