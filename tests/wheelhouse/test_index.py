"""The source archive of a wheelhouse, from a real index: fetched, checked, never run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.wheelhouse import collect as house
from llamafleet.wheelhouse.index import Sources, sources
from llamafleet.wheelhouse.manifest import WheelhouseError, verify
from tests.onhost.site import Site, certificate, proxy, redirect, send, site

VERSION = "1.2.3"
NAME = f"llama_cpp_python-{VERSION}.tar.gz"
PROJECT = "/simple/llama-cpp-python/"
BACKEND = "import pathlib; pathlib.Path({mark!r}).write_text('run')\n"
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's pip nor its proxies have a say."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "NETRC", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("HOME", str(tmp_path))


def archive(mark: Path) -> bytes:
    """A source archive whose build backend writes `mark` as soon as it is loaded."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in (
            ("pyproject.toml", PYPROJECT),
            ("evil.py", BACKEND.format(mark=str(mark))),
            ("PKG-INFO", f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {VERSION}\n"),
        ):
            entry = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def page(name: str = NAME, url: str = f"../../files/{NAME}") -> bytes:
    return json.dumps(
        {"meta": {"api-version": "1.0"}, "files": [{"filename": name, "url": url}]}
    ).encode()


def build(folder: Path, content: bytes, index_url: str | None) -> str:
    """ "": it is made; else why not."""
    try:
        house.build(
            folder,
            version=VERSION,
            sha256=hashlib.sha256(content).hexdigest(),
            pythons=[],
            arches=[],
            slim=False,
            index_url=index_url,
        )
    except WheelhouseError as error:
        return str(error)
    assert verify(folder) == []
    assert (folder / NAME).read_bytes() == content
    return ""


def test_nothing_of_the_archive_is_run(web: Site, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = archive(mark)
    web.answers |= {PROJECT: page(), f"/files/{NAME}": content}
    assert build(tmp_path / "w", content, web.url("/simple")) == ""
    assert not mark.exists()
    assert "application/vnd.pypi.simple.v1+json" in web.asked[0][1]["accept"]


def test_by_pip_s_configuration_or_its_variables(
    web: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(tmp_path / "mark")
    web.answers |= {PROJECT: page(), f"/files/{NAME}": content}
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {web.url('/simple/')}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert build(tmp_path / "one", content, None) == ""
    monkeypatch.setenv("PIP_INDEX_URL", web.url("/none"))
    said = build(tmp_path / "two", content, None)
    assert f"{web.url('/none')}: found HTTP 404" in said
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", web.url("/simple"))
    assert build(tmp_path / "three", content, None) == ""


def test_an_index_of_pages_or_of_files_will_do(web: Site, tmp_path: Path) -> None:
    content = archive(tmp_path / "mark")
    html = f'<!DOCTYPE html><a href="../../files/{NAME}#sha256=0">x</a><a>y</a>'.encode()
    web.answers |= {PROJECT: html, f"/files/{NAME}": content}
    assert build(tmp_path / "one", content, web.url("/simple")) == ""
    local = tmp_path / "simple/llama-cpp-python"
    local.mkdir(parents=True)
    (local / NAME).write_bytes(content)
    (local / "index.html").write_text(f'<a href="{NAME}">x</a>')
    assert build(tmp_path / "two", content, f"file://{tmp_path}/simple") == ""


def test_a_page_that_was_moved_keeps_its_links(web: Site, tmp_path: Path) -> None:
    content = archive(tmp_path / "mark")
    web.answers |= {
        PROJECT: redirect("/moved/a/b/"),
        "/moved/a/b/": page(url=f"../{NAME}"),
        f"/moved/a/{NAME}": content,
    }
    assert build(tmp_path / "w", content, web.url("/simple")) == ""


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "HTTP 404 Not Found: no such file there"),
        (b"<html>welcome</html>", "no package index (it begins with b'<html>welcome"),
        (b'{"message": "login"}', "no package index (JSON of another kind: KeyError)"),
        (b"{", "no package index ("),
        (page("llama_cpp_python-9.tar.gz"), "with 1 files, and none of that name"),
    ],
)
def test_words_tell_what_the_index_lacks(
    web: Site, tmp_path: Path, answer: bytes | None, why: str
) -> None:
    web.answers |= {PROJECT: answer} if answer else {}
    said = build(tmp_path / "w", b"x", web.url("/simple"))
    assert why in said and "next: " in said and "\n" not in said, said
    assert [p.name for p in tmp_path.iterdir()] == []


def test_no_network_is_said(tmp_path: Path) -> None:
    assert "refused the connection" in build(tmp_path / "w", b"x", "http://127.0.0.1:9/simple")
    said = build(tmp_path / "w", b"x", "https://no-such.invalid/simple")
    assert "name no-such.invalid is not known here" in said


def test_another_archive_is_refused(web: Site, tmp_path: Path) -> None:
    web.answers |= {PROJECT: page(), f"/files/{NAME}": b"another"}
    said = build(tmp_path / "w", b"x", web.url("/simple"))
    assert f"found sha256 {hashlib.sha256(b'another').hexdigest()}" in said


def test_credentials_and_proxies_of_this_machine(
    web: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(tmp_path / "mark")
    web.answers |= {PROJECT: page(), f"/files/{NAME}": content}
    web.wanted = "Basic " + base64.b64encode(b"lab:s3cret").decode()
    said = build(tmp_path / "none", content, web.url("/simple"))
    assert "HTTP 401" in said
    with_account = web.url("/simple").replace("//", "//lab:s3cret@")
    assert build(tmp_path / "one", content, with_account) == ""
    said = build(tmp_path / "bad", content, with_account.replace("/simple", "/none"))
    assert "s3cret" not in said and "HTTP 404" in said
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login lab password s3cret\n")
    netrc.chmod(0o600)
    assert build(tmp_path / "two", content, web.url("/simple")) == ""
    web.wanted = ""
    with proxy() as between:
        monkeypatch.setenv("http_proxy", between.url())
        assert build(tmp_path / "three", content, web.url("/simple")) == ""
        assert len(between.asked) == 2
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert build(tmp_path / "four", content, web.url("/simple")) == ""
        assert len(between.asked) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_as_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive(tmp_path / "mark")
    keys = tmp_path / "keys"
    keys.mkdir()
    with site(certificate(keys)) as tls:
        tls.answers |= {PROJECT: page(), f"/files/{NAME}": content}
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        assert "does not vouch for" in build(tmp_path / "w", content, tls.url("/simple"))
        monkeypatch.setenv("PIP_CERT", str(keys / "cert.pem"))
        assert build(tmp_path / "w", content, tls.url("/simple")) == ""


def test_a_page_without_end_is_left(web: Site, tmp_path: Path) -> None:
    web.answers[PROJECT] = lambda handler: send(handler, b"{", Content_Length=str(1 << 40))
    assert "at most" in build(tmp_path / "w", b"x", web.url("/simple"))


def test_pypi_where_nothing_else_is_said() -> None:
    found = sources()
    assert isinstance(found, Sources) and found.indexes == ("https://pypi.org/simple",)
