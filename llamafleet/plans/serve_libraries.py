"""The Python packages of the server that serves a build: which, and where they come from."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256

from llamafleet.layout import Layout
from llamafleet.plans.network import Network
from llamafleet.plans.requirements import serve_requirements
from llamafleet.protocol.fingerprint import fingerprint
from llamafleet.protocol.job import LibrariesConfig, LibrariesInputs
from llamafleet.protocol.pythons import minor
from llamafleet.settings import Settings
from llamafleet.wheelhouse.manifest import Manifest


def plan_libraries(
    settings: Settings,
    layout: Layout,
    network: Network,
    *,
    python: str,
    version: str,
    house: Manifest | None = None,
) -> LibrariesConfig:
    """The job's settings. `python`: the host's interpreter that builds are made with, `version`
    its own; a folder is of one of its minor versions, as the packages hold compiled code."""
    wanted = serve_requirements(house)
    inputs = LibrariesInputs(
        requirements=sha256(wanted.encode()).hexdigest(), python=minor(version)
    )
    key = fingerprint(asdict(inputs))
    return LibrariesConfig(
        key=key,
        inputs=inputs,
        python=python,
        pip=layout.pip,
        requirements=wanted,
        index_url=settings.index_url,
        find_links=layout.wheelhouse if house else None,
        root=layout.serve_libraries(key),
        proxies=network.proxies,
        ca_bundle=network.ca_bundle,
        netrc=network.netrc,
    )
