"""How the commands refuse what they are given."""

from __future__ import annotations

import click

RECORD = "llamafleet snapshot --script | ssh HOST sudo sh > FILE"
"""How a host is recorded over a connection of one's own."""


class BadInput(click.ClickException):
    """One line on stderr and exit code 2."""

    exit_code = 2
