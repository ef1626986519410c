"""The commands `llamafleet plan` and `llamafleet snapshot`: a host's plan without touching it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from llamafleet.cli.errors import RECORD, BadInput
from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import SnapshotError, parse
from llamafleet.facts.scrub import scrub
from llamafleet.facts.summary import summarize
from llamafleet.terminal import masked, masked_data, printable

# Settings and plans bring pyinfra with them, which no other command needs.
if TYPE_CHECKING:
    from llamafleet.settings import Settings

MOST_BYTES = 32 << 20
"""Of a snapshot; what a host tells is far below."""


class _Values(yaml.SafeLoader):
    """YAML without its numbers to base 60, for which it takes a bus id as 0000:41:00.0."""


def _number(loader: _Values, node: yaml.ScalarNode) -> str | float:
    return node.value if ":" in node.value else loader.construct_yaml_float(node)


_Values.add_constructor("tag:yaml.org,2002:float", _number)


def _pairs(
    _context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, object]:
    """Settings of KEY=VALUE pairs."""
    data: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise BadInput("--set: found no key and value; expected as --set scope=user")
        try:
            data[key] = yaml.load(text, _Values)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            # The value may be a password, and is not said.
            raise BadInput(f"--set {key}: the value is no text, number or [list]") from error
    return data


def validated(data: dict[str, object]) -> Settings:
    """The same, checked as those of an inventory are."""
    from llamafleet.inventory import SettingsError, validate_fleet

    try:
        return validate_fleet({"--set": data})["--set"]
    except SettingsError as error:
        raise BadInput("; ".join(line.removeprefix("host ") for line in error.lines)) from error


def looked_up(settings: Settings) -> tuple[Settings, list[str]]:
    """With the hash of the version, and a line where no table has it. Raises BadInput."""
    from llamafleet.inventory import SettingsError
    from llamafleet.published import looked_up as of_fleet

    try:
        found, lines = of_fleet({"--set": settings})
        return found["--set"], lines
    except SettingsError as error:
        raise BadInput("; ".join(line.removeprefix("host ") for line in error.lines)) from error


set_option = click.option(
    *("--set", "settings"),
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="A setting, as in an inventory; may be repeated.",
)

inventory_option = click.option(
    *("--inventory", "inventory"),
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("inventory"),
    show_default=True,
    help="Where a HOST is looked up, with its settings.",
)


def _read(file: Path) -> str:
    """Text of the file, or of standard input for -."""
    try:
        with nullcontext(sys.stdin.buffer) if str(file) == "-" else file.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}; next: {RECORD}") from error
    if len(raw) > MOST_BYTES:
        raise BadInput(f"{file}: found more than {MOST_BYTES} bytes; next: {RECORD}")
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _parse(name: str, text: str) -> HostSnapshot:
    try:
        return parse(text.split("\n"))
    except SnapshotError as error:
        raise BadInput(f"{name}: {error}") from error


@click.command()
@click.argument("target", metavar="FILE|HOST", type=click.Path(path_type=Path, allow_dash=True))
@set_option
@inventory_option
@click.option("--json", "as_json", is_flag=True, help="Print snapshot and plan as JSON.")
@click.pass_context
def plan(
    context: click.Context,
    target: Path,
    settings: dict[str, object],
    inventory: Path,
    as_json: bool,
) -> None:
    """Print verdict and plan, with reasons, of a recorded host or of one in the inventory.

    FILE holds what `llamafleet snapshot` printed, - is standard input. Nothing else is read then:
    it is what to attach to a bug report. A HOST is read over its own connection, and not changed.
    Exit code 0: nothing stands in the way; 1: a problem does; 2: bad input.
    """
    from llamafleet.inventory import read_supplies
    from llamafleet.plans.make import explain, layout_for, make_plan

    if str(target) == "-" or os.path.exists(target):  # noqa: PTH110 - it refuses no name
        chosen, text = validated(settings), _read(target)
    else:
        from llamafleet.cli.host import read_host

        chosen, text = read_host(str(target), inventory, settings)
    chosen = looked_up(chosen)[0]
    host = _parse(str(target), text)
    supplies = read_supplies({host.hostname: chosen})[host.hostname]
    layout = layout_for(chosen, host)
    made = make_plan(host.hostname, chosen, host, layout, supplies=supplies)
    if as_json:
        told = masked_data({"snapshot": asdict(host), "plan": asdict(made)})
        click.echo(json.dumps(told, indent=1))
    else:
        click.echo("\n".join(map(printable, [*summarize(host), "", *explain(made)])))
    context.exit(1 if made.problems else 0)


@click.command()
@click.argument("host", required=False)
@click.option("--script", is_flag=True, help="Print the script that reads a host, and run nothing.")
@click.option(
    "--scrub",
    "scrubbed",
    is_flag=True,
    help="Put made-up names in the place of hosts, users, addresses, UUIDs and serial numbers.",
)
@click.option(
    *("-o", "--output"), type=click.Path(dir_okay=False, path_type=Path), help="Write it to a file."
)
@set_option
@inventory_option
def snapshot(
    *,
    host: str | None,
    script: bool,
    scrubbed: bool,
    output: Path | None,
    settings: dict[str, object],
    inventory: Path,
) -> None:
    """Read HOST and print what was found, for `llamafleet plan`.

    HOST is @local, for this machine as this user, or a host of the inventory. Any other one is
    read over your own connection:

    \b
      llamafleet snapshot --script | ssh HOST sudo sh > FILE
    """
    from llamafleet.facts.snapshot import TIMEOUT_S, render
    from llamafleet.plans.make import to_read

    if script == bool(host):
        raise BadInput("expected either a HOST or --script; next: llamafleet snapshot @local")
    if host and host != "@local":
        from llamafleet.cli.host import read_host

        text = read_host(host, inventory, settings)[1]
    else:
        text = render(*to_read(validated(settings)))
        text = text if script else _run(text, TIMEOUT_S)
    if not script:
        text = masked(text)
        _parse(str(host), text)
        text = scrub(text).text if scrubbed else text
    if output is None:
        told = text.split("\n")
        if not script and sys.stdout.isatty():
            told = [printable(line.expandtabs()) for line in told]
        click.echo("\n".join(told), nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(str(error)) from error


def this_machine(settings: Settings) -> HostSnapshot:
    """Snapshot of this machine, read as this user. Raises BadInput."""
    from llamafleet.facts.snapshot import TIMEOUT_S, render
    from llamafleet.plans.make import to_read

    return _parse("@local", _run(render(*to_read(settings)), TIMEOUT_S))


def _run(script: str, timeout_s: int) -> str:
    """What the script prints on this machine."""
    try:
        done = subprocess.run(
            ["sh"],
            input=script.encode(),
            stdout=subprocess.PIPE,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"this machine can't be read: {error}") from error
    return done.stdout.decode("utf-8", errors="replace")
