"""What happens before pyinfra connects to a host: the run is refused, or made ready to fail well.

pyinfra connects first and reads deploy.py afterwards. Only config.py comes before that, so it calls
`enter`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import click
from pyinfra.api import Config, Inventory, State
from pyinfra.context import ctx_state

from llamafleet.inventory import SettingsError
from llamafleet.refusal import of_exit, of_hosts, of_name, of_options
from llamafleet.terminal import printable
from operations.ending import Ending, until_begun
from operations.run import PLAN_ONLY, Fleet, attend, fleet_of

DEPLOY, UNINSTALL = "deploy.py", "uninstall.py"
REFUSED = 2
"""Exit code of a run that was asked for in a way that can't be carried out."""


def enter() -> None:
    """Take part in this run of pyinfra's command line, if it is one of this project's deploys."""
    context = click.get_current_context(silent=True)
    asked: dict[str, Any] = context.params if context else {}
    deploys = {Path(name).name for name in asked.get("operations", ())}
    if context is None or deploys.isdisjoint({DEPLOY, UNINSTALL}):
        return
    until_begun()
    lines = of_options(asked["no_wait"])
    if not any(pair.startswith("ssh_hostname=") for pair in asked["data"]):
        lines += of_name(asked["inventory"])
    if lines:
        refuse(lines)
    state: State = ctx_state.get()  # type: ignore[no-untyped-call]
    context.call_on_close(lambda: _bad_inventory(state, asked["inventory"]))
    _before_connecting(state, asked, report=DEPLOY in deploys)


def refuse(lines: Iterable[str]) -> NoReturn:
    """End here: nothing was connected to."""
    click.echo("this run is refused, no host was touched:", err=True)
    for line in lines:
        click.echo(f"  {printable(line)}", err=True)
    sys.exit(REFUSED)


def _before_connecting(state: State, asked: dict[str, Any], report: bool) -> None:
    """Look at the inventory as soon as pyinfra has read it, with all that goes over its data."""
    init = state.init

    def looked_at(inventory: Inventory, config: Config | None, initial_limit: Any = None) -> None:
        fleet = _fleet(inventory, asked, report)
        if config is not None and not PLAN_ONLY.isdisjoint(sys.argv):
            # pyinfra asks whether to go on without a host that fails, and in a pipe ends there.
            config.FAIL_PERCENT = state.should_raise_failed_hosts = None
        init(inventory, config, initial_limit=initial_limit)
        attend(state, fleet)
        Ending(state, fleet).arm()

    state.init = looked_at  # type: ignore[method-assign]


def _fleet(inventory: Inventory, asked: dict[str, Any], report: bool) -> Fleet:
    lines = of_hosts(inventory, asked["limit"], asked["exclude"])
    try:
        fleet = fleet_of(inventory, report)
    except SettingsError as error:
        refuse([*lines, *error.lines])
    if lines:
        refuse(lines)
    return fleet


def _bad_inventory(state: State, name: str) -> None:
    """An inventory that is no sound Python is bad input too: pyinfra shows it, and ends with 1.

    One that ends python, as by exit(), would end this run with its own code, be it 0.
    """
    error = sys.exc_info()[1]
    if state.initialised:
        return
    if isinstance(error, click.ClickException):
        error.exit_code = REFUSED  # type: ignore[misc]
    elif isinstance(error, SystemExit) and error.code != REFUSED:
        refuse([of_exit(name, error)])
