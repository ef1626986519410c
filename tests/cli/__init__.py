"""The command line as a user calls it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from llamafleet.cli.main import main


def run(*arguments: object, stdin: str | None = None) -> Result:
    """`llamafleet ARGUMENTS` in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
