"""Versions of llama-cpp-python that are not known here: their hash is looked up at the index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llamafleet.inventory import SettingsError
from llamafleet.settings import Settings
from llamafleet.tables.releases import release
from llamafleet.terminal import printable
from llamafleet.wheelhouse import manifest as house
from llamafleet.wheelhouse.collect import PROJECT, sdist_names
from llamafleet.wheelhouse.index import Published, published, sources
from llamafleet.wheelhouse.manifest import WheelhouseError


@dataclass(frozen=True)
class _Place:
    """Where a version is looked up, as the settings say."""

    version: str
    wheelhouse: str | None
    index_url: str | None
    netrc: str | None


def looked_up(fleet: Mapping[str, Settings]) -> tuple[dict[str, Settings], list[str]]:
    """Sound settings with the hash of each archive, and a line for each that no table has.

    A known version and a hash that was given ask nobody. Each other one is asked for once, at the
    index of its host, by way of this machine's proxies and certificates. Raises SettingsError.
    """
    found: dict[_Place, Published] = {}
    errors: list[str] = []
    asked = {host: place for host, one in fleet.items() if (place := _place(one))}
    for place in dict.fromkeys(asked.values()):
        try:
            found[place] = _look(place)
        except (WheelhouseError, OSError) as error:
            hosts = (host for host, other in asked.items() if other == place)
            errors += [_error(host, place.version, error) for host in hosts]
    if errors:
        raise SettingsError(errors)
    made = {
        host: one.model_copy(update={"llama_sha256": found[asked[host]].sha256})
        if host in asked
        else one
        for host, one in fleet.items()
    }
    return made, [*dict.fromkeys(_lines(made, {h: found[p] for h, p in asked.items()}))]


def _place(settings: Settings) -> _Place | None:
    """None: its hash is known."""
    if settings.llama_sha256:
        return None
    return _Place(settings.llama_version, settings.wheelhouse, settings.index_url, settings.netrc)


def _look(place: _Place) -> Published:
    """Raises WheelhouseError."""
    if place.wheelhouse:
        return Published(house.load(Path(place.wheelhouse)).llama.source_sha256, place.wheelhouse)
    return told_by_index(place.version, place.index_url, place.netrc)


def told_by_index(version: str, index_url: str | None, netrc: str | None = None) -> Published:
    """The hash of the archive of that version. Raises WheelhouseError."""
    where = sources(index_url)
    if netrc:
        where = replace(where, network=replace(where.network, netrc=netrc))
    return published(where, PROJECT, sdist_names(version))


def _error(host: str, version: str, error: Exception) -> str:
    return printable(
        f"host {host}: llama_sha256: found none of {version}, which is not known here ({error}), "
        "allowed: a version that the index has, or llama_sha256 beside it"
    )


def _lines(fleet: Mapping[str, Settings], found: Mapping[str, Published]) -> Iterator[str]:
    for host, one in fleet.items():
        known = release(one.llama_version)
        if known and known.sha256 == one.llama_sha256:
            continue
        told = f"looked up at {found[host].index}" if host in found else "as llama_sha256 says"
        yield printable(f"llama-cpp-python {one.llama_version}: sha256 {one.llama_sha256} ({told})")
        if known:
            yield printable(f"  PyPI's has {known.sha256}")
        else:
            yield printable(
                "  not known here: its options are first compared on the host; "
                f"next: llamafleet upstream {one.llama_version}"
            )
