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
    "--llama-version",
    metavar="VERSION",
    help="llama-cpp-python, as in the inventory's llama_version; else the one that it means.",
)
@click.option("--llama-sha256", metavar="HEX", help="Of its archive, as in the inventory.")
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
    llama_version: str | None,
    llama_sha256: str | None,
    slim: bool,
    cmake: bool,
    index_url: str | None,
) -> None:
    """Collect a wheelhouse in DIRECTORY."""
    # The settings bring pyinfra with them, which no other command needs.
    from llamafleet.inventory import SettingsError, validate_fleet
    from llamafleet.published import told_by_index

    given = {"llama_version": llama_version, "llama_sha256": llama_sha256}
    wished = {key: value for key, value in given.items() if value is not None}
    try:
        llama = validate_fleet({"--": wished})["--"]
    except SettingsError as error:
        lines = (line.removeprefix("host --: ") for line in error.lines)
        raise BadInput("; ".join(lines)) from error
    try:
        manifest = collect.build(
            directory.absolute(),
            version=llama.llama_version,
            sha256=llama.llama_sha256 or told_by_index(llama.llama_version, index_url).sha256,
            pythons=pythons,
            arches=arches,
            toolkits=toolkits,
            slim=slim,
            cmake=cmake,
            index_url=index_url,
        )
    except (WheelhouseError, OSError) as error:
        raise BadInput(str(error)) from error
    made = manifest.llama
    click.echo(f"llama-cpp-python {made.version}, published with sha256 {made.source_sha256}")
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
