"""The job that installs a toolkit: what it is told, where it runs, and with which rights."""

from __future__ import annotations

from dataclasses import replace

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import (
    APT_CREDENTIALS,
    APT_KEY,
    APT_SOURCE,
    DNF_KEY,
    DNF_SOURCE,
    USER,
    Layout,
)
from llamafleet.plans.network import plan_network
from llamafleet.plans.packages import root_python
from llamafleet.plans.plan import JobPlan, Problem, Repository, ToolkitPlan
from llamafleet.plans.requirements import toolkit_requirements
from llamafleet.plans.supplies import Supplies
from llamafleet.protocol.job import (
    Manager,
    PackagesConfig,
    RepositoryConfig,
    RunfileConfig,
    ToolkitConfig,
    ToolkitInputs,
    WheelsConfig,
)
from llamafleet.settings import Settings

MINUTES = 120
"""How long a run waits: gigabytes over a slow line, and a package manager that waits its turn."""

REPOSITORY_PATHS: dict[Manager, tuple[str, str, str]] = {
    "apt": (APT_SOURCE, APT_KEY, APT_CREDENTIALS),
    "dnf": (DNF_SOURCE, DNF_KEY, DNF_SOURCE),
}
"""Package manager -> the files that name a repository, its key, and its user and password."""


def plan_installation(
    toolkit: ToolkitPlan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    capabilities: tuple[str, ...],
    cxx: str,
    python: str,
    supplies: Supplies,
) -> ToolkitPlan | Problem:
    """The same plan with the job that installs the toolkit, if it must be.

    `capabilities`: of the GPUs that it must make right code for; `cxx`: the host compiler that it
    must work with; `python`: the interpreter that runs the job.
    """
    if not toolkit.install:
        return toolkit
    made = _config(toolkit, settings, snapshot, layout, cxx=cxx, python=python, supplies=supplies)
    config = replace(made, compute_capabilities=capabilities)
    # Only a package manager needs root.
    root = isinstance(config, PackagesConfig)
    by = root_python(snapshot, python) if root else python
    if isinstance(by, Problem):
        return by
    running = snapshot.job("toolkit", toolkit.key, root=root)
    job = JobPlan(
        kind="toolkit",
        key=toolkit.key,
        folder=(layout.root_job if root else layout.job)("toolkit", toolkit.key),
        config=layout.config("toolkit", toolkit.key),
        python=by,
        minutes=MINUTES,
        start=running is None or not running.alive,
        root=root,
    )
    return replace(toolkit, config=config, job=job)


def _config(
    toolkit: ToolkitPlan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    cxx: str,
    python: str,
    supplies: Supplies,
) -> ToolkitConfig:
    assert toolkit.method != "present"
    network = plan_network(settings, snapshot, layout)
    common = ToolkitConfig(
        key=toolkit.key,
        inputs=ToolkitInputs(method=toolkit.method),
        proxies=network.proxies,
        ca_bundle=network.ca_bundle,
        netrc=network.netrc,
        method=toolkit.method,
        cuda=toolkit.version,
        root=toolkit.root,
        cxx=cxx,
    )
    source = toolkit.source
    if source is None:
        return WheelsConfig(
            **vars(common),
            python=python,
            pip=layout.pip,
            requirements=toolkit_requirements(toolkit.version),
            index_url=settings.index_url,
            find_links=layout.wheelhouse if supplies.wheelhouse else None,
        )
    if source.manager is None:
        return RunfileConfig(**vars(common), url=source.url, sha256=source.sha256)
    repository = source.repository
    return PackagesConfig(
        **vars(common),
        manager=source.manager,
        packages=source.packages,
        record=layout.installed_packages,
        account=USER,
        repository=_repository(repository, source.manager, supplies.toolkit_key)
        if repository
        else None,
    )


def _repository(repository: Repository, manager: Manager, key: str | None) -> RepositoryConfig:
    source, keyring, credentials = REPOSITORY_PATHS[manager]
    return RepositoryConfig(
        url=repository.url,
        source=source,
        keyring=keyring,
        key_url=repository.key_url,
        fingerprint=repository.fingerprint,
        key=key,
        credentials=credentials,
    )
