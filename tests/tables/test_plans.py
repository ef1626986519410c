"""Plans on the live tables: what every row of them must lead to, whatever the newest is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.plan import ToolkitPlan
from llamafleet.plans.toolkit.choice import choose_toolkit
from llamafleet.plans.toolkit.compiler import MIN_MAJOR
from llamafleet.settings import Settings
from llamafleet.tables import parse_version
from llamafleet.tables.distributions import Distribution, Repository, distribution, distributions
from llamafleet.tables.toolkits import (
    DriverFloor,
    ToolkitRow,
    WheelToolkit,
    driver_floors,
    runfiles,
    toolkits,
    wheel_toolkits,
)
from tests.plans.hosts import GPU_HOST, LAYOUT, driver, gcc
from tests.plans.hosts import toolkit as there

REPOSITORIES = [(row, row.repository) for row in distributions() if row.repository]
OLD_COMPILER = replace(GPU_HOST, compilers=gcc(MIN_MAJOR))
"""One that every toolkit accepts."""


def chosen(snapshot: HostSnapshot, **settings: object) -> ToolkitPlan:
    made = choose_toolkit(snapshot, Settings.model_validate(settings), ("8.9",), LAYOUT, None)
    assert isinstance(made, ToolkitPlan), made
    return made


def test_a_modern_host_gets_the_newest_toolkit_that_anything_installs() -> None:
    noble = distribution("ubuntu", "24.04")
    assert noble is not None and noble.repository is not None
    offered = {row.cuda for row in (*wheel_toolkits(), *runfiles()) if row.machine == "x86_64"}
    newest = max({*offered, *noble.repository.toolkits}, key=parse_version)
    host = replace(GPU_HOST, os_id="ubuntu", os_version="24.04", driver=driver(cuda="99.0"))
    assert chosen(host).version == newest


@pytest.mark.parametrize("row", toolkits(), ids=lambda row: row.version)
def test_a_toolkit_that_is_there_is_used_and_may_be_asked_for(row: ToolkitRow) -> None:
    host = replace(OLD_COMPILER, driver=driver(cuda=row.version), toolkits=(there(row.version),))
    made = chosen(host, toolkit_version=row.version)
    assert (made.version, made.install) == (row.version, False)


@pytest.mark.parametrize("row", wheel_toolkits(), ids=lambda row: f"{row.cuda}-{row.machine}")
def test_wheels_are_what_a_driver_of_their_version_gets(row: WheelToolkit) -> None:
    made = chosen(replace(GPU_HOST, driver=driver(cuda=row.cuda), arch=row.machine))
    assert (made.version, made.method, made.install) == (row.cuda, "wheels", True)


@pytest.mark.parametrize(
    ("system", "repository"), REPOSITORIES, ids=[theirs.name for _, theirs in REPOSITORIES]
)
def test_a_repository_gives_its_newest_toolkit_and_the_distribution_a_compiler_for_it(
    system: Distribution, repository: Repository
) -> None:
    newest = repository.toolkits[-1]
    host = replace(
        GPU_HOST,
        os_id=system.id,
        os_version=system.version,
        package_manager=system.manager,
        driver=driver(cuda="99.0"),
        compilers=(),
    )
    made = chosen(host, toolkit_method=system.manager)
    assert (made.version, made.method, made.install) == (newest, system.manager, True)
    assert made.compiler in {compiler.package for compiler in system.compilers}


@pytest.mark.parametrize("floor", driver_floors(), ids=lambda floor: floor.driver)
def test_a_driver_that_does_not_tell_gets_a_toolkit_of_its_floor(floor: DriverFloor) -> None:
    silent = driver(cuda=None, smi=floor.driver, module=floor.driver, library=floor.driver)
    host = replace(OLD_COMPILER, driver=silent, toolkits=(there(floor.cuda),))
    assert chosen(host, toolkit_method="present").version == floor.cuda
