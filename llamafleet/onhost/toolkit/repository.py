"""A package repository with CUDA Toolkits: its key, its files, and taking them back."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from llamafleet.onhost.download import DownloadError, Limits, Network, read_bytes
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import openpgp
from llamafleet.protocol.job import RepositoryConfig

OPEN, SECRET = 0o644, 0o600
KEY_LIMITS = Limits(octets=openpgp.LIMIT, seconds=120)

_PLAIN = re.compile(r"[!-~]{1,500}")
"""What apt and dnf both read as one word."""


def set_up(job: Job, repository: RepositoryConfig, network: Network) -> None:
    """Write the key, once it is proven to be the one that is pinned, then the files.

    Raises JobFailed.
    """
    keys = _trusted(repository, network)
    job.log(f"key {', '.join(key.fingerprint for key in keys)}")
    _write(Path(repository.keyring), openpgp.armored(keys), OPEN)
    try:
        account = network.credentials(repository.url)
    except DownloadError as error:
        raise JobFailed(f"{repository.url}: found {error.found}; next: {error.next}") from error
    texts = dict(repository.files)
    secret = _secret(repository, account, texts)
    for path, text in texts.items():
        _write(Path(path), text.encode(), SECRET if path == secret else OPEN)


@contextlib.contextmanager
def taken_back(repository: RepositoryConfig | None) -> Iterator[None]:
    """Remove the repository's files where the job fails or is stopped within.

    Left behind, a source that fails stands in the way of each later update.
    """
    try:
        yield
    except BaseException:
        if repository:
            for path in (repository.keyring, repository.credentials, *repository.files):
                Path(path).unlink(missing_ok=True)
        raise


def _trusted(repository: RepositoryConfig, network: Network) -> list[openpgp.Key]:
    """The keys to trust: those of the settings, or the pinned one alone. Raises JobFailed."""
    try:
        if repository.key:
            return openpgp.read(repository.key.encode())
        found = openpgp.read(read_bytes(repository.key_url, network, KEY_LIMITS)[0])
        seen = ", ".join(key.fingerprint for key in found)
    except ValueError as error:
        found, seen = [], str(error)
    except DownloadError as error:
        raise JobFailed(
            f"{repository.key_url}: found {error.found}; expected the repository's key; "
            f"next: on the host, {error.next}; or set toolkit_url to a mirror"
        ) from error
    if [key.fingerprint for key in found] != [repository.fingerprint]:
        raise JobFailed(
            f"key of {repository.url}: found {seen}; expected {repository.fingerprint} and no "
            "other; next: do not trust this mirror, or set toolkit_key to the key it signs with"
        )
    return [key.alone() for key in found]


def _secret(
    repository: RepositoryConfig, account: tuple[str, str] | None, texts: dict[str, str]
) -> str:
    """Add the credentials to the texts of files; the path of the one that holds them then."""
    path = repository.credentials
    if account is None:
        return ""
    if not all(map(_PLAIN.fullmatch, account)):
        raise JobFailed(
            f"credentials for {urlsplit(repository.url).hostname}: found a blank or another sign "
            "that no package manager takes; expected printable ASCII; next: change the password"
        )
    user, password = account
    if path == repository.source:
        texts[path] = f"{texts[path].rstrip()}\nusername={user}\npassword={password}\n"
    else:
        # Without the scheme apt would send them over https alone: apt_auth.conf(5).
        where = urlsplit(repository.url)
        machine = f"{where.scheme}://{where.netloc}{where.path}"
        texts[path] = f"machine {machine} login {user} password {password}\n"
    return path


def _write(path: Path, content: bytes, mode: int) -> None:
    """A file whole, in place of what was there, with that mode from the first octet on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(partial, flags, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def with_proxies_of_apt(network: Network, answers: list[str]) -> Network:
    """Beside the host's proxies those of apt; `answers`: of `apt-config dump`."""
    found: Mapping[str, str] = {
        f"{match[1].lower()}_proxy": match[2]
        for line in answers
        if (match := re.match(r'Acquire::(https?)::Proxy "(http[^"]+)";', line, re.IGNORECASE))
    }
    return replace(network, proxies={**found, **network.proxies})
