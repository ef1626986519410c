"""A model comes whole or not at all, however its server, its line or its disk fails."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost import place, transfer
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.transfer import Disk
from llamafleet.protocol.decode import decode
from llamafleet.protocol.ggml_types import SIZES
from llamafleet.protocol.job import ModelConfig, read_json
from llamafleet.protocol.place import (
    INCOMING,
    PROOF,
    ModelInputs,
    ModelPart,
    ModelProduct,
    key_of,
    part_name,
)
from tests.mirror import Mirror, cut, page, status
from tests.onhost.gguf_files import LANGUAGE_MODEL, Q4_0, gguf, split
from tests.onhost.runner import Runner, kill, wait_for
from tests.onhost.site import Site, redirect, site

HTML = b"<!DOCTYPE html><html><body>log in first</body></html>" * 40
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n" + b" " * 600


def model(seed: int = 0, mib: int = 3) -> bytes:
    """A sound file of some size with weights of its own."""
    head = gguf(tensors=(("blk.0.ffn_up.weight", Q4_0, (1024, mib << 11)),))
    size = (mib << 21) // 32 * 18
    return head[: len(head) - size] + random.Random(seed).randbytes(size)


MODEL = model()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, which here is no time."""
    waited: list[float] = []
    monkeypatch.setattr(transfer, "sleep", waited.append)
    return waited


class Placed:
    """A host that is to have one model."""

    def __init__(self, root: Path, *parts: ModelPart) -> None:
        known = tuple(part.sha256 or part.path for part in parts)
        self.folder = root / "gguf" / key_of(known)
        self.job = Job("model", root / "job", key_of(known))
        self.job.folder.mkdir(exist_ok=True)
        self.job.begin_log()
        self.config = ModelConfig(
            key=key_of(known),
            inputs=ModelInputs(parts=known),
            folder=str(self.folder),
            parts=parts,
            reserve_mib=1,
        )

    def run(self) -> ModelProduct:
        return place.work(self.job, self.config)

    def fails(self) -> str:
        with pytest.raises(JobFailed) as raised:
            self.run()
        said = str(raised.value)
        assert "; expected " in said and "; next: " in said, said
        assert not (self.folder / PROOF).exists() and not place.done(self.config)
        return said

    def incoming(self, number: int = 0) -> Path:
        return self.folder / f"{part_name(number, len(self.config.parts))}{INCOMING}"


def of(web: Site, mirror: Mirror, root: Path, content: bytes = MODEL, **part: Any) -> Placed:
    """A host that fetches from a mirror; `content`: what is expected there."""
    web.answers["/m.gguf"] = mirror
    told = ModelPart(url=web.url("/m.gguf"), sha256=sha256(content), **part)
    return Placed(root, told)


def is_there(placed: Placed, content: bytes = MODEL) -> None:
    file = placed.folder / "model.gguf"
    assert file.read_bytes() == content and file.stat().st_mode & 0o777 == 0o444
    assert sorted(path.name for path in placed.folder.iterdir()) == ["model.gguf", PROOF]
    assert place.done(placed.config) and place.changed(placed.folder) == ""


def test_a_model_comes_is_checked_and_is_read_only(web: Site, tmp_path: Path) -> None:
    mirror = Mirror(MODEL)
    placed = of(web, mirror, tmp_path)
    product = placed.run()
    is_there(placed)
    assert product.fetched_bytes == mirror.sent == len(MODEL) == product.bytes
    assert product.shape and product.shape.architecture == "llama", "what a fit is computed from"
    assert product.shape.layers == 2 and sum(product.shape.weights) >= (3 << 21) // 32 * 18
    kept = decode(ModelProduct, read_json(placed.folder / PROOF))
    assert kept == product, "the proof says what the stamp says"


