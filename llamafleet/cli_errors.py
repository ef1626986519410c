"""How the commands refuse what they are given."""

from __future__ import annotations

import click


class BadInput(click.ClickException):
    """One line on stderr and exit code 2."""

    exit_code = 2
