"""The command `llamafleet upstream`: a new release of llama-cpp-python, before it is allowed."""

from __future__ import annotations

import re
import tempfile
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import click

from llamafleet.cli.errors import BadInput
from llamafleet.tables import parse_version
from llamafleet.tables.releases import Release, as_released, release, releases
from llamafleet.terminal import printable
from llamafleet.wheelhouse.index import Sources
from llamafleet.wheelhouse.manifest import WheelhouseError, sha256_of


@click.command()
@click.argument("version", required=False)
@click.option("--against", metavar="VERSION", help="A known release; else the one before it.")
@click.option("--index-url", metavar="URL", help="Package index; else pip's own, or PyPI.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder where the archives (75 MB each) are kept, and found again.",
)
@click.pass_context
def upstream(
    context: click.Context,
    version: str | None,
    against: str | None,
    index_url: str | None,
    keep: Path | None,
) -> None:
    """Say what VERSION of llama-cpp-python changed: options, log words, symbols that we use.

    Without VERSION it is the newest one at the index. It is compared with the newest known release
    that is older. Its sources are read, and nothing of them is
    run. Lines with "!" are about what this project uses. Exit code 0: there is none; 1: there are;
    2: bad input.
    """
    from llamafleet.upstream.archive import ArchiveError
    from llamafleet.upstream.compare import compare
    from llamafleet.upstream.row import row
    from llamafleet.upstream.source import read
    from llamafleet.upstream.used import used
    from llamafleet.wheelhouse.index import sources

    try:
        where = sources(index_url)
        named, version = bool(version), version or _newest(where)
        if not named and not against and release(version):
            click.echo(f"{version}: the newest at the index, and known: nothing to compare")
            return
        known = _known(against, version)
        with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory() as folder:
            new_file = _archive(where, version, Path(folder))
            old_file = _archive(where, known.version, Path(folder))
            sha256, old, new = sha256_of(new_file), read(old_file), read(new_file)
    except (ArchiveError, WheelhouseError, OSError) as error:
        raise BadInput(str(error)) from error
    if new.version != version:
        raise BadInput(f"{version}: found {new.version} in its archive; expected {version}")
    changes = compare(old, new, used())
    click.echo(f"llama-cpp-python {version} against {known.version} of {known.uploaded}")
    click.echo(f"sha256 {sha256}")
    for change in changes:
        click.echo(printable(f"{'!' if change.ours else ' '} {change.text}"))
    count = sum(change.ours for change in changes)
    click.echo(f"{len(changes)} changes, {count} of what is used here")
    if release(version) is None:
        click.echo("row for llamafleet/tables/releases.yaml (look up the day of its upload):")
        click.echo(row(new, sha256, date.today()))
    context.exit(1 if count else 0)


def _newest(where: Sources) -> str:
    from llamafleet.wheelhouse.collect import PROJECT
    from llamafleet.wheelhouse.index import newest

    return newest(where, PROJECT)


def _known(against: str | None, version: str) -> Release:
    """What a version is compared with. Raises BadInput."""
    names = ", ".join(one.version for one in releases())
    if re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", version) is None:
        raise BadInput(f"found {version}; expected a released version, as {releases()[0].version}")
    if (named := as_released(version)) != version:
        raise BadInput(f"found {version}; expected {named}, as that release is named")
    if against is not None:
        row = release(against)
        if row is None:
            raise BadInput(f"--against: found {against}; expected one of {names}")
        return row
    for row in releases():
        if row.order < parse_version(version):
            return row
    raise BadInput(
        f"found {version}, and none that is older is known; expected one after "
        f"{releases()[-1].version}; next: --against VERSION, one of {names}"
    )


def _archive(where: Sources, version: str, folder: Path) -> Path:
    """The source archive in that folder, with the hash that the table or the index tells.

    Raises WheelhouseError, OSError.
    """
    from llamafleet.wheelhouse.collect import PROJECT, sdist_names
    from llamafleet.wheelhouse.index import fetch_archive, published

    names, row = sdist_names(version), release(version)
    file = folder / names[0]
    sha256 = row.sha256 if row else published(where, PROJECT, names).sha256
    if file.is_file() and sha256_of(file) == sha256:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    fetch_archive(where, PROJECT, names, sha256, file)
    return file