def test_what_is_there_is_fetched_no_second_time(web: Site, tmp_path: Path) -> None:
    mirror = Mirror(MODEL)
    placed = of(web, mirror, tmp_path)
    placed.run()
    file = placed.folder / "model.gguf"
    os.utime(file)
    assert "changed since it was checked" in place.changed(placed.folder)
    assert placed.run().fetched_bytes == 0 and mirror.sent == len(MODEL)
    # Of another content it is fetched again.
    file.chmod(0o644)
    file.write_bytes(MODEL[:-1] + b"?")
    assert not place.done(placed.config)
    assert placed.run().fetched_bytes == len(MODEL)
    is_there(placed)


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', ""])
def test_a_cut_connection_goes_on_where_it_was_cut(web: Site, tmp_path: Path, etag: str) -> None:
    mirror = Mirror(MODEL, etag, faults=[cut(1 << 20), cut(700_000)])
    placed = of(web, mirror, tmp_path)
    assert placed.run().fetched_bytes == len(MODEL) == mirror.sent
    is_there(placed)
    assert [one.get("range") for one in mirror.gets] == [
        None,
        f"bytes={1 << 20}-",
        f"bytes={(1 << 20) + 700_000}-",
    ]
    # A weak one says nothing of bytes: RFC 9110, 13.1.5.
    assert mirror.gets[1].get("if-range") == (etag if etag.startswith('"') else None)


def test_a_server_that_gives_no_parts_is_asked_for_all(web: Site, tmp_path: Path) -> None:
    mirror = Mirror(MODEL, ranges=False, faults=[cut(1 << 20)])
    placed = of(web, mirror, tmp_path)
    assert placed.run().fetched_bytes == len(MODEL) + (1 << 20)
    is_there(placed)
    assert "begun anew after 1.0 MiB" in placed.job.notes[0]


def test_another_file_meanwhile_is_begun_anew(web: Site, tmp_path: Path) -> None:
    """What was there is of an older file: with ETag, and by size alone."""
    old = model(seed=1)
    for number, etag in enumerate(('"two"', "")):
        (root := tmp_path / str(number)).mkdir()
        mirror = Mirror(old, '"one"' if etag else "", faults=[cut(1 << 20)])
        if not etag:
            mirror.content = model(seed=1, mib=2)

        def change(mirror: Mirror, handler: Any, etag: str = etag) -> None:
            mirror.content, mirror.etag = MODEL, etag
            mirror.answer(handler)

        mirror.faults.append(change)
        placed = of(web, mirror, root)
        placed.run()
        is_there(placed)


def test_parts_of_two_files_are_fetched_once_more_as_one(web: Site, tmp_path: Path) -> None:
    """Same size, no ETag: only the sha256 of the whole tells."""
    mirror = Mirror(model(seed=1), etag="", faults=[cut(1 << 20)])

    def change(mirror: Mirror, handler: Any) -> None:
        mirror.content = MODEL
        mirror.answer(handler)

    mirror.faults.append(change)
    placed = of(web, mirror, tmp_path)
    assert placed.run().fetched_bytes == 2 * len(MODEL)
    is_there(placed)
    assert any("fetched anew" in note for note in placed.job.notes)


def test_more_than_the_server_has_is_begun_anew(web: Site, tmp_path: Path) -> None:
    """What an earlier server left, of which nothing is noted."""
    mirror = Mirror(MODEL)
    placed = of(web, mirror, tmp_path)
    placed.folder.mkdir(parents=True)
    placed.incoming().write_bytes(b"x" * (len(MODEL) + 1))
    assert placed.run().fetched_bytes == len(MODEL)
    is_there(placed)


def test_an_answer_without_a_length_may_be_cut(web: Site, tmp_path: Path) -> None:
    """Its end looks like any other."""

    def without(mirror: Mirror, handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(MODEL[: 1 << 20])
        handler.close_connection = True

    mirror = Mirror(MODEL, faults=[without])
    placed = of(web, mirror, tmp_path)
    placed.run()
    is_there(placed)


def test_a_login_page_ends_it_and_what_had_come_stays(web: Site, tmp_path: Path) -> None:
    mirror = Mirror(MODEL, faults=[cut(1 << 20), page(HTML)])
    placed = of(web, mirror, tmp_path)
    assert "found a web page; expected a GGUF file" in placed.fails()
    assert placed.incoming().stat().st_size == 1 << 20
    assert placed.run().fetched_bytes == len(MODEL) - (1 << 20)
    is_there(placed)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (HTML, "found a web page"),
        (POINTER, "found a Git LFS pointer: the file that it stands for was never fetched"),
        (b'{"error":"Repository not found"}', "found JSON"),
        (b"", "found something else"),
    ],
)
def test_what_is_no_model_is_called_by_its_name(
    web: Site, tmp_path: Path, body: bytes, said: str
) -> None:
    placed = of(web, Mirror(b"", faults=[page(body)]), tmp_path)
    assert said in placed.fails()
    assert not placed.incoming().read_bytes()


