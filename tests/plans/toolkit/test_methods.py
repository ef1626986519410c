"""Distribution, machine, driver and settings -> where a toolkit is installed from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Job, Package
from llamafleet.plans.toolkit.compiler import MIN_MAJOR, installable
from llamafleet.plans.toolkit.methods import offers
from llamafleet.protocol.job import JobError, Progress, Stamp
from llamafleet.settings import Settings
from llamafleet.tables import driver_packages
from llamafleet.tables.distributions import distributions
from llamafleet.tables.toolkits import ToolkitRow, toolkits
from tests.plans.hosts import (
    GPU_HOST,
    HOUSE,
    LAYOUT,
    build_of,
    chosen,
    driver,
    gcc,
    gpu,
    installed,
    only_problem,
    plan,
    refused,
)
from tests.plans.hosts import toolkit as there

NVIDIA = "https://developer.download.nvidia.com/compute/cuda"


def system(os_id: str, version: str, glibc: str, major: int | None, **more: Any) -> HostSnapshot:
    """A host of that distribution with its own gcc (None: without a compiler)."""
    manager = "dnf" if os_id in ("rhel", "rocky", "fedora") else "apt"
    return replace(
        GPU_HOST,
        os_id=os_id,
        os_version=version,
        os_like=("rhel", "centos", "fedora") if os_id == "rocky" else (),
        os_name=f"{os_id} {version}",
        package_manager=more.pop("package_manager", manager),
        glibc=glibc,
        compilers=gcc(major) if major else (),
        **more,
    )


JAMMY = system("ubuntu", "22.04", "2.35", 11)
NOBLE = system("ubuntu", "24.04", "2.39", 13)
BOOKWORM = system("debian", "12", "2.36", 12)
TRIXIE = system("debian", "13", "2.41", 14)
ROCKY8 = system("rocky", "8.10", "2.28", 8)
ROCKY9 = system("rocky", "9.4", "2.34", 11)
FEDORA40 = system("fedora", "40", "2.39", 14)
FEDORA41 = system("fedora", "41", "2.40", 14)
MINT = system("linuxmint", "22", "2.39", 13)


@pytest.mark.parametrize(
    ("host", "branch", "version", "method", "compiler"),
    [
        (JAMMY, "580", "13.0", "wheels", None),
        (JAMMY, "570", "12.8", "apt", None),
        (JAMMY, "550", "12.4", "apt", None),
        (JAMMY, "535", "12.2", "apt", None),
        # NVIDIA's repository for 24.04 begins with 12.5, that for Debian 12 with 12.3.
        (NOBLE, "570", "12.8", "apt", None),
        (NOBLE, "550", "12.4", "runfile", None),
        (NOBLE, "535", "12.2", "runfile", "g++-12"),
        (BOOKWORM, "550", "12.4", "apt", None),
        (BOOKWORM, "535", "12.2", "runfile", None),
        (TRIXIE, "580", "13.0", "wheels", None),
        (ROCKY8, "550", "12.4", "dnf", "gcc-toolset-13-gcc-c++"),
        (ROCKY8, "580", "13.0", "wheels", "gcc-toolset-14-gcc-c++"),
        (ROCKY9, "570", "12.8", "dnf", None),
        (ROCKY9, "535", "12.2", "dnf", None),
        (FEDORA41, "570", "12.8", "dnf", None),
        (FEDORA40, "550", "12.4", "runfile", "gcc13-c++"),
        (MINT, "570", "12.8", "runfile", None),
        (MINT, "580", "13.0", "wheels", None),
    ],
)
def test_the_newest_toolkit_by_the_best_method(
    host: HostSnapshot, branch: str, version: str, method: str, compiler: str | None
) -> None:
    made = chosen(replace(host, driver=driver(branch)))
    assert (made.version, made.method, made.install) == (version, method, True)
    assert made.compiler == compiler


@pytest.mark.parametrize(
    ("host", "branch", "check"),
    [
        # Every toolkit that driver 570 runs clashes with glibc 2.41.
        (TRIXIE, "570", "driver"),
        # Nothing is known of Mint's packages: a compiler that fits must be there.
        (MINT, "535", "compiler"),
    ],
)
def test_no_toolkit_by_any_method(host: HostSnapshot, branch: str, check: str) -> None:
    assert refused(replace(host, driver=driver(branch))).check == check


def test_a_gpu_that_cuda_13_dropped_gets_the_last_12() -> None:
    made = chosen(replace(BOOKWORM, gpus=(gpu("6.1"),)))
    assert (made.version, made.method) == ("12.9", "apt")


def test_nvidias_repository_its_key_and_nothing_but_the_toolkit() -> None:
    made = chosen(replace(JAMMY, driver=driver("570")))
    assert (made.root, made.libdir) == ("/usr/local/cuda-12.8", "/usr/local/cuda-12.8/lib64")
    source = made.source
    assert source is not None and source.manager == "apt" and source.repository is not None
    assert source.repository.url == f"{NVIDIA}/repos/ubuntu2204/x86_64/"
    assert source.repository.key_url == f"{NVIDIA}/repos/ubuntu2204/x86_64/3bf863cc.pub"
    assert source.repository.fingerprint == "EB693B3035CD5710E231E123A4B469963BF863CC"
    assert set(source.packages) == {
        "cuda-nvcc-12-8",
        "cuda-cudart-dev-12-8",
        "cuda-driver-dev-12-8",
        "libcublas-dev-12-8",
        "cuda-cccl-12-8",
    }
    assert set(source.packages) < set(source.repository.allowed)
    assert {"cuda-crt-12-8", "libcublas-12-8"} < set(source.repository.allowed)


def test_every_repository_gives_versioned_packages_and_no_driver() -> None:
    """What the guard would refuse is in no list, and neither are the packages of it all."""
    for row in distributions():
        host = system(row.id, row.version, "2.36", 12, package_manager=row.manager)
        for offer in offers(host, Settings(), LAYOUT, None):
            source = offer.source
            if source is None or source.repository is None:
                continue
            for name in source.packages:
                assert name.endswith(f"-{offer.version.replace('.', '-')}"), name
            for name in source.repository.allowed:
                assert not driver_packages.has(name, "refused"), name
                assert name not in ("cuda", "cuda-toolkit"), name


def test_the_sbsa_folder_and_runfile_for_arm64() -> None:
    host = replace(JAMMY, arch="aarch64", driver=driver("570"))
    made = chosen(host)
    assert made.source and made.source.repository
    assert made.source.repository.url == f"{NVIDIA}/repos/ubuntu2204/sbsa/"
    runfile = chosen(replace(BOOKWORM, arch="aarch64", driver=driver("570")))
    assert runfile.method == "runfile" and runfile.source
    assert runfile.source.url.endswith("_linux_sbsa.run")


def test_a_runfile_has_a_url_a_hash_and_a_folder_of_our_own() -> None:
    made = chosen(replace(MINT, driver=driver("570")))
    assert made.root == LAYOUT.toolkit("12.8-runfile") and made.libdir == f"{made.root}/lib64"
    assert made.source and made.source.url.startswith(f"{NVIDIA}/12.8.")
    assert len(made.source.sha256) == 64 and made.key == "runfile-12.8"


def test_a_mirror_takes_the_place_of_nvidias_address() -> None:
    mirror = "http://mirror.lab.example/nvidia/"
    packages = chosen(replace(JAMMY, driver=driver("570")), toolkit_url=mirror)
    assert packages.source and packages.source.repository
    assert packages.source.repository.url == f"{mirror}repos/ubuntu2204/x86_64/"
    runfile = chosen(replace(MINT, driver=driver("570")), toolkit_url=mirror)
    assert runfile.source and runfile.source.url.startswith(f"{mirror}12.8.")


def test_a_host_with_nvidias_repository_gets_no_second_one() -> None:
    """apt refuses two sources of one place with different keys."""
    host = replace(JAMMY, driver=driver("570"), cuda_repository="/etc/apt/sources.list.d/cuda.list")
    made = chosen(host)
    assert made.method == "apt" and made.source
    assert made.source.packages and made.source.repository is None


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "apt"),
        ({"toolkit_method": "runfile"}, "runfile"),
        ({"scope": "user"}, "runfile"),
        ({"install_packages": False}, "runfile"),
    ],
)
def test_what_the_settings_allow(settings: dict[str, Any], method: str) -> None:
    assert chosen(replace(JAMMY, driver=driver("570")), **settings).method == method


@pytest.mark.parametrize(
    ("host", "settings", "says"),
    [
        (JAMMY, {"toolkit_method": "present"}, "toolkit_method = 'present'"),
        (JAMMY, {"toolkit_method": "dnf"}, "dnf: ubuntu 22.04 has apt"),
        (JAMMY, {"toolkit_method": "distro"}, "ubuntu 22.04 has no package of its own"),
        (NOBLE, {"toolkit_method": "distro"}, "the driver here is not of packages"),
        (JAMMY, {"toolkit_method": "apt", "scope": "user"}, "apt: scope = 'user'"),
        (JAMMY, {"toolkit_method": "apt", "install_packages": False}, "install_packages = False"),
        (MINT, {"toolkit_method": "apt"}, "apt: not known for linuxmint 22"),
        (FEDORA40, {"toolkit_method": "dnf"}, "NVIDIA has no repository for fedora 40"),
        (replace(FEDORA41, arch="aarch64"), {"toolkit_method": "dnf"}, "nothing for aarch64"),
        (NOBLE, {"toolkit_method": "apt", "toolkit_version": "12.4"}, "apt: has no CUDA 12.4 here"),
        (JAMMY, {"toolkit_version": "12.4", "house": HOUSE}, "no network is used"),
        (replace(GPU_HOST, arch="ppc64le"), {}, "runfile: has no CUDA 13.0 here"),
        # What is missing is a method, not the compiler, which could be installed.
        (
            replace(NOBLE, driver=driver("535"), compilers=()),
            {"toolkit_method": "wheels"},
            "expected CUDA 12.2 (",
        ),
    ],
)
def test_why_no_method_installs_it(host: HostSnapshot, settings: dict[str, Any], says: str) -> None:
    problem = refused(host, **settings)
    assert problem.check == "toolkit" and says in str(problem), problem
    assert "toolkit_root" in problem.next


def test_a_wheelhouse_leaves_the_mirror() -> None:
    made = chosen(
        replace(JAMMY, driver=driver("570")), house=HOUSE, toolkit_url="http://mirror.lab"
    )
    assert made.method == "apt"


def test_a_mirror_of_nvidias_is_none_of_the_distribution() -> None:
    packaged = replace(driver("535"), packages=(Package("libcuda1", "535.183.01-1"),))
    problem = refused(
        replace(BOOKWORM, driver=packaged),
        house=HOUSE,
        toolkit_url="http://mirror.lab",
        toolkit_method="distro",
    )
    assert "distro: wheelhouse: no network is used;" in str(problem), problem


def test_the_distributions_own_beside_the_distributions_driver() -> None:
    packaged = replace(driver("535"), packages=(Package("libcuda1", "535.183.01-1"),))
    host = replace(BOOKWORM, driver=packaged)
    made = chosen(host, toolkit_method="distro")
    assert (made.version, made.root) == ("11.8", "/usr")
    assert made.libdir == "/usr/lib/x86_64-linux-gnu"
    assert made.compiler == "g++-11"
    assert made.source and made.source.packages == ("nvidia-cuda-toolkit",)
    assert made.source.repository is None
    # Unasked, the newer one of NVIDIA is taken.
    assert chosen(host).version == "12.2"


@pytest.mark.parametrize(("host", "method"), [(JAMMY, "apt"), (MINT, "runfile"), (ROCKY9, "dnf")])
def test_an_installed_toolkit_of_a_method_is_used_and_the_build_is_the_same(
    host: HostSnapshot, method: str
) -> None:
    host = replace(host, driver=driver("570"))
    before = chosen(host, toolkit_method=method)
    after = replace(
        host,
        toolkits=(replace(there("12.8", before.root), libdir=before.libdir),),
        jobs=(installed(before.key),),
    )
    made = chosen(after, toolkit_method=method)
    assert not made.install and made.root == before.root
    first, second = build_of(host, toolkit_method=method), build_of(after, toolkit_method=method)
    assert first.fingerprint == second.fingerprint


def failed_in(phase: str) -> Stamp:
    error = JobError(phase=phase)
    return Stamp(kind="toolkit", key="apt-12.8", ok=False, error=error)


def was_in(phase: str) -> Progress:
    return Progress(kind="toolkit", key="apt-12.8", pid=1, start_ticks=1, phase=phase)


@pytest.mark.parametrize(
    ("job", "install"),
    [
        (None, False),
        ({"alive": True}, True),
        ({"stamp": failed_in("check")}, True),
        ({"stamp": failed_in("install")}, True),
        ({"unreadable": "version: found 2, expected 1"}, True),
        # Killed, or the host went down: no stamp, and the files may all be there.
        ({"progress": was_in("install")}, True),
        ({"progress": was_in("simulate")}, False),
        # The administrator has done what the job could not.
        ({"stamp": failed_in("repository")}, False),
    ],
)
def test_packages_that_are_there_but_not_proven(job: dict[str, Any] | None, install: bool) -> None:
    host = replace(JAMMY, driver=driver("570"), toolkits=(there("12.8"),))
    jobs = (Job("toolkit", "apt-12.8", **{"alive": False, "root": True, **job}),) if job else ()
    made = chosen(replace(host, jobs=jobs))
    assert (made.install, made.root) == (install, "/usr/local/cuda-12.8")
    assert (made.method, made.key) == (("apt", "apt-12.8") if install else ("present", ""))


@pytest.mark.parametrize("told", [{"alive": True}, {"stamp": failed_in("install")}])
def test_of_a_package_manager_s_job_the_account_is_not_believed(told: dict[str, Any]) -> None:
    """It may plant a folder of that name among its own: root would wait for nothing."""
    planted = Job("toolkit", "apt-12.8", **{"alive": False, **told})
    host = replace(JAMMY, driver=driver("570"), jobs=(planted,))
    made = plan(host, toolkit_method="apt").toolkit
    assert made and made.job and made.job.root and made.job.start
    assert "is being installed" not in made.reason
    assert chosen(replace(host, toolkits=(there("12.8"),))).method == "present"


def test_wheels_and_runfile_of_one_version_do_not_take_each_others_place() -> None:
    wheels = chosen(JAMMY, toolkit_method="wheels")
    runfile = chosen(JAMMY, toolkit_method="runfile")
    assert wheels.version == runfile.version and wheels.root != runfile.root


@pytest.mark.parametrize("manager", ["apt", None])
def test_a_distribution_without_its_own_package_manager_is_not_known(manager: str | None) -> None:
    """Fedora has a package with apt-get, and images of it come without dnf."""
    host = replace(FEDORA41, driver=driver("570"), package_manager=manager)
    assert chosen(host).method == "runfile"
    assert refused(replace(FEDORA40, driver=driver("550"), package_manager=manager)).check == (
        "compiler"
    )


def test_a_runfile_that_is_half_installed_is_installed_again() -> None:
    host = replace(MINT, driver=driver("570"))
    root = chosen(host).root
    assert chosen(replace(host, toolkits=(there("12.8", root),))).install


def test_the_compiler_of_the_toolkit_is_installed_first_and_then_all_is_planned() -> None:
    host = replace(NOBLE, driver=driver("535"))
    first = plan(host)
    assert first.packages.names == ("g++-12",) and first.build is None and not first.problems
    assert first.packages.config and first.packages.config.compilers == ("g++-12",)
    assert first.toolkit and first.toolkit.version == "12.2"
    then = plan(replace(host, compilers=gcc(13, 12)))
    assert not then.packages.names and then.build
    assert "-DCMAKE_CUDA_HOST_COMPILER=/usr/bin/g++-12" in then.build.config.cmake_args


def test_a_host_without_a_compiler_gets_the_one_that_its_toolkit_accepts() -> None:
    bare = plan(replace(NOBLE, driver=driver("535"), compilers=()))
    assert bare.packages.names == ("g++-12",) and not bare.problems
    newest = plan(replace(NOBLE, compilers=()))
    assert newest.packages.names == ("g++",) and newest.toolkit
    unknown = plan(replace(MINT, driver=driver("535"), compilers=()))
    assert unknown.packages.names == ("g++",) and unknown.toolkit is None


def test_a_compiler_that_may_not_be_installed_is_named() -> None:
    host = replace(NOBLE, driver=driver("535"))
    problem = only_problem(plan(host, install_packages=False))
    assert problem.check == "compiler" and problem.next == "sudo apt install g++-12"
    forced = chosen(host, allow_unsupported_compiler=True)
    assert forced.compiler is None and forced.version == "12.2"


def test_a_toolkit_that_needs_no_new_compiler_comes_before_a_newer_one_that_does() -> None:
    host = replace(NOBLE, driver=driver("550"), toolkits=(there("12.4"), there("12.3")))
    assert chosen(host).version == "12.4"
    older = replace(host, toolkits=(there("12.3"), there("11.8")))
    made = chosen(older)
    assert made.version == "12.3" and made.compiler == "g++-12"


@pytest.mark.parametrize("row", toolkits(), ids=lambda row: row.version)
def test_only_a_compiler_that_the_toolkit_accepts_is_installed(row: ToolkitRow) -> None:
    """g++-9 and g++-10 are offered by some distributions, and never chosen."""
    for host in (JAMMY, NOBLE, BOOKWORM, TRIXIE, ROCKY8, ROCKY9, FEDORA40, FEDORA41):
        found = installable(host, Settings(), row)
        assert found is None or MIN_MAJOR <= found.major <= row.gcc
    assert installable(JAMMY, Settings(), row) is not None
    assert installable(MINT, Settings(), row) is None
    assert installable(JAMMY, Settings(host_compiler="/usr/bin/g++-9"), row) is None


def test_packages_that_brought_a_compiler_of_wrong_code_are_not_asked_again() -> None:
    """The package manager's newest is known once it is there: the job failed, its files stay."""
    failed = installed("apt-13.2", ok=False, error=JobError(phase="check"))
    bad = replace(there("13.2"), build="13.2.78")
    newest = driver("590", cuda="13.2")
    host = replace(NOBLE, gpus=(gpu("12.0"),), driver=newest)
    assert chosen(host, toolkit_method="apt").version == "13.2"
    made = chosen(replace(host, toolkits=(bad,), jobs=(failed,)), toolkit_method="apt")
    assert (made.version, made.method, made.install) == ("13.1", "apt", True)
    assert "nvcc 13.2.78" in dict(made.ruled_out)["13.2"]
