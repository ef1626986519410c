"""Which host compiler, and what installs one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import Compiler, HostSnapshot
from llamafleet.plans.plan import PackagesPlan, Problem
from llamafleet.plans.toolkit.compiler import (
    choose_compiler,
    install_version,
    plan_packages,
    refusal,
)
from llamafleet.settings import Settings
from llamafleet.tables.toolkits import ToolkitRow
from llamafleet.tables.toolkits import toolkit as toolkit_row
from tests.plans.hosts import CPU_HOST, GPU_HOST, build_of, clang, gcc, only_problem, plan

NONE = replace(CPU_HOST, compilers=())


def row(version: str) -> ToolkitRow:
    found = toolkit_row(version)
    assert found is not None
    return found


def chosen(
    compilers: tuple[Compiler, ...], version: str | None = None, **settings: object
) -> Compiler | Problem:
    host = replace(GPU_HOST, compilers=compilers)
    return choose_compiler(
        host, Settings.model_validate(settings), row(version) if version else None
    )


ACCEPTED = {"11.8": 11, "12.2": 12, "12.4": 13, "12.8": 14, "13.0": 15, "13.5": 16}


@pytest.mark.parametrize("version", ACCEPTED)
@pytest.mark.parametrize("major", range(11, 17))
def test_gcc_by_toolkit(version: str, major: int) -> None:
    accepted = refusal(gcc(major)[0], row(version)) is None
    assert accepted == (major <= ACCEPTED[version])


@pytest.mark.parametrize(
    ("version", "major", "accepted"),
    [("11.8", 14, True), ("11.8", 15, False), ("13.0", 20, True), ("13.0", 21, False)],
)
def test_clang_by_toolkit(version: str, major: int, accepted: bool) -> None:
    assert (refusal(clang(major)[0], row(version)) is None) == accepted


def test_the_newest_accepted_gcc_before_any_clang() -> None:
    assert chosen(gcc(12, 14, 16) + clang(20), "13.0") == gcc(14)[0]
    assert chosen(gcc(16) + clang(18, 20, 21), "13.0") == clang(20)[0]


@pytest.mark.parametrize(
    ("system", "manager", "newest", "said"),
    [
        (("ubuntu", "24.04", ()), "apt", 14, "sudo apt install g++-14"),
        (("ubuntu", "22.04", ()), "apt", 14, "sudo apt install g++-12"),
        (("ubuntu", "22.04", ()), "apt", 11, "sudo apt install g++"),
        (
            ("ubuntu", "20.04", ()),
            "apt",
            13,
            "ppa:ubuntu-toolchain-r/test; sudo apt install g++-13",
        ),
        (("debian", "13", ()), "apt", 11, "has no g++ 11 to 11"),
        (("debian", "13", ()), "apt", 13, "sudo apt install g++-13"),
        (("debian", "11", ()), "apt", 13, "has no g++ 11 to 13"),
        (("rocky", "8.10", ("rhel", "centos", "fedora")), "dnf", 15, "gcc-toolset-14-gcc-c++"),
        (("centos", "7", ("rhel", "fedora")), None, 13, "sudo yum install centos-release-scl dev"),
        (("fedora", "42", ()), "dnf", 14, "sudo dnf install gcc14-c++"),
        (("opensuse-leap", "15.6", ("suse",)), "zypper", 13, "sudo zypper install gcc13-c++"),
        (("arch", "", ()), "pacman", 14, "install g++-14 from the distribution"),
        (("debian", "14", ()), "apt", 15, "sudo apt install g++-15"),
    ],
)
def test_a_release_is_told_a_compiler_that_it_has(
    system: tuple[str, str, tuple[str, ...]], manager: str | None, newest: int, said: str
) -> None:
    name, version, like = system
    there = replace(GPU_HOST, os_id=name, os_version=version, os_like=like, package_manager=manager)
    assert said in install_version(there, newest)


def test_for_the_cpu_any_from_11_on() -> None:
    assert chosen(gcc(11, 16)) == gcc(16)[0]
    assert chosen(clang(11)) == clang(11)[0]
    problem = chosen(gcc(9, 10))
    assert isinstance(problem, Problem)
    assert "gcc 10 is older than 11" in problem.found
    assert problem.next.startswith("sudo apt install g++-11")


def test_no_accepted_one() -> None:
    problem = chosen(gcc(16), "13.0")
    assert isinstance(problem, Problem)
    assert "CUDA 13.0 accepts gcc up to 15, not 16" in problem.found
    assert problem.next.startswith("sudo apt install g++-15")


def test_the_compiler_of_the_settings_wins() -> None:
    assert chosen(gcc(12, 14), "13.0", host_compiler="/usr/bin/g++-12") == gcc(12)[0]


def test_the_compiler_of_the_settings_is_refused_where_unsupported() -> None:
    asked = {"host_compiler": "/usr/bin/g++-16"}
    problem = chosen(gcc(12, 16), "13.0", **asked)
    assert isinstance(problem, Problem) and "g++-16" in problem.found
    assert "allow_unsupported_compiler" in problem.next
    allowed = chosen(gcc(12, 16), "13.0", allow_unsupported_compiler=True, **asked)
    assert allowed == gcc(16)[0]


def test_an_accepted_one_is_taken_first_even_where_any_is_allowed() -> None:
    assert chosen(gcc(14, 16), "13.0", allow_unsupported_compiler=True) == gcc(14)[0]


def test_a_compiler_of_the_settings_that_is_not_there() -> None:
    problem = only_problem(plan(CPU_HOST, accelerator="auto", host_compiler="/opt/g++"))
    assert problem.check == "compiler"
    assert problem.found == "/usr/bin/g++-12" and "/opt/g++" in problem.expected
    empty = plan_packages(NONE, Settings(host_compiler="/opt/g++"))
    assert isinstance(empty, Problem) and empty.found == "no C++ compiler"


@pytest.mark.parametrize(
    ("manager", "package", "by_hand"),
    [
        ("apt", "g++", "sudo apt install g++"),
        ("dnf", "gcc-c++", "sudo dnf install gcc-c++"),
        ("pacman", "gcc", "sudo pacman -S gcc"),
        ("zypper", "gcc-c++", "sudo zypper install gcc-c++"),
        ("apk", "build-base", "sudo apk add build-base"),
    ],
)
def test_a_host_without_compiler_gets_one(manager: str, package: str, by_hand: str) -> None:
    host: HostSnapshot = replace(NONE, package_manager=manager)
    made = plan(host, accelerator="auto")
    assert not made.problems and made.build is None and made.verify is None
    assert made.packages.names == (package,) and made.packages.job
    config = made.packages.config
    assert config and (config.manager, config.packages) == (manager, (package,))
    assert config.compilers == ("g++",) and config.account == "llamafleet"
    refused = plan_packages(host, Settings(install_packages=False))
    assert isinstance(refused, Problem)
    assert "install_packages = False" in refused.found and refused.next == by_hand
    user = plan_packages(host, Settings(scope="user"))
    assert isinstance(user, Problem) and "scope = 'user'" in user.found


def test_a_gpu_host_without_compiler_gets_no_toolkit_before_it_has_one() -> None:
    made = plan(replace(GPU_HOST, compilers=()))
    assert not made.problems and made.toolkit is None and made.packages.names == ("g++",)


def test_no_compiler_and_nothing_that_installs_one() -> None:
    problem = plan_packages(replace(NONE, package_manager=None), Settings())
    assert isinstance(problem, Problem) and problem.next == "install g++ on the host"


def test_a_host_with_a_compiler_needs_no_package() -> None:
    assert plan_packages(CPU_HOST, Settings()) == PackagesPlan()
    assert build_of(CPU_HOST, accelerator="auto").inputs.compiler == "gcc 12"
