"""Options by which the commands of the history choose their records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from llamafleet.cli.errors import BadInput
from llamafleet.history.record import Test
from llamafleet.history.records import VARIABLE, Filter, History, HistoryError, some
from llamafleet.history.window import WindowError, parse
from llamafleet.protocol.result import Verdict
from llamafleet.terminal import printable

F = TypeVar("F", bound=Callable[..., Any])

PATTERNS = {
    "--host": (
        "hosts",
        "Hosts. In a PATTERN * stands for any text and ? for any sign; of several, one must match.",
    ),
    "--gpu": ("gpus", "GPUs, by UUID or name."),
    "--driver": ("drivers", "Drivers, by version."),
    "--toolkit": ("toolkits", "CUDA Toolkits, by version."),
    "--build": ("builds", "Builds, by fingerprint, by llama-cpp-python or by llama.cpp's commit."),
    "--model": ("models", "Models, by name."),
    "--run": ("runs", "Runs, by id."),
}
"""Options that may be repeated, with * and ? for any text and any sign."""


def filtered(command: F) -> F:
    """Give a command the options of a filter; it gets `history` and `wanted` for them.

    What is new in the folder of results is taken in before. A history that can't be used is bad
    input.
    """

    @wraps(command)
    def with_history(*args: Any, **options: Any) -> Any:
        wanted = _filter(options)
        history = History(options.pop("results"), options.pop("database"))
        try:
            take_in(history)
            return command(*args, history=history, wanted=wanted, **options)
        except HistoryError as error:
            raise BadInput(str(error)) from error

    decorated: Any = with_history
    for option in reversed(_options()):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def text_of(context: click.Context, option: click.Parameter, told: Any) -> Any:
    """What was told, one text or several; a byte that is none of UTF-8 is in no name."""
    for text in [told] if isinstance(told, str) else told:
        if not text.isprintable():
            raise click.BadParameter(f"found {printable(text)}; expected a text of one line")
    return told


def _options() -> list[Callable[[Any], Any]]:
    patterns = [
        click.option(name, field, metavar="PATTERN", multiple=True, help=text, callback=text_of)
        for name, (field, text) in PATTERNS.items()
    ]
    return [
        *patterns,
        click.option("--test", "tests", type=click.Choice(get_args(Test)), multiple=True,
                     help="Prompt processing or generation alone."),
        click.option("--verdict", "verdicts", type=click.Choice(get_args(Verdict)), multiple=True,
                     help="Figures of GPUs with that verdict."),
        click.option("--window", metavar="FROM:TO",
                     help="As now-7d:now, or with dates in UTC; an empty end is open."),
        click.option("--busy/--free", "busy", default=None,
                     help="Figures of GPUs that were not free, or of free ones alone."),
        click.option("--together/--single", "together", default=None,
                     help="Of several GPUs together, or of one (or of the CPU) alone."),
        results_option,
        database_option,
    ]  # fmt: skip


results_option = click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="The folder that deploy.py writes.",
)
database_option = click.option(
    "--database",
    envvar=VARIABLE,
    metavar="URL",
    default="",
    help="postgresql://USER@HOST/NAME or sqlite:///FILE instead of RESULTS/history.db; better "
    f"told by the variable {VARIABLE}, since a password in a command is seen by all.",
)


def _filter(options: dict[str, Any]) -> Filter:
    """Raises BadInput."""
    window = options.pop("window")
    try:
        since, until = (
            parse(window, datetime.now(timezone.utc)) if window is not None else (None, None)
        )
    except WindowError as error:
        raise BadInput(f"--window: {error}; next: --window now-7d:now") from error
    named = {field: options.pop(field) for field, _ in PATTERNS.values()}
    rest = {name: options.pop(name) for name in ("tests", "verdicts", "busy", "together")}
    return Filter(**named, **rest, since=since, until=until)


def take_in(history: History) -> None:
    """Keep what is new in the folder of results, and name what can't be read.

    Without the folder there must be a database elsewhere. Raises BadInput and HistoryError.
    """
    if history.results.is_dir():
        taken = history.take_in()
        for line in some(taken.aside) + some(taken.runs_aside):
            click.echo(f"Warning: {printable(line)}", err=True)
    elif not history.url:
        raise BadInput(
            f"{history.results}: found no such folder; expected the results of a fleet; "
            "next: cd to the project, or --results FOLDER"
        )
