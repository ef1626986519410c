"""The command `llamafleet diagnose`: what a log says went wrong, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from shlex import quote

import click

from llamafleet.cli.errors import BadInput
from llamafleet.cli.plan import inventory_option
from llamafleet.protocol.diagnose import Match, causes, error_lines, fails, signatures_from
from llamafleet.tables import failures
from llamafleet.terminal import masked_data, printable

MOST_BYTES = 64 << 20
"""Of a log; of a long one both ends are read."""
FILE = "llamafleet diagnose FILE"


@click.command()
@click.argument("target", metavar="LOGFILE|HOST", type=click.Path(path_type=Path, allow_dash=True))
@inventory_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.pass_context
def diagnose(context: click.Context, target: Path, inventory: Path, *, as_json: bool) -> None:
    """Tell why a build, an installation or a run failed: the cause, its line, and what to do.

    LOGFILE holds what pip, CMake, a compiler, docker, llama.cpp, ollama or the kernel printed; - is
    standard input. Of a HOST of the inventory the log of its last failed job is read. All causes
    are told, a cause before what follows from it. Where none is known, the failing program's own
    lines are. Exit code 0: nothing wrong was found; 1: something is; 2: bad input.
    """
    if str(target) == "-" or os.path.exists(target):  # noqa: PTH110 - it refuses no name
        name, text = str(target), _read(target)
    else:
        from llamafleet.cli.host import read_failed_log

        name, text = read_failed_log(str(target), inventory)
    found = causes(signatures_from(failures.rows()), text)
    wrong = any(match.rank != "hint" for match in found) or fails(text)
    known = any(match.rank == "cause" for match in found)
    lines = error_lines(text) if wrong and not known else []
    if as_json:
        told = {"log": name, "wrong": wrong, "causes": list(map(asdict, found)), "lines": lines}
        click.echo(json.dumps(masked_data(told), indent=1))
    else:
        said = _told(name, found, lines, wrong=wrong)
        click.echo("\n".join(printable(line.expandtabs()) for line in said))
    context.exit(1 if wrong else 0)


def _told(name: str, found: Sequence[Match], lines: Sequence[str], *, wrong: bool) -> list[str]:
    if not wrong and not found:
        return [f"{name}: found nothing wrong"]
    words = {"cause": "cause", "consequence": "follows", "hint": "may be harmless"}
    told = [line for match in found for line in _one(name, match, words[match.rank])]
    if lines:
        told += [
            f"{name}: found a failure whose cause is not known; its own lines:",
            *(f"  {line}" for line in lines),
            "next: search for the first of them, without paths and names",
        ]
    return told


def _one(name: str, match: Match, word: str) -> tuple[str, ...]:
    return (
        f"{name}:{match.number}: {match.line}",
        f"  {word}: {match.id}: {match.cause}",
        f"  next: {match.fix}",
    )


def _read(file: Path) -> str:
    """Text of the file, or of standard input for -; PowerShell writes UTF-16."""
    try:
        with nullcontext(sys.stdin.buffer) if str(file) == "-" else file.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}; next: {FILE}") from error
    if len(raw) > MOST_BYTES:
        said = "COMMAND 2>&1 | tail -c 8M" if str(file) == "-" else f"tail -c 8M {quote(str(file))}"
        raise BadInput(
            f"{file}: found more than {MOST_BYTES} bytes; next: {said} | llamafleet diagnose -"
        )
    if not raw.strip():
        raise BadInput(f"{file}: found no text; next: COMMAND 2>&1 | llamafleet diagnose -")
    return raw.decode(_encoding(raw), errors="replace")


def _encoding(raw: bytes) -> str:
    """Not all of Windows writes the mark that says UTF-16; Latin letters tell by their NULs."""
    if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "utf-16"
    begin = raw[:1000]
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        if begin[first::2].count(0) > len(begin) / 3:
            return encoding
    return "utf-8"
