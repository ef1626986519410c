"""Distributions and NVIDIA's repositories: consistent, and found by what a host says of itself."""

from __future__ import annotations

import re

import pytest

from llamafleet.tables import UNVERIFIED
from llamafleet.tables.distributions import (
    Manager,
    RepositoryKey,
    distribution,
    distributions,
    repository_key,
    repository_keys,
    toolkit_dependencies,
    toolkit_packages,
)
from llamafleet.tables.toolkits import ToolkitRow, toolkit, toolkits

MANAGERS: tuple[Manager, ...] = ("apt", "dnf")
REPOSITORIES = [(row, row.repository) for row in distributions() if row.repository is not None]


def test_what_is_trusted_is_never_recalled() -> None:
    assert [key for key in repository_keys() if key.source.startswith(UNVERIFIED)] == []


def test_no_distribution_is_known_twice() -> None:
    known = [(row.id, row.version) for row in distributions()]
    assert len(known) == len(set(known))
    assert {row.manager for row in distributions()} == {"apt", "dnf"}


def test_every_toolkit_is_in_the_table_of_toolkits() -> None:
    named = [cuda for _, repository in REPOSITORIES for cuda in repository.toolkits]
    named += [row.own.cuda for row in distributions() if row.own]
    assert [cuda for cuda in named if toolkit(cuda) is None] == []


def test_toolkits_of_a_repository_are_oldest_first_and_without_a_gap() -> None:
    every = [row.version for row in reversed(toolkits())]
    for _, repository in REPOSITORIES:
        first = every.index(repository.toolkits[0])
        assert list(repository.toolkits) == every[first : first + len(repository.toolkits)]


def test_machines_are_named_as_uname_and_as_nvidia_name_them() -> None:
    for _, repository in REPOSITORIES:
        assert set(repository.machines.items()) <= {("x86_64", "x86_64"), ("aarch64", "sbsa")}
        assert "x86_64" in repository.machines


def test_a_repository_is_named_after_its_distribution() -> None:
    for row, repository in REPOSITORIES:
        assert repository.name == row.id + row.version.replace(".", "")


def test_every_repository_has_a_key_and_every_key_a_repository() -> None:
    used = {repository.key for _, repository in REPOSITORIES}
    assert used == {key.id for key in repository_keys()}


@pytest.mark.parametrize("key", repository_keys(), ids=lambda key: key.id)
def test_the_fingerprint_of_a_key_ends_in_its_id(key: RepositoryKey) -> None:
    assert key.fingerprint.endswith(key.id.upper())
    assert key.file == f"{key.id}.pub"
    assert repository_key(key.id) == key


def test_a_key_that_is_not_known() -> None:
    with pytest.raises(KeyError, match="CDF6BA43"):
        repository_key("CDF6BA43")


@pytest.mark.parametrize(
    ("os_id", "version", "os_like", "found"),
    [
        ("ubuntu", "24.04", ("debian",), ("ubuntu", "24.04")),
        ("ubuntu", "24.10", ("debian",), None),
        ("debian", "12", (), ("debian", "12")),
        ("debian", "11", (), None),
        ("rhel", "8.10", ("fedora",), ("rhel", "8")),
        ("rocky", "9.5", ("rhel", "centos", "fedora"), ("rhel", "9")),
        ("almalinux", "10.0", ("rhel", "centos", "fedora"), ("rhel", "10")),
        ("centos", "9", ("rhel", "fedora"), ("rhel", "9")),
        ("ol", "9.4", ("fedora",), ("rhel", "9")),
        ("amzn", "2", ("centos", "rhel", "fedora"), None),
        ("fedora", "42", (), ("fedora", "42")),
        ("fedora", "38", (), None),
        ("amzn", "2023", ("fedora",), None),
        ("linuxmint", "22", ("ubuntu", "debian"), None),
        ("linuxmint", "24.04", ("ubuntu", "debian"), None),
        ("arch", "", (), None),
        ("", "", (), None),
    ],
)
def test_distributions_by_os_release(
    os_id: str, version: str, os_like: tuple[str, ...], found: tuple[str, str] | None
) -> None:
    row = distribution(os_id, version, os_like)
    assert (row and (row.id, row.version)) == found


