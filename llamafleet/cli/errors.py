"""How the commands refuse what they are given."""

from __future__ import annotations

import click

from llamafleet.terminal import printable

RECORD = "llamafleet snapshot --script | ssh HOST sudo sh > FILE"
"""How a host is recorded over a connection of one's own."""


class BadInput(click.ClickException):
    """One line on stderr and exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """`message` may hold what a host or a file said."""
        super().__init__(printable(message))
