"""The commands `llamafleet wheelhouse build` and `llamafleet wheelhouse check`."""

from __future__ import annotations

from pathlib import Path

import click

from llamafleet.cli.errors import BadInput
from llamafleet.protocol.pythons import PYTHONS
from llamafleet.terminal import printable
from llamafleet.wheelhouse import collect
from llamafleet.wheelhouse.manifest import WheelhouseError, load, verify

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def wheelhouse() -> None:
    """A folder with all that hosts without a package registry need."""


@wheelhouse.command()
@click.argument("directory", type=FOLDER)
@click.option(
    *("--python", "pythons"),
    multiple=True,
    type=click.Choice(PYTHONS),
    default=PYTHONS,
    show_default=True,
    help="Python on the hosts; may be repeated.",
)
@click.option(
    *("--arch", "arches"),
    multiple=True,
    type=click.Choice(collect.ARCHES),
    default=("x86_64",),
    show_default=True,
    help="Machine of the hosts; may be repeated.",
)
@click.option(
    *("--toolkit", "toolkits"),
    multiple=True,
    metavar="VERSION",
    help='CUDA Toolkit to add, as "13.0" (about half a GB); may be repeated.',
)
@click.option(
    "--slim/--no-slim",
    default=True,
    show_default=True,
    help="Leave out of llama-cpp-python's source what no CPU or CUDA build reads.",
)
@click.option(
    "--cmake/--no-cmake",
    default=True,
    show_default=True,
    help="Add CMake; without it hosts need their own, 3.24 or newer.",
)
@click.option(
    "--index-url",
    metavar="URL",
    help="Package index; else the one that pip is configured with, or PyPI.",
)
def build(
    *,
    directory: Path,
    pythons: tuple[str, ...],
    arches: tuple[str, ...],
    toolkits: tuple[str, ...],
    slim: bool,
    cmake: bool,
    index_url: str | None,
) -> None:
    """Collect a wheelhouse in DIRECTORY."""
    # The settings bring pyinfra with them, which no other command needs.
    from llamafleet.settings import LLAMA_SHA256, LLAMA_VERSION

    try:
        manifest = collect.build(
            directory.absolute(),
            version=LLAMA_VERSION,
            sha256=LLAMA_SHA256,
            pythons=pythons,
            arches=arches,
            toolkits=toolkits,
            slim=slim,
            cmake=cmake,
            index_url=index_url,
        )
    except (WheelhouseError, OSError) as error:
        raise BadInput(str(error)) from error
    size = sum(file.bytes for file in manifest.files.values())
    click.echo(f"{directory}: {len(manifest.files)} files, {size / 1e6:.1f} MB")


@wheelhouse.command()
@click.argument("directory", type=FOLDER)
def check(directory: Path) -> None:
    """Compare DIRECTORY with its manifest. Exit code 0: as listed; 2: not."""
    problems = verify(directory)
    for problem in problems:
        click.echo(printable(problem), err=True)
    if problems:
        raise BadInput(f"{len(problems)} problems; next: llamafleet wheelhouse build {directory}")
    click.echo(f"{directory}: {len(load(directory).files)} files, all as listed")
