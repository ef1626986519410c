"""A repository's key, files and credentials, over HTTP and by the real apt."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.onhost.download import Network
from llamafleet.onhost.environment import network
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import repository as repositories
from llamafleet.onhost.toolkit.changes import unknown
from llamafleet.onhost.toolkit.openpgp import armored, read
from llamafleet.onhost.toolkit.packages import refuse_unpinned
from llamafleet.onhost.toolkit.repository import set_up, taken_back, with_proxies_of_apt
from llamafleet.protocol.job import JobConfig, PackagesInputs, RepositoryConfig
from tests.gpg import Gpg
from tests.onhost.site import Site, proxy, site
from tests.onhost.toolkit.private_apt import private_apt, repository

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
pytestmark = needs_gpg

USER, PASSWORD = "lab", "s3cret"
URL = "https://mirror.example/repos/debian12/x86_64/"


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    made = Gpg(tmp_path_factory.mktemp("keys") / "ring")
    made.key("pinned", "rsa3072", "sign")
    made.key("hidden", "rsa3072", "sign")
    yield made
    made.stop()


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("toolkit", tmp_path, "k")


def export(ring: Gpg, name: str) -> bytes:
    return ring.run("--armor", "--export", name)


def told(tmp_path: Path, web: Site, ring: Gpg, **other: object) -> RepositoryConfig:
    """A repository on `web`, pinned to "pinned"; its files lie in `tmp_path`."""
    web.answers["/repo/key.pub"] = export(ring, "pinned")
    apt = tmp_path / "apt/etc/sources.list.d"
    source = (apt if apt.exists() else tmp_path) / "cuda.sources"
    text = f"Types: deb\nURIs: {web.url('/repo/')}\nSuites: /\nSigned-By: {tmp_path}/cuda.asc\n"
    settings: dict[str, object] = {
        "url": web.url("/repo/"),
        "source": str(source),
        "keyring": str(tmp_path / "cuda.asc"),
        "key_url": web.url("/repo/key.pub"),
        "fingerprint": read(export(ring, "pinned"))[0].fingerprint,
        "key": None,
        "credentials": str(tmp_path / "cuda.conf"),
        "files": {str(source): text},
    }
    return RepositoryConfig(**settings | other)  # type: ignore[arg-type]


def secrets(tmp_path: Path, password: str = PASSWORD) -> Network:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {password}\n")
    return Network(netrc=str(tmp_path / "netrc"))


def test_the_pinned_key_is_written_as_it_was_read(
    tmp_path: Path, web: Site, ring: Gpg, job: Job
) -> None:
    wanted = told(tmp_path, web, ring)
    web.answers["/repo/key.pub"] = export(ring, "pinned").replace(b"BLOCK-----\n", b"BLOCK----- \n")
    set_up(job, wanted, Network())
    assert Path(wanted.keyring).read_bytes() == armored(read(export(ring, "pinned")))
    assert Path(wanted.source).read_text() == wanted.files[wanted.source]
    assert {p.stat().st_mode & 0o777 for p in map(Path, (wanted.keyring, wanted.source))} == {0o644}
    assert not Path(wanted.credentials).exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("way", ["hidden first", "hidden behind", "hidden alone", "no key"])
def test_no_other_key_is(tmp_path: Path, web: Site, ring: Gpg, job: Job, way: str) -> None:
    wanted = told(tmp_path, web, ring)
    pinned, hidden = export(ring, "pinned"), export(ring, "hidden")
    spaced = hidden.replace(b"BLOCK-----\n", b"BLOCK----- \n", 1)
    web.answers["/repo/key.pub"] = {
        "hidden first": spaced + pinned,
        "hidden behind": pinned + spaced,
        "hidden alone": hidden,
        "no key": b"<html>not here</html>",
    }[way]
    with pytest.raises(JobFailed, match=f"expected {wanted.fingerprint} and no other"):
        set_up(job, wanted, Network())
    assert not Path(wanted.keyring).exists() and not Path(wanted.source).exists()


def test_a_key_of_the_settings_is_read_as_strictly(
    tmp_path: Path, web: Site, ring: Gpg, job: Job
) -> None:
    mine = export(ring, "hidden").decode()
    wanted = told(tmp_path, web, ring, key=mine)
    set_up(job, wanted, Network())
    assert Path(wanted.keyring).read_bytes() == armored(read(mine.encode()))
    assert web.asked == []
    with pytest.raises(JobFailed, match="several blocks"):
        set_up(job, replace(wanted, key=mine + export(ring, "pinned").decode()), Network())


def test_a_key_that_does_not_come_says_why(tmp_path: Path, web: Site, ring: Gpg, job: Job) -> None:
    wanted = told(tmp_path, web, ring)
    web.answers.clear()
    with pytest.raises(JobFailed, match=r"found HTTP 404.*expected the repository's key; next: "):
        set_up(job, wanted, Network())
    with pytest.raises(JobFailed, match=r"name no-such\.invalid is not known here"):
        set_up(job, replace(wanted, key_url="http://no-such.invalid/k"), Network())


def test_no_link_is_followed(tmp_path: Path, web: Site, ring: Gpg, job: Job) -> None:
    wanted = told(tmp_path, web, ring)
    (tmp_path / "cuda.asc.partial").symlink_to(tmp_path / "shadow")
    Path(wanted.source).symlink_to(tmp_path / "shadow")
    set_up(job, wanted, Network())
    assert not (tmp_path / "shadow").exists()
    assert not Path(wanted.source).is_symlink()


def test_what_failed_does_not_stay(tmp_path: Path, web: Site, ring: Gpg, job: Job) -> None:
    """Where the pin misses it, the next upgrade would take a driver from it."""
    wanted = told(tmp_path, web, ring)
    with pytest.raises(KeyboardInterrupt), taken_back(wanted):
        set_up(job, wanted, secrets(tmp_path))
        assert Path(wanted.credentials).exists()
        raise KeyboardInterrupt
    left = {path.name for path in tmp_path.iterdir()} - {"netrc", "toolkit.log", "progress.json"}
    assert left == set()


@needs_apt
def test_apt_gets_a_user_and_a_password_from_a_file_alone(
    tmp_path: Path, web: Site, ring: Gpg, job: Job
) -> None:
    """Over plain HTTP, too: apt sends them there only where the file names the scheme."""
    apt = private_apt(tmp_path, job)
    etc = tmp_path / "apt/etc"
    wanted = told(tmp_path, web, ring, credentials=str(etc / "auth.conf.d/cuda.conf"))
    web.wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for name, content in repository(["cuda-nvcc-12-8"], ring, "pinned").items():
        web.answers[f"/repo/{name}"] = content
    set_up(job, wanted, secrets(tmp_path))
    apt.update_from(wanted.source)
    apt.simulate(["cuda-nvcc-12-8"])
    assert Path(wanted.credentials).stat().st_mode & 0o777 == 0o600
    said = (tmp_path / "toolkit.log").read_text() + Path(wanted.source).read_text()
    assert PASSWORD not in said
    Path(wanted.credentials).unlink()
    with pytest.raises(JobFailed, match="401"):
        apt.update_from(wanted.source)


@needs_apt
def test_apt_takes_nothing_that_another_key_has_signed(
    tmp_path: Path, web: Site, ring: Gpg, job: Job
) -> None:
    apt = private_apt(tmp_path, job)
    wanted = told(tmp_path, web, ring)
    set_up(job, wanted, Network())
    for name, content in repository(["cuda-nvcc-12-8"], ring, "hidden").items():
        web.answers[f"/repo/{name}"] = content
    with pytest.raises(JobFailed, match="NO_PUBKEY"):
        apt.update_from(wanted.source)


@needs_apt
def test_apt_takes_no_word_for_a_pattern(tmp_path: Path, web: Site, ring: Gpg, job: Job) -> None:
    """g++ matches each name with a g, on a host whose lists have no such package."""
    apt = private_apt(tmp_path, job)
    wanted = told(tmp_path, web, ring)
    for name, content in repository(["nvidia-settings", "libg"], ring, "pinned").items():
        web.answers[f"/repo/{name}"] = content
    set_up(job, wanted, Network())
    apt.update_from(wanted.source)
    # What the plan had before.
    lax, _ = apt.tried("apt-get", "-s", "-y", "install", "g++")
    assert any(line.startswith("Inst nvidia-settings") for line in lax), lax
    with pytest.raises(JobFailed, match=r"apt: found no package g\+\+; expected it in"):
        apt.simulate(["g++"])
    strict, failure = apt.tried(*apt._ask, "--simulate", "install", "g++")
    assert failure and not any(line.startswith("Inst") for line in strict), "were it asked"
    assert apt.versions(["no-such-package"]) == {}
    assert unknown(apt.simulate(["libg"]), ["libg"], {}) == []


@needs_apt
def test_a_proxy_reaches_apt(tmp_path: Path, web: Site, ring: Gpg, job: Job) -> None:
    apt = private_apt(tmp_path, job)
    wanted = told(tmp_path, web, ring)
    for name, content in repository(["libg"], ring, "pinned").items():
        web.answers[f"/repo/{name}"] = content
    with proxy() as between:
        config = JobConfig(
            kind="packages",
            key="k",
            inputs=PackagesInputs(packages=()),
            proxies={"http_proxy": between.url(), "no_proxy": ""},
        )
        set_up(job, wanted, Network.of(config))
        apt.env |= network(config)
        apt.update_from(wanted.source)
        assert {path.rpartition("/")[2] for path, _ in between.asked} >= {"key.pub", "InRelease"}
    with pytest.raises(JobFailed, match=f"Could not connect to 127.0.0.1:{between.port}"):
        apt.update_from(wanted.source)


@needs_apt
def test_a_source_of_somebody_else_that_fails(tmp_path: Path, job: Job) -> None:
    """It does not stand in the way, and its words are there when a package is not."""
    apt = private_apt(tmp_path, job)
    other = tmp_path / "apt/etc/sources.list.d/other.list"
    other.write_text("deb [trusted=yes] http://127.0.0.1:9/ ./\n")
    apt.refresh()
    with pytest.raises(JobFailed, match=r"found no package g\+\+ \(of its lists: .*127\.0\.0\.1:9"):
        apt.simulate(["g++"])


@needs_apt
def test_an_interrupted_dpkg_is_seen_before_anything_is_done(tmp_path: Path, job: Job) -> None:
    apt = private_apt(tmp_path, job)
    (tmp_path / "apt/updates").mkdir()
    (tmp_path / "apt/updates/0001").touch()
    with pytest.raises(
        JobFailed, match=r"dpkg was interrupted.*next: on the host, sudo dpkg --conf"
    ):
        apt.refresh()


def test_dnf_reads_them_in_the_source_which_nobody_else_can(
    tmp_path: Path, web: Site, ring: Gpg, job: Job
) -> None:
    wanted = told(tmp_path, web, ring)
    wanted = replace(wanted, credentials=wanted.source)
    set_up(job, wanted, secrets(tmp_path))
    source = Path(wanted.source)
    assert source.read_text().endswith(f"\nusername={USER}\npassword={PASSWORD}\n")
    assert source.stat().st_mode & 0o777 == 0o600
    set_up(job, wanted, Network())
    assert source.stat().st_mode & 0o777 == 0o644 and PASSWORD not in source.read_text()


def test_credentials_that_no_package_manager_takes(
    tmp_path: Path, web: Site, ring: Gpg, job: Job
) -> None:
    with pytest.raises(JobFailed, match="change the password") as refused:
        set_up(job, told(tmp_path, web, ring), secrets(tmp_path, '"a b"'))
    assert "a b" not in str(refused.value).replace("found a blank", "")


def test_proxies_of_apt_count_where_the_host_names_none() -> None:
    said = ['Acquire::http::Proxy "http://a:1/";', 'Acquire::https::Proxy "DIRECT";', "x"]
    assert with_proxies_of_apt(Network(), said).proxies == {"http_proxy": "http://a:1/"}
    own = Network({"http_proxy": "http://b:2"})
    assert with_proxies_of_apt(own, said).proxies == {"http_proxy": "http://b:2"}


POLICY = """Package files:
 100 /var/lib/dpkg/status
     release a=now
{priority:>4} https://mirror.example/repos/debian12/x86_64  Packages
     release o=NVIDIA,l={label},c=
     origin mirror.example
 500 http://deb.debian.org/debian bookworm/main amd64 Packages
Pinned packages:
     cuda-nvcc-12-8 -> 12.8.93-1 with priority 500
"""


def test_a_repository_that_the_pin_holds_back() -> None:
    refuse_unpinned(POLICY.format(priority=-1, label="NVIDIA CUDA"), URL)


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        (POLICY.format(priority=500, label="lab"), "priority 500"),
        (
            POLICY.replace("mirror.example", "other.example").format(priority=-1, label=""),
            "no pack",
        ),
        ("", "no packages"),
    ],
)
def test_a_repository_that_the_pin_misses(policy: str, found: str) -> None:
    with pytest.raises(JobFailed, match=f"{found}.*with the label"):
        refuse_unpinned(policy, URL)


def test_nothing_is_written_in_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    file.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repositories.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        repositories._write(file, b"new", 0o644)
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]
