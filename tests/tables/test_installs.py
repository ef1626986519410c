"""Distributions, NVIDIA's repositories and runfiles: complete, with sources, found by lookup."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import yaml

from llamafleet import tables

SOURCES = ("measured: ", "looked up: ", "UNVERIFIED: ")
REPOSITORIES = [
    (row, row.repository) for row in tables.distributions() if row.repository is not None
]
CACHED = (
    tables._distributions_yaml,
    tables.repository_keys,
    tables.distributions,
    tables.runfiles,
)

Plant = Callable[[str, str], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Replaces the first `old` in both files by `new`, for what is loaded from then on."""
    real = tables.text

    def planted(old: str, new: str) -> None:
        monkeypatch.setattr(tables, "text", lambda name: real(name).replace(old, new, 1))
        for loader in CACHED:
            loader.cache_clear()

    yield planted
    for loader in CACHED:
        loader.cache_clear()


def test_every_row_says_where_it_is_from() -> None:
    said = [key.source for key in tables.repository_keys()]
    said += [runfile.source for runfile in tables.runfiles()]
    for row in tables.distributions():
        said += [compiler.source for compiler in row.compilers]
        said += [part.source for part in (row.repository, row.own) if part]
    packages = yaml.safe_load(tables.text("distributions.yaml"))["packages"]
    said += [packages[manager]["source"] for manager in ("apt", "dnf")]
    assert [s for s in said if not s.startswith(SOURCES)] == []


def test_what_is_trusted_is_never_recalled() -> None:
    trusted = [*tables.repository_keys(), *tables.runfiles()]
    assert [row for row in trusted if row.source.startswith(tables.UNVERIFIED)] == []


def test_no_distribution_is_known_twice() -> None:
    known = [(row.id, row.version) for row in tables.distributions()]
    assert len(known) == len(set(known))
    assert {row.manager for row in tables.distributions()} == {"apt", "dnf"}


def test_every_toolkit_is_in_the_table_of_toolkits() -> None:
    named = [cuda for _, repository in REPOSITORIES for cuda in repository.toolkits]
    named += [row.own.cuda for row in tables.distributions() if row.own]
    named += [runfile.cuda for runfile in tables.runfiles()]
    assert [cuda for cuda in named if tables.toolkit(cuda) is None] == []


def test_toolkits_of_a_repository_are_oldest_first_and_without_a_gap() -> None:
    every = [row.version for row in reversed(tables.toolkits())]
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
    assert used == {key.id for key in tables.repository_keys()}


@pytest.mark.parametrize("key", tables.repository_keys(), ids=lambda key: key.id)
def test_a_key_has_a_whole_fingerprint_that_ends_in_its_id(key: tables.RepositoryKey) -> None:
    assert re.fullmatch(r"[0-9A-F]{40}", key.fingerprint)
    assert key.fingerprint.endswith(key.id.upper())
    assert key.file == f"{key.id}.pub"
    assert tables.repository_key(key.id) == key


def test_a_key_that_is_not_known() -> None:
    with pytest.raises(KeyError, match="CDF6BA43"):
        tables.repository_key("CDF6BA43")


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
    row = tables.distribution(os_id, version, os_like)
    assert (row and (row.id, row.version)) == found


@pytest.mark.parametrize(
    ("os_id", "version", "major", "package", "path"),
    [
        ("ubuntu", "22.04", 12, "g++-12", "/usr/bin/g++-12"),
        ("debian", "13", 13, "g++-13", "/usr/bin/g++-13"),
        (
            "rhel",
            "8",
            12,
            "gcc-toolset-12-gcc-c++",
            "/opt/rh/gcc-toolset-12/root/usr/bin/g++",
        ),
        ("fedora", "42", 14, "gcc14-c++", "/usr/bin/g++-14"),
    ],
)
def test_compilers(os_id: str, version: str, major: int, package: str, path: str) -> None:
    row = tables.distribution(os_id, version)
    assert row is not None
    found = {compiler.major: (compiler.package, compiler.path) for compiler in row.compilers}
    assert found[major] == (package, path)


def test_the_name_and_the_path_of_a_compiler_tell_its_major_version() -> None:
    for row in tables.distributions():
        majors = [compiler.major for compiler in row.compilers]
        assert len(majors) == len(set(majors))
        for compiler in row.compilers:
            if compiler.default:  # by the plain name
                continue
            assert str(compiler.major) in re.findall(r"\d+", compiler.package)
            assert str(compiler.major) in re.findall(r"\d+", compiler.path)


