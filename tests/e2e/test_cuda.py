"""The CUDA side as far as it goes without a GPU, by the real command on a booted host.

nvidia-smi is a script that answers as an RTX 4090's with driver 580 does; all else is real: the
toolkit's wheels, nvcc, llama-cpp-python's tree. The build is stopped after a few units, by
uninstalling it while it runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.onhost.verify import fatbin
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.cuda_repository import REPOSITORY, Mirror, index, package, served
from tests.e2e.fake_driver import plant_nvidia_smi
from tests.e2e.runs import pyinfra, start, write_inventory

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-b"
SHORT_FIRST: dict[str, object] = {"cmake_options": {"CMAKE_GENERATOR": "Ninja"}}
"""Who names the build program gets CMake's own order: the longest units take a minute each."""
PARTS = ("bin/nvcc", "lib64/libcublas.so", "include/cublas_v2.h", "nvvm/bin/cicc")


def test_a_driver_that_no_allowed_method_has_a_toolkit_for_is_refused(
    booted: BootedHost, folder: Path
) -> None:
    plant_nvidia_smi(booted, "535.183.01", "12.2")
    fleet = write_inventory(folder, {HOST: booted.data(toolkit_method="wheels")})
    run = pyinfra(folder, "-y", fleet, "deploy.py")
    assert run.returncode != 0
    assert "PROBLEM toolkit: found no CUDA Toolkit on the host; expected CUDA 12.2" in run.output
    assert "apt: toolkit_method = 'wheels'" in run.output, run.output
    assert booted.run("test -e /opt/llamafleet").returncode != 0


def test_the_toolkit_of_the_plan_compiles_llama_cpp_for_sm_89(
    booted: BootedHost, folder: Path
) -> None:
    plant_nvidia_smi(booted, "580.95.05", "13.0")
    fleet = write_inventory(folder, {HOST: booted.data(**SHORT_FIRST)})
    run = start(folder, fleet)
    try:
        objects = _wait_for_units(booted, run, 3)
    finally:
        run.kill()
        output = run.communicate()[0]
    assert "install CUDA 13.0" in output, output
    assert "-DCMAKE_CUDA_ARCHITECTURES=89" in output
    for path in objects:
        assert {str(code) for code in fatbin.read(path).codes} == {"sm_89", "compute_89"}, path
    toolkit = booted.tree / "opt/llamafleet/toolkits/cuda-13.0"
    for part in PARTS:
        assert (toolkit / part).exists(), part
    # For the packages of the tests below: this one goes with uninstall.
    subprocess.run(["cp", "-al", toolkit, folder.parent / "toolkit"], check=True)


OBJECT = r"\t(\S+\.cu\.o)\t"


def _wait_for_units(
    host: BootedHost, run: subprocess.Popen[str], count: int, limit: float = 900
) -> list[Path]:
    """Finished object files of the CUDA backend.

    By ninja's log: nvcc moves nothing into place, and of the files that are there as many as
    there are jobs may be half written.
    """
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and run.poll() is None:
        # CMake removes folders meanwhile, which os.walk passes over.
        for place, _, names in os.walk(host.tree / "var/lib/llamafleet/build"):
            log = Path(place, ".ninja_log")
            found = re.findall(OBJECT, log.read_text()) if log.name in names else []
            if len(found) >= count:
                return [Path(place, name) for name in found[:count]]
        time.sleep(1)
    run.kill()
    raise AssertionError(f"no {count} CUDA units were compiled:\n{run.communicate()[0]}")


def test_uninstall_stops_a_build_that_runs(booted: BootedHost, folder: Path) -> None:
    assert "nvcc" in booted.run("ps -eo args || cat /proc/[0-9]*/cmdline").stdout
    fleet = write_inventory(folder, {HOST: booted.data()})
    run = pyinfra(folder, "-y", fleet, "uninstall.py")
    assert run.returncode == 0, run.output
    left = booted.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert "llamafleet" not in left.replace("llamafleet' ", "") and "cicc" not in left, left
    assert booted.run("ls -d /opt/llamafleet /var/lib/llamafleet /etc/llamafleet").stdout == ""
    assert booted.run("systemctl list-unit-files 'llamafleet*' --no-legend").stdout == ""


@pytest.fixture(scope="module")
def mirror(booted: BootedHost, folder: Path) -> Iterator[tuple[Mirror, str]]:
    """A lab's mirror that offers the toolkit of the wheels above as NVIDIA's packages, and its URL.

    The host itself has another source, with a driver's library.
    """
    lab = folder.parent / "lab"
    lab.mkdir()
    made = Mirror(lab)
    made.add_toolkit(folder.parent / "toolkit", "13.0")
    made.sign()
    own = booted.tree / "srv/own"
    own.mkdir()
    package(own, lab / "own", "libcuda1", "580.95.05")
    (own / "Packages").write_text(index(own))
    source = booted.tree / "etc/apt/sources.list.d/own.list"
    source.write_text("deb [trusted=yes] file:/srv/own ./\n")
    with served(made.root) as url:
        yield made, url
    made.gpg.stop()


def apt_fleet(host: BootedHost, folder: Path, url: str, **settings: object) -> str:
    data = host.data(toolkit_method="apt", toolkit_url=url, **settings)
    return write_inventory(folder, {HOST: data})