def test_other_bytes_are_not_taken(web: Site, tmp_path: Path) -> None:
    other = model(seed=2)
    mirror = Mirror(other)
    placed = of(web, mirror, tmp_path)
    said = placed.fails()
    assert f"found sha256 {sha256(other)} over {len(other)} bytes" in said
    assert f"expected {sha256(MODEL)}" in said and mirror.sent == len(other), "once"
    assert list(placed.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (MODEL[:-100], "cut short: it has"),
        (MODEL[:60], "ends within its header"),
        (gguf({**LANGUAGE_MODEL, "general.architecture": "clip"}), "a projector of a vision model"),
        (gguf(tensors=()), "is a vocabulary"),
    ],
)
def test_the_right_sha256_of_a_wrong_file_is_no_proof(
    web: Site, tmp_path: Path, content: bytes, said: str
) -> None:
    """The publisher's own file may be cut, or be no language model."""
    placed = of(web, Mirror(content), tmp_path, content)
    assert said in placed.fails()


def test_a_busy_server_is_given_the_time_that_it_asks_for(
    web: Site, tmp_path: Path, no_pauses: list[float]
) -> None:
    faults = [status(429, Retry_After="7"), status(503), cut(100), status(503, Retry_After="0")]
    placed = of(web, Mirror(MODEL, faults=faults), tmp_path)
    placed.run()
    is_there(placed)
    assert no_pauses[0] == 7.0 and no_pauses[3] == 0.0 and len(no_pauses) == 4
    assert "waits 7 s: HTTP 429" in placed.job.read_log()


def test_a_server_that_stays_busy_is_left(
    web: Site, tmp_path: Path, no_pauses: list[float]
) -> None:
    mirror = Mirror(MODEL, faults=[cut(2 << 20), *[status(503)] * 20])
    placed = of(web, mirror, tmp_path)
    said = placed.fails()
    assert (
        "HTTP 503" in said and "(6 attempts in a row)" in said and "2.0 MiB of it are kept" in said
    )
    mirror.faults = [status(429, Retry_After="7200")]
    assert "asks to come again in 120 minutes" in placed.fails()
    mirror.faults = []
    assert placed.run().fetched_bytes == len(MODEL) - (2 << 20)


def test_what_stays_wrong_is_asked_once(web: Site, tmp_path: Path, no_pauses: list[float]) -> None:
    for number, (code, said) in enumerate([(404, "no such file"), (403, "setting netrc")]):
        mirror = Mirror(MODEL, faults=[status(code)] * 3)
        (root := tmp_path / str(number)).mkdir()
        assert said in of(web, mirror, root).fails() and len(mirror.gets) == 1
    for number, target in enumerate(["/m.gguf", "file:///etc/passwd"]):
        web.answers["/loop"] = redirect(target if number else "/loop")
        part = ModelPart(url=web.url("/loop"), sha256=sha256(MODEL))
        (root := tmp_path / f"r{number}").mkdir()
        assert "redirect" in Placed(root, part).fails().lower()
    assert no_pauses == []


def test_passwords_are_those_of_the_settings(web: Site, tmp_path: Path) -> None:
    mirror = Mirror(MODEL, faults=[cut(1 << 20)])
    placed = of(web, mirror, tmp_path)
    web.wanted = "Basic " + base64.b64encode(b"lab:secret").decode()
    said = placed.fails()
    assert "HTTP 401" in said and "setting netrc" in said and mirror.gets == []
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login lab password secret\n")
    placed.config = replace(placed.config, netrc=str(netrc))
    placed.run()
    is_there(placed)
    assert "secret" not in placed.job.read_log() + (placed.folder / PROOF).read_text()


