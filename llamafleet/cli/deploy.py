"""The commands `llamafleet check` and `llamafleet deploy`: an inventory checked, or carried out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from llamafleet.cli.errors import BadInput
from llamafleet.terminal import printable

DEPLOY = "deploy.py"
INVENTORY = "inventory"


@click.command()
@click.argument("inventory", default=INVENTORY, type=click.Path())
def check(inventory: str) -> None:
    """Check the settings of every host in INVENTORY; no host is connected to.

    INVENTORY is a file, or hosts as pyinfra takes them: @local, or a,b. Exit code 0: all are
    sound; 2: they are not, with one line for each error.
    """
    # pyinfra's command line patches the standard library, which no other command needs.
    from llamafleet.cli.host import loaded
    from llamafleet.inventory import SettingsError, validate_fleet
    from llamafleet.published import looked_up
    from llamafleet.refusal import of_hosts, of_name

    lines, told, count = of_name(inventory), [], 0
    if not lines:
        with loaded(inventory) as (_, hosts):
            lines, count = of_hosts(hosts, (), ()), len(hosts)
            try:
                data = {h.name: h.data.dict() for h in hosts}  # type: ignore[no-untyped-call]
                told = looked_up(validate_fleet(data))[1]
            except SettingsError as error:
                lines += error.lines
    for line in lines:
        click.echo(printable(line), err=True)
    if lines:
        raise BadInput(f"{inventory} is refused: {len(lines)} errors")
    for line in told:
        click.echo(line)
    click.echo(f"{printable(inventory)}: the settings of {count} hosts are sound")


@click.command()
@click.option("--inventory", default=INVENTORY, show_default=True, type=click.Path())
@click.option("--limit", multiple=True, metavar="HOST", help="Host or group; may be repeated.")
@click.option("--dry", is_flag=True, help="Say what would be done on each host, and why.")
@click.option("-y", "--yes", is_flag=True, help="Do it, without the question before.")
def deploy(inventory: str, limit: tuple[str, ...], dry: bool, yes: bool) -> None:
    """Run pyinfra INVENTORY deploy.py, in the folder that holds both.

    Exit code 0: every host is as wanted, or with --dry: nothing stands in the way of any; 1: not;
    2: bad input, and no host was connected to; 130: interrupted.
    """
    program = Path(sys.executable).parent / "pyinfra"
    for file, why in ((program, "pyinfra"), (Path(DEPLOY), "the project's folder")):
        if not file.is_file():
            raise BadInput(f"{file}: found no such file; expected {why}; next: cd to the project")
    options = [word for name in limit for word in ("--limit", name)]
    options += ["--dry"] * dry + ["-y"] * (yes and not dry)
    # In this process's place: signals, terminal and exit code are its own.
    os.execv(program, [str(program), *options, inventory, DEPLOY])