def test_a_repository_with_another_key_is_not_trusted(
    booted: BootedHost, folder: Path, mirror: tuple[Mirror, str]
) -> None:
    run = pyinfra(folder, "-y", apt_fleet(booted, folder, mirror[1]), "deploy.py")
    assert run.returncode != 0
    assert (
        f"found {mirror[0].fingerprint}; expected EB693B3035CD5710E231E123A4B469963BF863CC"
        in run.output
    ), run.output
    assert not list((booted.tree / "etc/apt").rglob("*llamafleet*"))


def test_packages_that_would_bring_a_driver_are_refused(
    booted: BootedHost, folder: Path, mirror: tuple[Mirror, str]
) -> None:
    repository, url = mirror
    repository.add("cuda-cccl-13-0", "13.0.86", "libcuda1")
    repository.sign()
    fleet = apt_fleet(booted, folder, url, toolkit_key=str(repository.key))
    run = pyinfra(folder, "-y", fleet, "deploy.py")
    assert run.returncode != 0
    assert "found that it would install or replace libcuda1; expected cuda-" in run.output
    assert " alone, without a change to the driver" in run.output
    assert booted.run("dpkg -s libcuda1 cuda-nvcc-13-0").returncode != 0
    assert not list((booted.tree / "etc/apt").rglob("*llamafleet*"))


def test_a_repository_that_the_pin_would_miss_is_refused(
    booted: BootedHost, folder: Path, mirror: tuple[Mirror, str]
) -> None:
    repository, url = mirror
    repository.sign(label="lab")
    fleet = apt_fleet(booted, folder, url, toolkit_key=str(repository.key))
    run = pyinfra(folder, "-y", fleet, "deploy.py")
    assert run.returncode != 0
    assert "found priority 500 in `apt-cache policy`; expected a negative one" in run.output
    assert booted.run("dpkg -s cuda-nvcc-13-0").returncode != 0
    assert not list((booted.tree / "etc/apt").rglob("*llamafleet*"))


def test_apt_installs_the_toolkit_and_never_a_driver(
    booted: BootedHost, folder: Path, mirror: tuple[Mirror, str]
) -> None:
    repository, url = mirror
    repository.add_toolkit(folder.parent / "toolkit", "13.0")
    repository.sign()
    key = str(repository.key)
    run = start(folder, apt_fleet(booted, folder, url, toolkit_key=key, **SHORT_FIRST))
    try:
        objects = _wait_for_units(booted, run, 1)
    finally:
        run.kill()
        output = run.communicate()[0]
    assert "install CUDA 13.0 at /usr/local/cuda-13.0" in output, output
    assert f"repository {url}/{REPOSITORY}/" in output
    for path in objects:
        assert {str(code) for code in fatbin.read(path).codes} == {"sm_89", "compute_89"}, path
    for part in PARTS:
        assert (booted.tree / "usr/local/cuda-13.0" / part).exists(), part
    assert "Candidate: (none)" in booted.run("apt-cache policy cuda-drivers").stdout
    assert booted.run("apt-get -s install cuda-drivers").returncode != 0
    assert booted.run("dpkg-query -W 'nvidia-*' 'cuda-drivers' libcuda1").stdout == ""
    stamp = json.loads(
        (booted.tree / "opt/llamafleet/jobs/toolkit/apt-13.0/stamp.json").read_text()
    )
    assert stamp["ok"] and "cuda-nvcc-13-0 13.0.88-1" in stamp["packages"]
    # Nobody but root may change what a job of root does.
    folders = booted.run("stat -c %U:%a /opt/llamafleet/jobs /opt/llamafleet/jobs/toolkit/apt-13.0")
    assert folders.stdout.split() == ["root:755", "root:755"]


def test_uninstall_takes_the_repository_and_names_the_packages(
    booted: BootedHost, folder: Path
) -> None:
    run = pyinfra(folder, "-y", write_inventory(folder, {HOST: booted.data()}), "uninstall.py")
    assert run.returncode == 0 and "cuda-nvcc-13-0" in run.output, run.output
    assert booted.run("find / -xdev -name '*llamafleet*' -not -path '/proc/*'").stdout == ""


def test_uninstall_amid_an_installation_lets_apt_end(
    booted: BootedHost, folder: Path, mirror: tuple[Mirror, str]
) -> None:
    """Ended halfway, dpkg refuses all work until a person sets it right."""
    repository, url = mirror
    assert booted.run("apt-get -y remove cuda-cccl-13-0").returncode == 0
    script = repository.work / "cuda-cccl-13-0/DEBIAN/postinst"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho slow; sleep 12; touch /srv/ended\n")
    script.chmod(0o755)
    repository.add("cuda-cccl-13-0", "13.0.86")
    repository.sign()
    run = start(folder, apt_fleet(booted, folder, url, toolkit_key=str(repository.key)))
    log = booted.tree / "opt/llamafleet/jobs/toolkit/apt-13.0/toolkit.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "\nslow\n" in log.read_text()):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()[0]
        time.sleep(0.5)
    # While it lives it has the host.
    run.kill()
    run.communicate()
    gone = pyinfra(folder, "-y", write_inventory(folder, {HOST: booted.data()}), "uninstall.py")
    assert gone.returncode == 0 and "cuda-cccl-13-0" in gone.output, gone.output
    assert booted.run("dpkg --audit").stdout == ""
    assert (booted.tree / "srv/ended").exists()
    assert booted.run("dpkg -s cuda-cccl-13-0 cuda-nvcc-13-0").returncode == 0
    assert booted.run("find / -xdev -name '*llamafleet*' -not -path '/proc/*'").stdout == ""