def test_redirections_take_the_range_along(web: Site, tmp_path: Path) -> None:
    """Hugging Face sends its files from other hosts."""
    mirror = Mirror(MODEL, faults=[cut(1 << 20)])
    web.answers |= {"/m.gguf": mirror, "/resolve": redirect("/m.gguf")}
    placed = Placed(tmp_path, ModelPart(url=web.url("/resolve"), sha256=sha256(MODEL)))
    assert placed.run().fetched_bytes == len(MODEL)


def test_a_stated_size_is_compared_before_it_comes(web: Site, tmp_path: Path) -> None:
    mirror = Mirror(MODEL)
    placed = of(web, mirror, tmp_path, size=len(MODEL) + 1)
    assert f"found {len(MODEL)} bytes; expected {len(MODEL) + 1}" in placed.fails()
    assert not placed.incoming().read_bytes()


def test_the_disk_is_looked_at_first(
    web: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On resume only the rest is asked for."""
    mirror = Mirror(MODEL, faults=[cut(2 << 20), status(404)])
    placed = of(web, mirror, tmp_path)
    placed.fails()
    rest = len(MODEL) - (2 << 20)
    free = [rest + (1 << 20) - 1]

    class Found:
        f_frsize = 1

        @property
        def f_bavail(self) -> int:
            return free[0]

    monkeypatch.setattr(transfer.os, "statvfs", lambda _: Found())
    said = placed.fails()
    assert "expected 1.4 MiB for what is left of the model and 1.0 MiB that stay free" in said
    assert mirror.sent == 2 << 20, "nothing more came"
    free[0] += 1
    placed.run()
    is_there(placed)


def test_a_split_model_is_whole_or_not_there(web: Site, tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    contents = [path.read_bytes() for path in split(source, 3)]
    for number, content in enumerate(contents):
        web.answers[f"/{number}"] = Mirror(content)
    parts = [
        ModelPart(url=web.url(f"/{number}"), sha256=sha256(content))
        for number, content in enumerate(contents)
    ]
    placed = Placed(tmp_path, *parts)
    web.answers["/2"] = Mirror(b"", faults=[status(404)])
    placed.fails()
    web.answers["/2"] = Mirror(contents[2])
    assert len(placed.run().files) == 3
    names = [f"model-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    assert sorted(path.name for path in placed.folder.iterdir()) == [*names, PROOF]
    # In another order they are no model, nor are two of three.
    assert "in the place of part" in Placed(tmp_path, parts[0], parts[2], parts[1]).fails()
    assert "by its header, and its name does not say so" in Placed(tmp_path, parts[0]).fails()


def test_there_is_room_for_all_parts_or_none_is_fetched(
    web: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source := tmp_path / "source").mkdir()
    contents = [path.read_bytes() for path in split(source, 3)]
    for number, content in enumerate(contents):
        web.answers[f"/{number}"] = Mirror(content)
    whole = sum(map(len, contents))
    asked: list[int] = []
    monkeypatch.setattr(Disk, "need", lambda self, octets: asked.append(octets))
    Placed(
        tmp_path,
        *(ModelPart(url=web.url(f"/{n}"), sha256=sha256(c)) for n, c in enumerate(contents)),
    ).run()
    assert asked[0] == whole


def test_what_the_controller_brought_is_checked_too(tmp_path: Path) -> None:
    placed = Placed(tmp_path, ModelPart(sha256=sha256(MODEL), size=len(MODEL)))
    assert "expected the one that the controller sends" in placed.fails()
    placed.incoming().write_bytes(model(seed=3))
    assert f"found sha256 {sha256(model(seed=3))}" in placed.fails()
    placed.incoming().write_bytes(MODEL)
    assert placed.run().fetched_bytes == 0
    is_there(placed)


def test_a_file_of_the_host_stays_where_it_is(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(MODEL)
    own.chmod(0o600)
    placed = Placed(tmp_path, ModelPart(path=str(own)))
    product = placed.run()
    assert (product.files[0].sha256, product.bytes) == ("", len(MODEL))
    assert own.stat().st_mode & 0o777 == 0o600 and place.done(placed.config)
    own.write_bytes(MODEL[:-5])
    assert not place.done(placed.config) and f"{own} is cut short" in placed.fails()
    stated = Placed(tmp_path, ModelPart(path=str(own), sha256=sha256(MODEL)))
    assert "as the profile says" in stated.fails()
    assert "no file" in Placed(tmp_path, ModelPart(path=str(tmp_path / "x.gguf"))).fails()


def test_no_link_or_pipe_is_written_to(web: Site, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    placed = of(web, Mirror(MODEL), tmp_path)
    placed.folder.mkdir(parents=True)
    for make in (lambda path: path.symlink_to(theirs), os.mkfifo, lambda path: path.mkdir()):
        make(placed.incoming())
        assert "found no plain file in its place" in placed.fails()
        placed.incoming().rmdir() if placed.incoming().is_dir() else placed.incoming().unlink()
    assert theirs.read_text() == "precious"


def test_the_types_sizes_are_those_of_the_library() -> None:
    constants = pytest.importorskip("gguf.constants")
    theirs = {int(kind): sizes for kind, sizes in constants.GGML_QUANT_SIZES.items()}
    assert {kind: sizes for kind, sizes in SIZES.items() if kind in theirs} == theirs


# -- as on a host: its own process, its own disk ---------------------------------------------------


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("place"))


def told(runner: Runner, folder: Path, url: str, content: bytes) -> Path:
    digest = sha256(content)
    return runner.job(
        "model",
        digest[:16],
        {
            "inputs": {"parts": [digest]},
            "folder": str(folder),
            "parts": [{"url": url, "sha256": digest}],
            "reserve_mib": 1,
        },
    )


@pytest.mark.long
def test_a_killed_job_goes_on(web: Site, runner: Runner, tmp_path: Path) -> None:
    """Killed twice; what came before each is not fetched again."""
    content = model(seed=7, mib=4)
    mirror = Mirror(content, slow_s=0.01)
    web.answers["/m.gguf"] = mirror
    folder = tmp_path / "gguf"
    job = told(runner, folder, web.url("/m.gguf"), content)
    incoming = folder / f"model.gguf{INCOMING}"
    for share in (0.15, 0.5):
        process = runner.start(job)
        wait_for(lambda share=share: incoming.exists()
                 and incoming.stat().st_size > share * len(content))  # fmt: skip
        kill(process.pid)
        process.wait()
        assert runner.status(job)["state"] == "dead"
    before = mirror.sent
    done = runner.run(*runner.command(job))
    assert done.returncode == 0, done.stderr
    assert (folder / "model.gguf").read_bytes() == content
    stamp = json.loads((job / "stamp.json").read_text())
    assert stamp["ok"] and stamp["fetched_bytes"] < 0.55 * len(content)
    # Sent and lost on the way to a killed reader: what lay in buffers.
    assert mirror.sent < len(content) + 2 * (4 << 20) and before < mirror.sent
    assert [one.get("range", "")[:6] for one in mirror.gets] == ["", *["bytes="] * 2]
    assert "done already" in runner.run(*runner.command(job)).stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    (disk := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "llamafleet-test", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_and_goes_on(web: Site, small_disk: Path) -> None:
    """Real ENOSPC: somebody else fills it while the model comes."""
    content = model(seed=8, mib=5)
    theirs = small_disk / "theirs"

    def fill(mirror: Mirror, handler: Any) -> None:
        mirror.head(handler, 200, len(content))
        mirror.send(handler, content[: 2 << 20])
        wait_for(lambda: placed.incoming().stat().st_size > 1 << 20)
        with contextlib.suppress(OSError), theirs.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        mirror.send(handler, content[2 << 20 :])

    mirror = Mirror(content, faults=[fill])
    placed = of(web, mirror, small_disk, content)
    said = placed.fails()
    assert "can't be written (No space left on device)" in said and "goes on from there" in said
    kept = placed.incoming().stat().st_size
    # Now the room is looked at before a byte comes.
    assert "that stay free" in placed.fails() and len(mirror.gets) == 1
    theirs.unlink()
    assert placed.run().fetched_bytes == len(content) - kept
    is_there(placed, content)
