"""A job's environment: nothing of the caller's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from llamafleet.protocol.job import PATH, JobConfig, PipConfig


def environment(
    config: JobConfig, own: Mapping[str, str], prefix: Path, tmp: Path
) -> dict[str, str]:
    """A job's environment: nothing of the caller's, whose settings would change what is built.

    `own` wins over what is common to all jobs. `tmp`: a folder for this job alone.
    """
    home = tmp / "home"
    home.mkdir(parents=True, exist_ok=True)
    common = {
        "PATH": PATH,
        # Settings in a home count as little as those in variables.
        "HOME": str(home),
        "TMPDIR": str(tmp),
        # Error lines are recognised by their English words.
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONNOUSERSITE": "1",
        # pip then reads no configuration at all: pip's own documentation, "Configuration".
        "PIP_CONFIG_FILE": os.devnull,
    }
    env = common | network(config) | dict(own)
    return env | {"PATH": f"{prefix / 'bin'}:{env['PATH']}"}


def network(config: JobConfig) -> dict[str, str]:
    """How a job's programs reach indexes and mirrors: proxies, certificates, credentials."""
    env: dict[str, str] = {}
    for name, value in config.proxies.items():
        # curl reads http_proxy in lower case alone, others all in upper case alone.
        env |= {name.lower(): value, name.upper(): value}
    if config.ca_bundle:
        names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        env |= dict.fromkeys(names, config.ca_bundle)
    if config.netrc:
        env["NETRC"] = config.netrc
    if isinstance(config, PipConfig) and config.index_url and not config.find_links:
        # Not on a command line, which everybody can read.
        env["PIP_INDEX_URL"] = config.index_url
        if config.index_url.startswith("http:"):
            # pip passes such an index over in silence; hashes tell what it may send.
            env["PIP_TRUSTED_HOST"] = urlsplit(config.index_url).netloc
    return env
