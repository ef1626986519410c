"""The command `llamafleet watch`: the GPUs of the fleet, the worst one first."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.plan import inventory_option
from llamafleet.cli.screen import picture, summary, table
from llamafleet.plans.trouble import USUAL, Line, by_trouble
from llamafleet.protocol.throttle import decode_throttle
from llamafleet.terminal import colours_wanted, masked_data

if TYPE_CHECKING:
    from llamafleet.cli.watching import Watch

SHORTEST_S, LONGEST_S = 0.5, 3600.0
INTERRUPTED = 130
"""As a shell has it: 128 and the number of SIGINT."""
ONCE_S = 60.0
"""For --once: until then each host has its record, or a reason why not."""
FIRST_S = 3.0
"""Until the first picture, while hosts are connected to."""
PLAIN_WIDTH = 200
"""Columns where there is no terminal."""
HOME, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"
SECOND_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
CURSOR_OFF, CURSOR_ON = "\x1b[?25l", "\x1b[?25h"
"""Of ECMA-48 and xterm, as every terminal of today has them."""


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@inventory_option
@click.option(
    "--interval",
    type=click.FloatRange(SHORTEST_S, LONGEST_S),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="From one refresh to the next.",
)
@click.option("--once", is_flag=True, help="Tell it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each refresh.")
@click.pass_context
def watch(
    context: click.Context,
    /,
    *,
    hosts: tuple[str, ...],
    inventory: Path,
    interval: float,
    once: bool,
    as_json: bool,
) -> None:
    """Show what the GPUs of the fleet, or of each HOST, do: a line for each, the worst one first.

    Each host is asked over its own connection, and nothing is installed or changed there. Ctrl-C
    ends it. Exit code 0: ended, or, with --once, nothing is wrong; 1: with --once, something
    is (docs/watching.md); 2: bad input.
    """
    if math.isnan(interval):  # Of no range, and yet none refuses it.
        raise BadInput("--interval: found nan; expected seconds; next: --interval 2")
    if not inventory.is_file():
        raise BadInput(f"found no inventory {inventory}; next: name one with --inventory FILE")
    from llamafleet.cli.watching import watching

    with watching(hosts, inventory, interval, 1 if once else None) as watched:
        if not once:
            return _repeat(watched, interval, as_json=as_json)
        watched.wait(ONCE_S)
        if watched.interrupted:
            context.exit(INTERRUPTED)
        lines = by_trouble(watched.lines())
        _print(lines, as_json=as_json)
    context.exit(0 if all(one.trouble in USUAL for one in lines) else 1)


def _repeat(watched: Watch, interval: float, *, as_json: bool) -> None:
    """Until it is interrupted."""
    live = sys.stdout.isatty() and not as_json and os.environ.get("TERM", "dumb") != "dumb"
    with _screen(live):
        _first(watched)
        while not watched.interrupted:
            begun = time.monotonic()
            lines = by_trouble(watched.lines())
            if live:
                _draw(lines)
            else:
                _print(lines, as_json=as_json)
            watched.wait(max(0.0, interval - (time.monotonic() - begun)))


def _first(watched: Watch) -> None:
    """Until each host has told something, or FIRST_S."""
    until = time.monotonic() + FIRST_S
    while (
        not watched.interrupted
        and time.monotonic() < until
        and any(one.trouble == "asked" for one in watched.lines())
    ):
        watched.wait(0.1)


def _print(lines: list[Line], *, as_json: bool) -> None:
    if as_json:
        told = {"version": 1, "time": time.time(), "lines": [_data(line) for line in lines]}
        click.echo(json.dumps(masked_data(told)))
    else:
        click.echo("\n".join([summary(lines), *table(lines, _size().columns), ""]))


def _size() -> os.terminal_size:
    return shutil.get_terminal_size((PLAIN_WIDTH, 24))


def _draw(lines: list[Line]) -> None:
    size = _size()
    colours = colours_wanted(sys.stdout)
    rows = picture(lines, size.columns, size.lines - 1, colours=colours)
    sys.stdout.write(HOME + "".join(f"{row}{TO_LINE_END}\n" for row in rows) + TO_SCREEN_END)
    sys.stdout.flush()


@contextmanager
def _screen(live: bool) -> Iterator[None]:
    """The terminal's second screen, as top(1) takes it; the first one comes back as it was."""
    if live:
        sys.stdout.write(SECOND_SCREEN + CURSOR_OFF)
    try:
        yield
    finally:
        if live:
            sys.stdout.write(CURSOR_ON + FIRST_SCREEN)
            sys.stdout.flush()


# -- as JSON ---------------------------------------------------------------------------------------

FIGURES = {
    "DCGM_FI_DEV_GPU_UTIL": "utilisation",
    "DCGM_FI_DEV_FB_USED": "used_mib",
    "DCGM_FI_DEV_FB_FREE": "free_mib",
    "DCGM_FI_DEV_FB_TOTAL": "total_mib",
    "DCGM_FI_DEV_POWER_USAGE": "power_w",
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": "power_limit_w",
    "DCGM_FI_DEV_SM_CLOCK": "sm_clock_mhz",
    "DCGM_FI_DEV_MEM_CLOCK": "memory_clock_mhz",
    "DCGM_FI_DEV_GPU_TEMP": "temperature_c",
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": "reasons",
}
"""Of dcgm_fields.h, in its units: MiB, %, W, MHz, degrees Celsius, bits."""


def _data(line: Line) -> dict[str, object]:
    """Labels and figures named as dcgm-exporter does where they mean the same."""
    told: dict[str, object] = {"Hostname": line.host, "trouble": line.trouble, "why": line.why}
    if gpu := line.gpu:
        told |= {"gpu": None if gpu.index is None else str(gpu.index), "UUID": gpu.uuid}
        told |= {"pci_bus_id": gpu.pci, "modelName": gpu.name}
        told |= {name: getattr(gpu, attribute) for name, attribute in FIGURES.items()}
        told["throttle_reasons"] = decode_throttle(gpu.reasons or 0)
        told |= {"limit_margin_c": gpu.margin_c, "recovery_action": gpu.recovery}
        told["faults"] = gpu.faults
    told["processes"] = line.processes and [asdict(one) for one in line.processes]
    told["services"] = [asdict(one) for one in line.services]
    told["tokens_per_second"] = line.tokens_s
    return told