@pytest.mark.parametrize(
    ("os_id", "version", "major", "package"),
    [
        ("ubuntu", "22.04", 12, "g++-12"),
        ("debian", "13", 13, "g++-13"),
        ("rhel", "8", 12, "gcc-toolset-12-gcc-c++"),
        ("fedora", "42", 14, "gcc14-c++"),
    ],
)
def test_compilers(os_id: str, version: str, major: int, package: str) -> None:
    row = distribution(os_id, version)
    assert row is not None
    assert {compiler.major: compiler.package for compiler in row.compilers}[major] == package


def test_the_name_of_a_compiler_tells_its_major_version() -> None:
    for row in distributions():
        majors = [compiler.major for compiler in row.compilers]
        assert len(majors) == len(set(majors))
        for compiler in row.compilers:
            if not compiler.default:  # that one has the plain name
                assert str(compiler.major) in re.findall(r"\d+", compiler.package)


@pytest.mark.parametrize(
    ("os_id", "version", "cuda"),
    [("ubuntu", "24.04", "12.0"), ("debian", "12", "11.8"), ("debian", "13", "12.4")],
)
def test_the_distributions_own_toolkit(os_id: str, version: str, cuda: str) -> None:
    row = distribution(os_id, version)
    assert row is not None and row.own is not None
    assert (row.own.cuda, row.own.packages, row.own.root) == (
        cuda,
        ("nvidia-cuda-toolkit",),
        "/usr",
    )


@pytest.mark.parametrize(
    ("cuda", "cccl", "nvvm"),
    [
        ("12.9", "cuda-cccl-12-9", "cuda-nvvm-12-9"),
        ("13.2", "cuda-cccl-13-2", "libnvvm-13-2"),
        ("13.3", "cccl-13-3", "libnvvm-13-3"),
        ("13.10", "cccl-13-10", "libnvvm-13-10"),
    ],
)
def test_names_that_change_with_the_version(cuda: str, cccl: str, nvvm: str) -> None:
    assert [name for name in toolkit_packages("apt", cuda) if "cccl" in name] == [cccl]
    assert [name for name in toolkit_packages("dnf", cuda) if "cccl" in name] == [cccl]
    assert [name for name in toolkit_dependencies("apt", cuda) if "nvvm" in name] == [nvvm]


def test_packages_of_one_toolkit() -> None:
    assert toolkit_packages("apt", "12.8") == (
        "cuda-nvcc-12-8",
        "cuda-cudart-dev-12-8",
        "cuda-driver-dev-12-8",
        "libcublas-dev-12-8",
        "cuda-cccl-12-8",
    )
    assert toolkit_packages("dnf", "12.8") == (
        "cuda-nvcc-12-8",
        "cuda-cudart-devel-12-8",
        "cuda-driver-devel-12-8",
        "libcublas-devel-12-8",
        "cuda-cccl-12-8",
    )
    assert set(toolkit_dependencies("apt", "12.8")) == {
        "cuda-crt-12-8",
        "cuda-nvvm-12-8",
        "cuda-cudart-12-8",
        "libcublas-12-8",
        "cuda-toolkit-12-8-config-common",
        "cuda-toolkit-12-config-common",
        "cuda-toolkit-config-common",
    }


@pytest.mark.parametrize("row", toolkits(), ids=lambda row: row.version)
def test_no_package_is_a_driver_or_drags_one_in(row: ToolkitRow) -> None:
    names = [name for manager in MANAGERS for name in toolkit_packages(manager, row.version)]
    names += [name for manager in MANAGERS for name in toolkit_dependencies(manager, row.version)]
    stub = row.version.replace(".", "-")
    allowed = {f"cuda-driver-dev-{stub}", f"cuda-driver-devel-{stub}"}
    assert {name for name in names if "driver" in name} == allowed
    assert not any(re.match(r"cuda(-toolkit)?(-[0-9-]+)?$|nvidia|cuda-drivers", n) for n in names)
    assert not any("*" in name or "{" in name for name in names)
