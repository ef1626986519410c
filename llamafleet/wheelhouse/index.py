"""A source archive from a package index, fetched and checked, and never run.

pip would run the archive's build backend to learn its metadata, whatever that does.
"""

from __future__ import annotations

import ast
import json
import netrc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, url2pathname

from llamafleet.onhost.download import DownloadError, Limits, Network, fetch, read_bytes
from llamafleet.protocol.redact import redacted
from llamafleet.tables import parse_version
from llamafleet.wheelhouse.manifest import WheelhouseError, sha256_of

PYPI = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
"""The JSON form of an index (PEP 691), or else its pages (PEP 503)."""
PAGE_LIMITS = Limits(octets=32 << 20, seconds=120)
FILE_LIMITS = Limits(octets=1 << 30, seconds=3600)


@dataclass(frozen=True)
class Sources:
    """Where this machine's pip looks for packages, and how it gets there."""

    indexes: tuple[str, ...]
    network: Network


def sources(index_url: str | None = None) -> Sources:
    """Those of `index_url` alone, or of pip's own configuration.

    Raises WheelhouseError where pip does not tell it.
    """
    told = _pip_settings()
    if index_url is None:
        index_url = told.get("index-url", PYPI)
        extra = told.get("extra-index-url", "").split()
    else:
        extra = []
    accounts: dict[str, tuple[str, str]] = {}
    bare: list[str] = []
    for url in (index_url, *extra):
        address, account = _without_account(url)
        bare.append(address)
        accounts |= {urlsplit(address).hostname or "": account} if account else {}
    proxy = told.get("proxy")
    found = {f"{name}_proxy": value for name, value in getproxies().items()}
    found |= {"http_proxy": proxy, "https_proxy": proxy} if proxy else {}
    found["no_proxy"] = found.pop("no_proxy", "")
    network = Network(
        proxies=found,
        ca_bundle=told.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or None,
        netrc=_own_netrc(),
        accounts=accounts,
    )
    return Sources(tuple(bare), network)


@dataclass(frozen=True)
class Published:
    """A source archive, as an index tells it."""

    sha256: str
    index: str
    """Where it is told, without passwords."""


def published(where: Sources, project: str, names: tuple[str, ...]) -> Published:
    """The hash of the file of one of these names. Raises WheelhouseError with each cause.

    An index without that file is passed over; several must tell the same.
    """
    told, found = [], {}
    for index in where.indexes:
        try:
            found[redacted(index)] = _told_sha256(index, project, names, where.network)
        except DownloadError as error:
            told.append(f"{redacted(index)}: found {error.found}; next: {error.next}")
    if not found:
        raise WheelhouseError(f"no source archive {names[0]}: {'; '.join(told)}")
    if len(set(found.values())) > 1:
        all_told = ", ".join(f"{value} at {index}" for index, value in found.items())
        raise WheelhouseError(f"several archives {names[0]}: {all_told}")
    index, sha256 = next(iter(found.items()))
    return Published(sha256, index)


def newest(where: Sources, project: str) -> str:
    """The newest released version of a project with a source archive that was not taken back.

    Raises WheelhouseError.
    """
    told = []
    for index in where.indexes:
        try:
            files = _files(index, project, where.network)
        except DownloadError as error:
            told.append(f"{redacted(index)}: found {error.found}; next: {error.next}")
            continue
        stem = re.compile(
            r"(?i)" + re.sub(r"[-_.]", "[-_.]", project) + r"-(\d+(?:\.\d+)*)\.tar\.gz"
        )
        versions = [
            match[1]
            for name, file in files.items()
            if not file.yanked and (match := stem.fullmatch(name))
        ]
        if versions:
            return max(versions, key=parse_version)
        told.append(f"{redacted(index)}: found {len(files)} files, and no source archive")
    raise WheelhouseError(f"no {project}: {'; '.join(told)}")


def fetch_archive(
    where: Sources, project: str, names: tuple[str, ...], sha256: str, target: Path
) -> None:
    """Write the file of one of these names to `target`. Raises WheelhouseError with each cause."""
    told = []
    for index in where.indexes:
        try:
            url = _find(index, project, names, where.network)
            _take(url, target, where.network)
        except DownloadError as error:
            told.append(f"{redacted(index)}: found {error.found}; next: {error.next}")
            continue
        except OSError as error:
            raise WheelhouseError(f"{target} can't be written ({error.strerror})") from error
        if (found := sha256_of(target)) == sha256:
            return
        target.unlink()
        told.append(f"{redacted(url)}: found sha256 {found}, expected {sha256}; next: look at it")
    raise WheelhouseError(f"no source archive {names[0]}: {'; '.join(told)}")


