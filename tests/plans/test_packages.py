"""The job that installs a missing compiler, and who may run a job of root."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import HostSnapshot, Job, Tool
from llamafleet.layout import Layout
from llamafleet.plans.packages import plan_packages_job, root_python
from llamafleet.plans.plan import PackagesPlan, Problem
from llamafleet.protocol.job import CompilerConfig, PackagesConfig
from llamafleet.settings import Settings
from tests.plans.hosts import CPU_HOST, plan

OURS = Tool("/usr/bin/python3.11", "3.11.2")
THEIRS = Tool("/srv/lab/bin/python3.13", "3.13.1", trusted=False)
LAYOUT = Layout.system()
TOOLSET = "/opt/rh/gcc-toolset-13/root/usr/bin/g++"


def job(snapshot: HostSnapshot, *names: str, python: str = OURS.path) -> PackagesPlan:
    made = plan_packages_job(PackagesPlan(names), Settings(), snapshot, LAYOUT, python)
    assert isinstance(made, PackagesPlan)
    return made


@pytest.mark.parametrize(
    ("package", "key", "command"),
    [
        ("g++", "gxx", "g++"),
        ("g++-12", "gxx-12", "g++-12"),
        ("gcc-c++", "gcc-cxx", "g++"),
        ("gcc13-c++", "gcc13-cxx", "g++-13"),
        ("gcc-toolset-13-gcc-c++", "gcc-toolset-13-gcc-cxx", TOOLSET),
        ("build-base", "build-base", "g++"),
    ],
)  # fmt: skip
def test_what_is_installed_is_tried_by_its_own_name(package: str, key: str, command: str) -> None:
    made = job(CPU_HOST, package)
    assert isinstance(made.config, CompilerConfig) and made.job
    assert made.config.compilers == (command,) and made.config.key == key
    assert made.job.folder == f"/opt/llamafleet/jobs/packages/{key}", "out of the account's reach"
    assert made.job.config == f"/etc/llamafleet/jobs/packages-{key}.json"
    assert made.job.root and made.job.start and made.job.kind == "packages"


def test_nothing_missing_is_no_job() -> None:
    assert job(CPU_HOST) == PackagesPlan(())


def test_one_that_runs_is_waited_for() -> None:
    running = replace(CPU_HOST, jobs=(Job("packages", "gxx", alive=True, root=True),))
    made = job(running, "g++").job
    assert made and not made.start


def test_one_that_the_account_tells_of_is_not_waited_for() -> None:
    planted = replace(CPU_HOST, jobs=(Job("packages", "gxx", alive=True),))
    made = job(planted, "g++").job
    assert made and made.start


def test_proxy_certificates_and_credentials_reach_it() -> None:
    host = replace(CPU_HOST, proxies={"http_proxy": "http://own:1"}, ca_bundle="/etc/ca.crt")
    settings = Settings(proxy="http://lab:3128", netrc="/root/netrc")
    made = plan_packages_job(PackagesPlan(("g++",)), settings, host, LAYOUT, OURS.path)
    assert isinstance(made, PackagesPlan) and made.config
    assert made.config.proxies["http_proxy"] == "http://lab:3128"
    assert (made.config.ca_bundle, made.config.netrc) == ("/etc/ca.crt", "/etc/llamafleet/netrc")


def test_root_runs_no_interpreter_that_others_can_write() -> None:
    both = replace(CPU_HOST, pythons=(THEIRS, OURS))
    assert root_python(both, THEIRS.path) == OURS.path
    assert root_python(both, OURS.path) == OURS.path
    old = replace(CPU_HOST, pythons=(THEIRS, replace(OURS, version="3.6.8")))
    for host in (old, replace(CPU_HOST, pythons=(THEIRS,))):
        problem = root_python(host, THEIRS.path)
        assert isinstance(problem, Problem) and "root alone can write" in problem.expected
        assert THEIRS.path in problem.found


def test_a_host_without_one_is_refused_where_root_must_install() -> None:
    host = replace(CPU_HOST, pythons=(THEIRS,))
    assert not plan(host, accelerator="auto").problems, "nothing is to be installed"
    bare = plan(replace(host, compilers=()), accelerator="auto")
    assert [p.check for p in bare.problems] == ["python"]


def test_no_name_is_a_pattern_or_an_option() -> None:
    from llamafleet.protocol.decode import DecodeError, decode

    good = {"key": "k", "inputs": {"packages": []}, "manager": "apt", "record": "/r"}
    good |= {"account": None, "compilers": []}
    assert decode(CompilerConfig, {**good, "packages": ["g++", "a.b-c_d"]})
    for name in ("", "-y", "g*", "g++-", "a b", "^g", "g++$", "@x", "a/b", "a=1", "é", "a" * 201):
        with pytest.raises(DecodeError, match="exact name"):
            decode(CompilerConfig, {**good, "packages": [name]})
    assert PackagesConfig.__dataclass_fields__["packages"].type == "tuple[PackageName, ...]"
