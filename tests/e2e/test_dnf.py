"""The toolkit job with the real dnf: signed packages of NVIDIA's names, from a real repository.

The host is a Debian with dnf; the plan is that of a Rocky Linux 8 with driver 550. nvcc is a script
here: what a toolkit compiles is seen in test_cuda.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.inventory import read_supplies
from llamafleet.layout import DNF_SOURCE, USER, Layout
from llamafleet.plans.make import make_plan
from llamafleet.protocol.job import PackagesConfig
from llamafleet.render import toolkit_config
from llamafleet.settings import Settings
from llamafleet.zipapps import host_zipapp
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.cuda_repository import PASSWORD, served
from tests.e2e.cuda_repository import USER as MIRROR_USER
from tests.hosts.recorded import load
from tests.onhost.toolkit.test_install import ANSWERS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "dnf-a"
FOLDER = "srv/mirror/repos/rhel8/x86_64"
LAYOUT = Layout.system()
RECORD = LAYOUT.installed_packages.lstrip("/")
KEY = "dnf-12.4"
FOLDER_OF_JOB, TOLD = LAYOUT.root_job("toolkit", KEY), LAYOUT.config("toolkit", KEY)
JOB = f"python3 -I {LAYOUT.zipapp} job --kind toolkit --config {TOLD} --dir {FOLDER_OF_JOB}"
STAMP = f"{FOLDER_OF_JOB}/stamp.json".lstrip("/")
SOURCE = DNF_SOURCE.lstrip("/")
NVCC = "/usr/local/cuda-12.4/bin/nvcc"
SPEC = """Name: {name}
Version: {version}
Release: 1
Summary: test
License: test
BuildArch: x86_64
AutoReq: no
{requires}
%description
test
%install
{install}
%files
{files}
"""
INSTALL = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "
INSTALL += "--no-install-recommends dnf rpm createrepo-c gnupg"


class Rpms:
    """Signed packages on the host."""

    def __init__(self, host: BootedHost) -> None:
        self.host = host
        self.ok(INSTALL)
        self.ok(f"useradd --system --create-home {USER}")
        self.ok("gpg --batch --passphrase '' --quick-gen-key lab rsa3072 sign never")
        self.ok(f"mkdir -p /{FOLDER} /srv/own /root/specs")
        self.ok(r"printf '%%_gpg_name lab\n%%__gpg /usr/bin/gpg\n' >/root/.rpmmacros")
        self.ok(f"gpg --armor --export lab >/{FOLDER}/D42D0685.pub")

    def ok(self, command: str) -> str:
        done = self.host.run(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def add(self, name: str, requires: str = "", file: str = "", folder: str = FOLDER) -> None:
        spec = SPEC.format(
            name=name,
            version="12.4.1",
            requires=f"Requires: {requires}" if requires else "",
            install=f"install -D -m 755 /root/specs/nvcc %{{buildroot}}{file}" if file else "",
            files=file,
        )
        (self.host.tree / f"root/specs/{name}.spec").write_text(spec)
        places = f"--define '_topdir /root/build' --define '_rpmdir /{folder}'"
        self.ok(f"rm -f /{folder}/x86_64/{name}-[0-9]*.rpm")
        self.ok(f"rpmbuild --quiet {places} -bb /root/specs/{name}.spec")
        self.ok(f"rpmsign --addsign /{folder}/x86_64/{name}-[0-9]*.rpm")

    def index(self, folder: str = FOLDER) -> None:
        self.ok(f"createrepo_c -q /{folder} && dnf clean -q all")


@pytest.fixture(scope="module")
def rpms(booted: BootedHost) -> Rpms:
    made = Rpms(booted)
    (booted.tree / "root/specs/nvcc").write_text(
        ANSWERS.format(release="12.4", build=131, text="compiled", status=0)
    )
    made.add("cuda-crt-12-4")
    made.add("cuda-nvcc-12-4", "cuda-crt-12-4", NVCC)
    for name in ("cuda-cudart-devel", "cuda-driver-devel", "libcublas-devel", "cuda-cccl"):
        made.add(f"{name}-12-4")
    made.add("nvidia-driver")
    # A repository of somebody else's, which nothing limits.
    made.add("nvidia-driver-libs", folder="srv/own")
    made.index()
    made.index("srv/own")
    own = "[own]\nname=own\nbaseurl=file:///srv/own\ngpgcheck=0\n"
    made.ok("mkdir -p /etc/yum.repos.d")
    (booted.tree / "etc/yum.repos.d/own.repo").write_text(own)
    return made


@pytest.fixture(scope="module")
def url(booted: BootedHost, rpms: Rpms) -> Iterator[str]:
    with served(booted.tree / "srv/mirror") as address:
        yield address


def job(host: BootedHost, url: str, **settings: Any) -> tuple[int, dict[str, Any]]:
    """Exit status and stamp of the toolkit job of that plan."""
    chosen = Settings(toolkit_url=url, toolkit_method="dnf", **settings)
    snapshot = replace(load("l40s-550-rocky8-toolset").snapshot, toolkits=())
    supplies = read_supplies({HOST: chosen})[HOST]
    plan = make_plan(HOST, chosen, snapshot, LAYOUT, supplies=supplies)
    assert plan.toolkit and plan.toolkit.version == "12.4", plan.problems
    config = toolkit_config(plan.toolkit)
    assert isinstance(config, PackagesConfig)
    for path, content in (
        (TOLD, json.dumps(asdict(config)).encode()),
        (LAYOUT.zipapp, host_zipapp()),
    ):
        file = host.tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    run = host.run(JOB)
    assert (host.tree / STAMP).exists(), run.stdout + run.stderr
    return run.returncode, json.loads((host.tree / STAMP).read_text())


def key(host: BootedHost, tmp_path: Path) -> str:
    file = tmp_path / "mirror.asc"
    file.write_bytes((host.tree / FOLDER / "D42D0685.pub").read_bytes())
    return str(file)


def test_a_key_that_is_not_nvidias_is_not_trusted(booted: BootedHost, url: str) -> None:
    status, stamp = job(booted, url)
    assert status == 1
    assert "expected 610C7B14E068A878070DA4E99CD0A493D42D0685" in stamp["error"]["lines"][0]
    assert not (booted.tree / SOURCE).exists()


def test_packages_that_would_bring_a_driver_are_refused(
    booted: BootedHost, rpms: Rpms, url: str, tmp_path: Path
) -> None:
    rpms.add("libcublas-devel-12-4", "nvidia-driver-libs")
    rpms.index()
    status, stamp = job(booted, url, toolkit_key=key(booted, tmp_path))
    assert status == 1
    assert "install or replace nvidia-driver-libs" in stamp["error"]["lines"][0]
    assert booted.run("rpm -q cuda-nvcc-12-4").returncode != 0
    assert not (booted.tree / RECORD).exists()
    assert not (booted.tree / SOURCE).exists()
    rpms.add("libcublas-devel-12-4")
    rpms.index()


def test_a_mirror_that_does_not_answer_leaves_dnf_as_it_was(
    booted: BootedHost, rpms: Rpms, tmp_path: Path
) -> None:
    status, stamp = job(booted, "http://127.0.0.1:9", toolkit_key=key(booted, tmp_path))
    assert status == 1 and stamp["error"]["phase"] == "simulate"
    assert "metadata for repo 'llamafleet-cuda'" in stamp["error"]["lines"][0]
    # Debian's dnf.conf says True; dnf's own default, which stands elsewhere, is False.
    strict = "--setopt=skip_if_unavailable=False"
    rpms.ok(f"dnf -y {strict} install --downloadonly nvidia-driver-libs")


def test_a_package_that_the_repository_lacks_is_named(
    booted: BootedHost, rpms: Rpms, url: str, tmp_path: Path
) -> None:
    rpms.ok(f"mv /{FOLDER}/x86_64/cuda-cccl-12-4-*.rpm /root/")
    rpms.index()
    status, stamp = job(booted, url, toolkit_key=key(booted, tmp_path))
    assert status == 1
    assert "Unable to find a match: cuda-cccl-12-4" in stamp["error"]["lines"][0]
    rpms.ok(f"mv /root/cuda-cccl-12-4-*.rpm /{FOLDER}/x86_64/")
    rpms.index()


def test_dnf_installs_the_toolkit_and_never_a_driver(
    booted: BootedHost, rpms: Rpms, url: str, tmp_path: Path
) -> None:
    rpms.ok(f"rpm -i --nosignature /{FOLDER}/x86_64/cuda-cccl-12-4-*.rpm")
    status, stamp = job(booted, url, toolkit_key=key(booted, tmp_path))
    assert status == 0, stamp
    assert (booted.tree / NVCC.lstrip("/")).exists() and stamp["nvcc"] == "12.4.131"
    assert "cuda-nvcc-12-4 12.4.1" in stamp["packages"]
    record = (booted.tree / RECORD).read_text().split()
    # What was there before is not llamafleet's; the key that rpm trusts now is.
    assert "cuda-nvcc-12-4" in record and "cuda-cccl-12-4" not in record
    assert [name for name in record if name.startswith("gpg-pubkey-")] == (
        booted.run("rpm -qa 'gpg-pubkey*'").stdout.split()
    )
    assert booted.run("rpm -q nvidia-driver nvidia-driver-libs").returncode == 2
    # The repository offers a driver, and gives none.
    found = booted.run(f"test -e /{FOLDER}/x86_64/nvidia-driver-12.4.1-1.x86_64.rpm")
    assert found.returncode == 0
    refused = booted.run("dnf -y install nvidia-driver")
    assert refused.returncode != 0 and "nvidia-driver" in refused.stdout + refused.stderr
    assert "done already" in booted.run(JOB).stdout


def test_a_package_without_the_signature_is_not_installed(
    booted: BootedHost, rpms: Rpms, url: str, tmp_path: Path
) -> None:
    rpms.ok("dnf -y -q remove cuda-nvcc-12-4")
    rpms.ok(f"rpmsign --delsign /{FOLDER}/x86_64/cuda-nvcc-12-4-*.rpm")
    rpms.index()
    (booted.tree / STAMP).unlink()
    status, stamp = job(booted, url, toolkit_key=key(booted, tmp_path))
    assert status == 1 and stamp["error"]["phase"] == "install"
    assert booted.run("rpm -q cuda-nvcc-12-4").returncode != 0


def test_a_user_and_a_password_stand_in_a_file_that_root_alone_reads(
    booted: BootedHost, rpms: Rpms, tmp_path: Path
) -> None:
    """And another dnf that is at work is waited for."""
    rpms.add("cuda-nvcc-12-4", "cuda-crt-12-4", NVCC)
    rpms.index()
    own = tmp_path / "netrc"
    own.write_text(f"machine 127.0.0.1 login {MIRROR_USER} password {PASSWORD}\n")
    own.chmod(0o600)
    (booted.tree / LAYOUT.netrc.lstrip("/")).write_text(own.read_text())
    with served(booted.tree / "srv/mirror", guarded=True) as url:
        given = key(booted, tmp_path)
        status, stamp = job(booted, url, toolkit_key=given)
        assert status == 1 and "401" in " ".join(stamp["error"]["lines"]), stamp
        rpms.ok("systemd-run --quiet --unit=holder sleep 12")
        pid = rpms.ok("systemctl show -P MainPID holder").strip()
        (booted.tree / "var/cache/dnf/metadata_lock.pid").write_text(pid)
        begun = time.monotonic()
        status, stamp = job(booted, url, toolkit_key=given, netrc=str(own))
        assert status == 0, stamp
        assert time.monotonic() - begun > 8
    source = booted.tree / SOURCE
    assert source.stat().st_mode & 0o777 == 0o600
    assert f"\nusername={MIRROR_USER}\npassword={PASSWORD}\n" in source.read_text()
    told = rpms.ok(f"cat {FOLDER_OF_JOB}/*.log {FOLDER_OF_JOB}/*.json {TOLD}")
    assert PASSWORD not in told