def _find(index: str, project: str, names: tuple[str, ...], network: Network) -> str:
    """The URL of the file. Raises DownloadError."""
    return _file(index, project, names, network).url


def _told_sha256(index: str, project: str, names: tuple[str, ...], network: Network) -> str:
    """Raises DownloadError."""
    file = _file(index, project, names, network)
    if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        raise DownloadError(f"no sha256 of {names[0]}", f"curl -L {file.url} | sha256sum")
    return file.sha256


def _file(index: str, project: str, names: tuple[str, ...], network: Network) -> _File:
    """The file of one of these names. Raises DownloadError."""
    files = _files(index, project, network)
    for name in names:
        if name in files:
            return files[name]
    raise DownloadError(
        f"{project} with {len(files)} files, and none of that name",
        f"curl -L {_of(index, project)}",
    )


def _files(index: str, project: str, network: Network) -> dict[str, _File]:
    """Those of a project by name. Raises DownloadError."""
    page = _of(index, project)
    try:
        content, base = _page(page, network)
        return dict(_links(content, base))
    except ValueError as error:
        raise DownloadError(
            f"no package index ({error})", f"curl -L {page}; compare the index URL"
        ) from error


def _of(index: str, project: str) -> str:
    return f"{index.rstrip('/')}/{project}/"


def _page(url: str, network: Network) -> tuple[bytes, str]:
    """What an index says of a project, and the URL that its links are relative to."""
    if urlsplit(url).scheme == "file":
        folder = Path(url2pathname(urlsplit(url).path))
        try:
            return (folder / "index.html").read_bytes(), url
        except OSError as error:
            raise DownloadError(
                f"that it can't be read ({error.strerror})", f"ls {folder}"
            ) from error
    return read_bytes(url, network, PAGE_LIMITS, headers={"Accept": ACCEPT})


@dataclass(frozen=True)
class _File:
    """One file of an index."""

    url: str
    sha256: str
    """"": it is not told."""
    yanked: bool = False
    """The maker took it back (PEP 592)."""


def _links(content: bytes, base: str) -> Iterator[tuple[str, _File]]:
    """Each file by its name. Raises ValueError where it is no page of an index."""
    if content.lstrip()[:1] == b"{":
        try:
            for file in json.loads(content)["files"]:
                sha256 = str(dict(file.get("hashes") or {}).get("sha256", ""))
                url = urljoin(base, str(file["url"]))
                # A reason, also an empty one in quotes, or true (PEP 691).
                yanked = file.get("yanked", False) is not False
                yield str(file["filename"]), _File(url, sha256, yanked)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"JSON of another kind: {type(error).__name__}") from error
        return
    page = _Anchors()
    page.feed(content.decode("utf-8", "replace"))
    if not page.targets:
        raise ValueError(f"it begins with {content[:40]!r}")
    for target, yanked in page.targets:
        bare, _, fragment = target.partition("#")
        url = urljoin(base, bare)
        kind, _, value = fragment.partition("=")
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        yield name, _File(url, value if kind == "sha256" else "", yanked)


class _Anchors(HTMLParser):
    """Targets of the links of a page, and whether each was taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            yanked = any(name == "data-yanked" for name, _ in attrs)
            self.targets += [(value, yanked) for name, value in attrs if name == "href" and value]


def _take(url: str, target: Path, network: Network) -> None:
    """Raises DownloadError, OSError."""
    if urlsplit(url).scheme == "file":
        target.write_bytes(Path(url2pathname(urlsplit(url).path)).read_bytes())
        return
    with target.open("wb") as file:
        fetch(url, file, network, FILE_LIMITS)


def _pip_settings() -> dict[str, str]:
    """What `pip download` would go by: its section over the global one, variables over both."""
    argv = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelhouseError(f"pip's configuration can't be read: {done.stderr.strip()[-300:]}")
    found: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        row = re.fullmatch(r"(global|download|:env:)\.([\w-]+)=(.*)", line)
        if row:
            found[row[1]][row[2]] = str(ast.literal_eval(row[3]))
    return found["global"] | found["download"] | found[":env:"]


def _without_account(url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL without user and password, and these."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, (unquote(parts.username or ""), unquote(parts.password or ""))


def _own_netrc() -> str | None:
    """The file that pip would read too; None: there is none that can be."""
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        netrc.netrc(str(file))
    except (OSError, netrc.NetrcParseError):
        return None
    return str(file)