@pytest.mark.parametrize(
    ("os_id", "version", "cuda"),
    [("ubuntu", "24.04", "12.0"), ("debian", "12", "11.8"), ("debian", "13", "12.4")],
)
def test_the_distributions_own_toolkit(os_id: str, version: str, cuda: str) -> None:
    row = tables.distribution(os_id, version)
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
    assert [name for name in tables.apt_packages(cuda) if "cccl" in name] == [cccl]
    assert [name for name in tables.dnf_packages(cuda) if "cccl" in name] == [cccl]
    assert [name for name in tables.apt_dependencies(cuda) if "nvvm" in name] == [nvvm]


def test_packages_of_one_toolkit() -> None:
    assert tables.apt_packages("12.8") == (
        "cuda-nvcc-12-8",
        "cuda-cudart-dev-12-8",
        "cuda-driver-dev-12-8",
        "libcublas-dev-12-8",
        "cuda-cccl-12-8",
    )
    assert tables.dnf_packages("12.8") == (
        "cuda-nvcc-12-8",
        "cuda-cudart-devel-12-8",
        "cuda-driver-devel-12-8",
        "libcublas-devel-12-8",
        "cuda-cccl-12-8",
    )
    assert set(tables.apt_dependencies("12.8")) == {
        "cuda-crt-12-8",
        "cuda-nvvm-12-8",
        "cuda-cudart-12-8",
        "libcublas-12-8",
        "cuda-toolkit-12-8-config-common",
        "cuda-toolkit-12-config-common",
        "cuda-toolkit-config-common",
    }


@pytest.mark.parametrize("row", tables.toolkits(), ids=lambda row: row.version)
def test_no_package_is_a_driver_or_drags_one_in(row: tables.ToolkitRow) -> None:
    names = (
        *tables.apt_packages(row.version),
        *tables.apt_dependencies(row.version),
        *tables.dnf_packages(row.version),
    )
    stub = row.version.replace(".", "-")
    allowed = {f"cuda-driver-dev-{stub}", f"cuda-driver-devel-{stub}"}
    assert {name for name in names if "driver" in name} == allowed
    assert not any(re.match(r"cuda(-toolkit)?(-[0-9-]+)?$|nvidia|cuda-drivers", n) for n in names)
    assert not any("*" in name or "{" in name for name in names)


def test_hashes_of_runfiles() -> None:
    hashes = [runfile.sha256 for runfile in tables.runfiles()]
    assert len(hashes) == len(set(hashes))
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in hashes)


@pytest.mark.parametrize("runfile", tables.runfiles(), ids=lambda r: f"{r.cuda}-{r.machine}")
def test_a_runfile_is_named_as_its_row(runfile: tables.Runfile) -> None:
    end = {"x86_64": "_linux.run", "aarch64": "_linux_sbsa.run"}[runfile.machine]
    assert runfile.version.rpartition(".")[0] == runfile.cuda
    assert re.fullmatch(rf"cuda_{re.escape(runfile.version)}(_[0-9.]+)?{end}", runfile.file)
    assert runfile.mib is None or 3000 < runfile.mib < 6000
    assert tables.runfile(runfile.cuda, runfile.machine) == runfile


def test_where_a_runfile_lies() -> None:
    found = tables.runfile("12.8", "x86_64")
    assert found is not None
    assert f"{tables.NVIDIA_URL}/{found.path}" == (
        "https://developer.download.nvidia.com/compute/cuda/12.8.1/local_installers/"
        "cuda_12.8.1_570.124.06_linux.run"
    )
    assert found.sha256.startswith("228f6bcaf5b7618d")


def test_runfiles_that_are_not_known() -> None:
    assert tables.runfile("12.7", "x86_64") is None
    assert tables.runfile("12.8", "ppc64le") is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    manager: apt\n", "    manager: apt\n    mirror: x\n"),
        ("      key: 3bf863cc\n", "      key: 3bf863cc\n      mirror: x\n"),
        ("{major: 9, ", "{major: 9, mirror: x, "),
        ('own: {cuda: "12.0", ', 'own: {cuda: "12.0", mirror: x, '),
        ("    own: null\n", ""),
        ("    machine: x86_64\n", "    machine: x86_64\n    mirror: x\n"),
        ("    file: 3bf863cc.pub\n", "    file: 3bf863cc.pub\n    mirror: x\n"),
        ('- {name: "cuda-nvcc-{v}"}', '- {name: "cuda-nvcc-{v}", mirror: x}'),
    ],
)
def test_a_field_too_many_or_too_few_does_not_load(plant: Plant, old: str, new: str) -> None:
    plant(old, new)
    with pytest.raises((TypeError, KeyError)):
        for loader in (tables.repository_keys, tables.distributions, tables.runfiles):
            loader()
        tables.apt_packages("12.8")
