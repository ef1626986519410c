"""The job that installs a toolkit: what it is told, where it runs, and with which rights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import HostSnapshot, Job, Package
from llamafleet.layout import APT_KEY, APT_SOURCE, DNF_KEY, DNF_SOURCE
from llamafleet.plans.make import make_plan
from llamafleet.plans.plan import ToolkitPlan
from llamafleet.plans.supplies import Supplies
from llamafleet.protocol.job import Method, PackagesConfig, RunfileConfig, WheelsConfig
from llamafleet.settings import Settings
from tests.hosts.recorded import load
from tests.plans.hosts import LAYOUT, driver, gcc, plan
from tests.plans.toolkit.test_methods import BOOKWORM

NOBLE = replace(load("rtx4090-580-ubuntu24").snapshot, toolkits=())
ROCKY = replace(load("l40s-550-rocky8-toolset").snapshot, toolkits=())
PACKAGED = replace(driver("535"), packages=(Package("libcuda1", "535.183.01-1"),))
HOSTS: dict[Method, HostSnapshot] = {
    "wheels": NOBLE,
    "runfile": NOBLE,
    "apt": NOBLE,
    "dnf": ROCKY,
    "distro": replace(BOOKWORM, driver=PACKAGED, compilers=gcc(11)),
}


def planned(method: Method) -> ToolkitPlan:
    made = plan(HOSTS[method], toolkit_method=method)
    assert made.toolkit and made.toolkit.install, made.problems
    return made.toolkit


@pytest.mark.parametrize(
    ("method", "kind", "folder"),
    [
        ("wheels", WheelsConfig, "/var/lib/llamafleet/toolkit/13.0"),
        ("runfile", RunfileConfig, "/var/lib/llamafleet/toolkit/runfile-13.0"),
        ("apt", PackagesConfig, "/opt/llamafleet/jobs/toolkit/apt-13.0"),
        ("dnf", PackagesConfig, "/opt/llamafleet/jobs/toolkit/dnf-12.4"),
        ("distro", PackagesConfig, "/opt/llamafleet/jobs/toolkit/distro-11.8"),
    ],
)
def test_only_a_package_manager_gets_root_and_a_folder_that_is_root_s(
    method: Method, kind: type, folder: str
) -> None:
    made = planned(method)
    assert type(made.config) is kind and made.job is not None
    assert (made.job.root, made.job.folder) == (kind is PackagesConfig, folder)
    assert (made.job.kind, made.job.key) == ("toolkit", made.key)
    assert made.job.minutes == 120 and made.job.start


def test_it_is_told_what_the_build_will_be_made_with() -> None:
    made = plan(NOBLE, toolkit_method="wheels", index_url="https://pypi.lab/simple")
    assert made.toolkit and isinstance(made.toolkit.config, WheelsConfig) and made.build
    told = made.toolkit.config
    assert told.cxx == made.build.config.environment["CUDAHOSTCXX"] == "/usr/bin/g++-13"
    assert told.python == made.build.python == "/usr/bin/python3.12"
    assert told.index_url == "https://pypi.lab/simple" and told.find_links is None
    assert (told.cuda, told.root) == (made.toolkit.version, made.toolkit.root)


@pytest.mark.parametrize(
    ("alive", "start"), [(True, False), (False, True)], ids=["it runs", "it has ended"]
)
def test_one_that_runs_is_attached_to(alive: bool, start: bool) -> None:
    host = replace(NOBLE, jobs=(Job("toolkit", "13.0", alive=alive),))
    made = plan(host, toolkit_method="wheels")
    assert made.toolkit and made.toolkit.job and made.toolkit.job.start is start


@pytest.mark.parametrize(
    ("method", "source", "keyring"),
    [("apt", APT_SOURCE, APT_KEY), ("dnf", DNF_SOURCE, DNF_KEY)],
)
@pytest.mark.parametrize("key", [None, "-----BEGIN PGP PUBLIC KEY BLOCK-----"])
def test_a_repository_is_set_up_with_the_key_of_the_settings_or_the_pinned_one(
    method: Method, source: str, keyring: str, key: str | None
) -> None:
    host = ROCKY if method == "dnf" else NOBLE
    settings = Settings(toolkit_method=method, toolkit_url="http://mirror.lab")
    made = make_plan("gpu-a", settings, host, LAYOUT, supplies=Supplies(toolkit_key=key))
    assert made.toolkit and isinstance(made.toolkit.config, PackagesConfig)
    repository = made.toolkit.config.repository
    assert repository is not None
    assert (repository.source, repository.keyring, repository.key) == (source, keyring, key)
    assert repository.url.startswith("http://mirror.lab/repos/")
    assert len(repository.fingerprint) == 40
    assert repository.files == {}, "they are rendered when the job is told"


def test_a_repository_of_the_administrator_is_used_as_it_is() -> None:
    host = replace(NOBLE, cuda_repository="/etc/apt/sources.list.d/cuda.list")
    made = plan(host, toolkit_method="apt")
    assert made.toolkit and isinstance(made.toolkit.config, PackagesConfig)
    assert made.toolkit.config.repository is None


def test_nothing_is_told_before_a_compiler_is_there() -> None:
    made = plan(replace(NOBLE, compilers=()))
    assert made.toolkit and made.toolkit.install and made.build is None
    assert (made.toolkit.config, made.toolkit.job) == (None, None)
