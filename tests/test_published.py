"""Versions that no table has: looked up at a real index, once, before any host is touched."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafleet.inventory import SettingsError, validate_fleet
from llamafleet.published import looked_up
from llamafleet.settings import Settings
from llamafleet.wheelhouse.index import newest, sources
from llamafleet.wheelhouse.manifest import WheelhouseError
from tests.onhost.site import Site, site
from tests.test_settings import make_netrc, make_wheelhouse

NEW = "0.3.9999"
SHA = "ab" * 32
PAGE = "/simple/llama-cpp-python/"


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


def name(version: str = NEW) -> str:
    return f"llama_cpp_python-{version}.tar.gz"


def page(*versions: str, sha256: str | None = SHA) -> bytes:
    """As PyPI answers (PEP 691)."""
    hashes = {} if sha256 is None else {"sha256": sha256}
    files = [
        {"filename": name(one), "url": f"/f/{name(one)}", "hashes": hashes} for one in versions
    ]
    return json.dumps({"meta": {"api-version": "1.0"}, "files": files}).encode()


def looked(**data: Any) -> tuple[Settings, list[str]]:
    fleet, lines = looked_up(validate_fleet({"gpu-a": data}))
    return fleet["gpu-a"], lines


def refused(**data: Any) -> str:
    with pytest.raises(SettingsError) as error:
        looked(**data)
    (line,) = error.value.lines
    return line


def test_a_known_version_or_a_given_hash_asks_nobody() -> None:
    nowhere = "http://127.0.0.1:9/simple"
    assert looked(index_url=nowhere) == (Settings(index_url=nowhere), [])
    made, lines = looked(index_url=nowhere, llama_version="0.3.30")
    assert made.llama_sha256.startswith("798c9b42") and lines == []
    made, lines = looked(index_url=nowhere, llama_version=NEW, llama_sha256=SHA)
    assert made.llama_sha256 == SHA
    assert lines == [
        f"llama-cpp-python {NEW}: sha256 {SHA} (as llama_sha256 says)",
        "  not known here: its options are first compared on the host; "
        f"next: llamafleet upstream {NEW}",
    ]


def test_a_hash_that_is_not_pypi_s_is_said() -> None:
    made, lines = looked(llama_version="0.3.30", llama_sha256=SHA)
    assert made.llama_sha256 == SHA and lines[1].startswith("  PyPI's has 798c9b42")


@pytest.mark.parametrize(
    "content",
    [page("0.3.1", NEW), f'<a href="../f/{name()}#sha256={SHA}">{name()}</a>'.encode()],
    ids=["json", "html"],
)
def test_the_index_of_the_host_tells_it(web: Site, content: bytes) -> None:
    web.answers[PAGE] = content
    made, lines = looked(llama_version=NEW, index_url=web.url("/simple"))
    assert made.llama_sha256 == SHA
    looked_at = f"(looked up at {web.url('/simple')})"
    assert lines[0] == f"llama-cpp-python {NEW}: sha256 {SHA} {looked_at}"


def test_an_index_is_asked_once_for_all_hosts(web: Site) -> None:
    web.answers[PAGE] = page(NEW)
    one = {"llama_version": NEW, "index_url": web.url("/simple")}
    fleet, lines = looked_up(validate_fleet({"a": one, "b": one, "c": {}}))
    assert (fleet["a"].llama_sha256, fleet["c"]) == (SHA, Settings())
    assert len(web.asked) == 1 and len(lines) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "HTTP 404"),
        (page("0.3.9998"), "with 1 files, and none of that name"),
        (page(NEW, sha256=None), f"no sha256 of {name()}"),
        (page(NEW, sha256="nonsense"), f"no sha256 of {name()}"),
        (f'<a href="{name()}#md5=0">x</a>'.encode(), f"no sha256 of {name()}"),
        (b'{"files": [{"filename": "a", "url": "b", "hashes": 3}]}', "no package index"),
        (b"<html>welcome</html>", "no package index"),
    ],
)
def test_an_index_that_tells_none(web: Site, content: bytes | None, why: str) -> None:
    web.answers |= {PAGE: content} if content else {}
    line = refused(llama_version=NEW, index_url=web.url("/simple"))
    assert line.startswith(f"host gpu-a: llama_sha256: found none of {NEW}, ")
    assert why in line and "next: " in line and line.endswith("or llama_sha256 beside it")


def test_every_host_that_asks_is_named() -> None:
    one = {"llama_version": NEW, "index_url": "http://127.0.0.1:9/simple"}
    with pytest.raises(SettingsError) as error:
        looked_up(validate_fleet({"a": one, "b": one, "c": {}}))
    assert [line.split(":")[0] for line in error.value.lines] == ["host a", "host b"]
    assert all("refused the connection" in line for line in error.value.lines)


def test_two_indexes_that_differ_are_refused(web: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers |= {PAGE: page(NEW), "/other/llama-cpp-python/": page(NEW, sha256="cd" * 32)}
    monkeypatch.setenv("PIP_INDEX_URL", web.url("/simple"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", web.url("/other"))
    line = refused(llama_version=NEW)
    assert f"several archives {name()}: {SHA} at" in line and "cd" * 32 in line
    web.answers["/other/llama-cpp-python/"] = page(NEW)
    assert looked(llama_version=NEW)[0].llama_sha256 == SHA


def test_the_settings_passwords_are_sent_and_not_said(web: Site, tmp_path: Path) -> None:
    web.answers[PAGE] = page(NEW)
    web.wanted = "Basic " + base64.b64encode(b"lab:s3cr3t-word").decode()
    url = web.url("/simple")
    assert "HTTP 401" in refused(llama_version=NEW, index_url=url)
    file = make_netrc(tmp_path, "machine 127.0.0.1 login lab password s3cr3t-word\n")
    made, lines = looked(llama_version=NEW, index_url=url, netrc=str(file))
    assert made.llama_sha256 == SHA and "s3cr3t" not in "".join(lines)


def test_a_wheelhouse_tells_it_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    llama = {"version": NEW, "sha256": "0" * 64, "source_sha256": SHA}
    folder = make_wheelhouse(tmp_path / "w", llama=llama)
    made, lines = looked(llama_version=NEW, wheelhouse=str(folder))
    assert made.llama_sha256 == SHA and f"looked up at {folder}" in lines[0]


def test_the_newest_version_of_an_index(web: Site) -> None:
    web.answers[PAGE] = page("0.3.9", "0.3.100", "0.3.20", "0.4.0rc1", "0.3.100.post1")
    assert newest(sources(web.url("/simple")), "llama-cpp-python") == "0.3.100"
    web.answers[PAGE] = page("0.4.0rc1")
    with pytest.raises(WheelhouseError, match="found 1 files, and no source archive"):
        newest(sources(web.url("/simple")), "llama-cpp-python")
