"""What this machine keeps of models: fetched once, digests computed once, old ones removed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.modelsource import source_of
from llamafleet.modelstore import KEPT_DAYS, ModelStore, problem
from llamafleet.onhost import transfer
from llamafleet.onhost.download import Network
from llamafleet.onhost.job import JobFailed, locked
from llamafleet.plans.supplies import LocalFile
from tests.mirror import Mirror, cut
from tests.onhost.gguf_files import gguf
from tests.onhost.site import Site, site

MODEL = gguf() + b"\0" * 4096
SHA256 = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(transfer, "sleep", lambda _: None)
    with site() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "served-models")


def bring(store: ModelStore, web: Site, sha256: str = SHA256) -> Path:
    return store.bring(web.url("/m.gguf"), sha256, 0, Network(), lambda text: None)


def test_it_is_fetched_once(web: Site, store: ModelStore) -> None:
    mirror = web.answers["/m.gguf"] = Mirror(MODEL, faults=[cut(600)])
    assert bring(store, web).read_bytes() == MODEL
    assert bring(store, web) == store.file(SHA256) and mirror.sent == len(MODEL)
    source = source_of(web.url("/m.gguf"), [SHA256])
    assert store.supplied(source) == {web.url("/m.gguf"): LocalFile(len(MODEL), SHA256)}


def test_what_was_changed_here_is_fetched_anew(web: Site, store: ModelStore) -> None:
    web.answers["/m.gguf"] = Mirror(MODEL)
    file = bring(store, web)
    file.write_bytes(MODEL[:-1] + b"?")
    assert bring(store, web).read_bytes() == MODEL


def test_other_bytes_are_not_kept(web: Site, store: ModelStore) -> None:
    web.answers["/m.gguf"] = Mirror(MODEL)
    with pytest.raises(JobFailed, match=f"found sha256 {SHA256}; expected {'0' * 64}; next: "):
        bring(store, web, "0" * 64)
    assert [path.name for path in store.folder.glob("*.gguf*") if "lock" not in path.name] == []


def test_two_runs_do_not_fetch_at_once(web: Site, store: ModelStore) -> None:
    web.answers["/m.gguf"] = Mirror(MODEL)
    store.folder.mkdir()
    with (
        locked(store.folder / f"{SHA256}.gguf.lock", "another"),
        pytest.raises(JobFailed, match="found another run that fetches it"),
    ):
        bring(store, web)


def test_a_digest_is_computed_once(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(MODEL)
    said: list[str] = []
    source = source_of(f"file:{file}")
    for _ in range(3):
        assert store.supplied(source, said.append)[str(file)] == LocalFile(len(MODEL), SHA256)
    assert len(said) == 1
    before = file.stat()
    file.write_bytes(MODEL[:-1] + b"?")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.supplied(source)[str(file)].sha256 != SHA256, "the same size and time"
    stated = source_of(f"file:{file}", ["0" * 64])
    assert store.supplied(stated)[str(file)].sha256 == "0" * 64, "the host compares it"


def test_old_ones_go_and_nothing_of_others(store: ModelStore) -> None:
    store.folder.mkdir()
    for name in (f"{SHA256}.gguf", f"{SHA256}.gguf.incoming", "mine.gguf", "digests.json"):
        (store.folder / name).write_bytes(b"x")
    now = store.folder.stat().st_mtime
    assert store.prune(now + KEPT_DAYS * 86400 - 60) == []
    gone = store.prune(now + KEPT_DAYS * 86400 + 60)
    assert gone == [f"{SHA256}.gguf", f"{SHA256}.gguf.incoming"]
    assert sorted(path.name for path in store.folder.iterdir()) == ["digests.json", "mine.gguf"]


def test_files_that_can_t_be_sent(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "m.gguf").write_bytes(MODEL)
    for name, said in [
        ("none.gguf", "No such file"),
        ("page.gguf", "does not begin GGUF"),
        ("folder.gguf", "no regular file"),
        ("pipe.gguf", "no regular file"),
    ]:
        found = problem(source_of(f"file:{tmp_path / name}"))
        assert said in found and "; allowed: " in found
    assert problem(source_of(f"file:{tmp_path / 'm.gguf'}")) == ""
    assert "as stated" in problem(source_of(f"file:{tmp_path / 'm.gguf'}", (), [5]))
    assert problem(source_of("/srv/none.gguf")) == "", "of the host only the host knows"
