"""The commands `llamafleet plan` and `llamafleet snapshot`: a host's plan without touching it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from llamafleet.cli_errors import BadInput
from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import SnapshotError, parse
from llamafleet.facts.summary import summarize

# Settings and plans bring pyinfra with them, which no other command needs.
if TYPE_CHECKING:
    from llamafleet.settings import Settings

RECORD = "llamafleet snapshot --script | ssh HOST sudo sh > FILE"
TIMEOUT_S = 120


def _settings(
    _context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]
) -> Settings:
    """The settings of KEY=VALUE pairs, checked as those of an inventory are."""
    from llamafleet.settings import SettingsError, validate_fleet

    data: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise BadInput(f"--set {pair}: found no key and value; expected as --set scope=user")
        try:
            data[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadInput(f"--set {pair}: the value is no text, number or [list]") from error
    try:
        return validate_fleet({"--set": data})["--set"]
    except SettingsError as error:
        raise BadInput("; ".join(line.removeprefix("host ") for line in error.lines)) from error


set_option = click.option(
    *("--set", "settings"),
    multiple=True,
    metavar="KEY=VALUE",
    callback=_settings,
    help="A setting, as in an inventory; may be repeated.",
)


def _read(file: Path) -> str:
    """Text of the file, or of standard input for -."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}; next: {RECORD}") from error
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _parse(name: str, text: str) -> HostSnapshot:
    try:
        return parse(text.split("\n"))
    except SnapshotError as error:
        raise BadInput(f"{name}: {error}") from error


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print snapshot and plan as JSON.")
@click.pass_context
def plan(context: click.Context, file: Path, settings: Settings, as_json: bool) -> None:
    """Print the plan, with reasons, of the host that FILE was recorded on; - is standard input.

    FILE holds what `llamafleet snapshot` printed. Nothing but FILE is read: it is what to attach
    to a bug report. Exit code 0: nothing stands in the way; 1: a problem does; 2: bad input.
    """
    from llamafleet.plans.plan import explain, layout_for, make_plan

    host = _parse(str(file), _read(file))
    made = make_plan(host.hostname, settings, host, layout_for(settings, host))
    if as_json:
        click.echo(json.dumps({"snapshot": asdict(host), "plan": asdict(made)}, indent=1))
    else:
        click.echo("\n".join([*summarize(host), "", *explain(made)]))
    context.exit(1 if made.problems else 0)


@click.command()
@click.argument("host", required=False)
@click.option("--script", is_flag=True, help="Print the script that reads a host, and run nothing.")
@click.option(
    *("-o", "--output"), type=click.Path(dir_okay=False, path_type=Path), help="Write it to a file."
)
@set_option
def snapshot(host: str | None, script: bool, output: Path | None, settings: Settings) -> None:
    """Read HOST and print what was found, for `llamafleet plan`. HOST is @local.

    \b
    Another host is read over your own connection:
      llamafleet snapshot --script | ssh HOST sudo sh > FILE
    """
    from llamafleet.facts.snapshot import render
    from llamafleet.plans.plan import to_read

    if script == bool(host):
        raise BadInput("expected either @local or --script; next: llamafleet snapshot @local")
    if host and host != "@local":
        raise BadInput(f"found host {host}; expected @local; next: {RECORD}")
    text = render(*to_read(settings))
    if not script:
        text = _run(text)
        _parse("@local", text)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(str(error)) from error


def _run(script: str) -> str:
    """What the script prints on this machine."""
    try:
        done = subprocess.run(
            ["sh"],
            input=script.encode(),
            stdout=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"this machine can't be read: {error}") from error
    return done.stdout.decode("utf-8", errors="replace")
