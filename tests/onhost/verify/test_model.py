"""A model that can't be used is one red check with its cause and its cure, whatever is wrong."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import gguffile, synth, weights
from llamafleet.onhost.verify.checks.model import judge_room
from llamafleet.onhost.verify.synth import ModelError
from tests.onhost.gguf_files import F32, LANGUAGE_MODEL, Q4_0, TENSORS, gguf, split
from tests.onhost.llama import models
from tests.onhost.verify.test_gpu import Recorded
from tests.onhost.verify.test_session import Host, every, host, read_weights, said, status, two

__all__ = ["host", "models", "two"]

MIB = 1 << 20


def refused(path: Path) -> str:
    """What is said of a model: found, expected and next."""
    with pytest.raises(ModelError) as error:
        weights.read(path)
    said = f"found {error.value}; expected {error.value.expected}; next: {error.value.next}"
    assert said.isprintable() and str(path.parent) in said, said
    return said


def model(folder: Path, data: bytes, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# -- whole ones ------------------------------------------------------------------------------------


def test_a_small_model_is_read_to_the_byte(tmp_path: Path) -> None:
    path = model(tmp_path, gguf())
    read = weights.read(path)
    assert (read.layers, read.total_bytes, read.files) == (2, 512 + 108 + 512, (path,))
    assert read.device_bytes == 108 + 512
    # 2 layers, keys and values, 2 heads of 16 numbers, 2 bytes each
    assert read.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2


def test_sizes_are_those_of_gguf_s_own_reader(tmp_path: Path, models: Path) -> None:
    from gguf import GGUFReader

    path = synth.ensure(models, "160m", "q4_0")[0]
    theirs = GGUFReader(path).tensors
    ours = gguffile.read(path).tensors
    assert [(t.name, t.bytes) for t in ours] == [(t.name, int(t.n_bytes)) for t in theirs]


def test_a_type_that_is_newer_than_the_table_is_measured_by_its_neighbours(tmp_path: Path) -> None:
    """Whether llama.cpp knows it is llama.cpp's to say."""
    data = gguf().replace(struct.pack("<QQI", 64, 3, Q4_0), struct.pack("<QQI", 64, 3, 999))
    read = weights.read(model(tmp_path, data))
    assert read.total_bytes == 512 + 128 + 512


def test_all_parts_of_a_split_model_count(tmp_path: Path) -> None:
    paths = split(tmp_path, 3)
    read = weights.read(paths[0])
    assert (read.total_bytes, read.files) == (3 * 108, tuple(paths))


def test_parts_that_were_joined_again_may_keep_the_name_of_the_first(tmp_path: Path) -> None:
    path = model(tmp_path, gguf(), "big-00001-of-00003.gguf")
    assert weights.read(path).files == (path,)


def test_an_aligned_model_ends_where_its_last_tensor_does(tmp_path: Path) -> None:
    """llama.cpp asks for no padding behind it."""
    data = gguf(tensors=TENSORS[:2])
    assert len(data) % 32 and weights.read(model(tmp_path, data)).total_bytes == 512 + 108


# -- kinds of files that are none ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "cure"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page", "head -c 200"),
        (b"\n  <HTML lang=en>", "a web page", "head -c 200"),
        (b'{"error":"Repository not found"}', "JSON", "head -c 200"),
        (b"Invalid username or password.\n", "begins 'Invalid username or password.'", "head"),
        (b"PK\x03\x04\x00\x00archive/data.pkl", "a zip archive", "convert_hf_to_gguf"),
        (b"\x80\x02}q\x00", "a pickle", "convert_hf_to_gguf"),
        (struct.pack("<Q", 9000) + b'{"__metadata__":{}', "a safetensors file", "convert_hf"),
        (b"tjgg\x03\0\0\0", "a GGML file of before GGUF", "convert_hf_to_gguf"),
        (b"\x1f\x8b\x08\0", "a packed archive", "unpack"),
        (b"m.gguf".ljust(257, b"\0") + b"ustar\x0000", "a tar archive", "unpack"),
        (b"\0" * 4096, "zero bytes alone", "fetch it again"),
        (b"\xff\xfe\xfd\xfc\x00\x9b", "something else (it begins ff fe fd fc 00 9b)", "head"),
    ],
)
def test_what_is_no_gguf_is_told_by_its_first_bytes(
    tmp_path: Path, data: bytes, kind: str, cure: str
) -> None:
    text = refused(model(tmp_path, data))
    assert f"is no GGUF file but {kind}" in text or kind in text.split("; next")[0]
    assert cure in text.split("; next: ")[1]


def test_a_piece_that_was_cut_by_bytes_is_to_be_joined(tmp_path: Path) -> None:
    whole = gguf()
    for name, data in (("m.gguf.part1of2", whole[:-600]), ("m.gguf-split-b", whole[-600:])):
        text = refused(model(tmp_path, data, name))
        assert f"next: join its pieces in their order, `cat {tmp_path}/m.gguf?* > " in text


def test_an_empty_file(tmp_path: Path) -> None:
    assert "m.gguf is empty; expected a whole GGUF file" in refused(model(tmp_path, b""))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gguf(order=">"), "GGUF of big endian"),
        (gguf(version=1), "GGUF of version 1"),
        (gguf(version=4), "GGUF of version 4"),
    ],
)
def test_another_form_of_gguf(tmp_path: Path, data: bytes, said: str) -> None:
    assert f"{said}" in refused(model(tmp_path, data))


def test_version_2_is_read(tmp_path: Path) -> None:
    assert weights.read(model(tmp_path, gguf(version=2))).layers == 2


# -- damaged ones ----------------------------------------------------------------------------------


def test_a_file_that_is_cut_short_says_how_much_is_missing(tmp_path: Path) -> None:
    whole = len(gguf())
    text = refused(model(tmp_path, gguf()[:-500]))
    assert f"cut short: it has {whole - 500:,} bytes, and by its header {whole:,}: 500 are" in text
    assert "sha256sum" in text


def test_a_file_may_be_cut_anywhere(tmp_path: Path) -> None:
    whole = gguf()
    for end in range(1, len(whole)):
        text = refused(model(tmp_path, whole[:end]))
        assert "cut short" in text or "no GGUF file" in text, (end, text)


TABLE = struct.pack("<QQI", 64, 3, Q4_0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (TABLE, struct.pack("<QQI", 64, 30, Q4_0), "'output.weight' begins at byte 640 of the"),
        (TABLE, struct.pack("<QQI", 65, 3, Q4_0), "[65, 3] weights of type 2 for 'blk.0.attn_q"),
        (TABLE, struct.pack("<QQI", 1 << 62, 3, Q4_0), "[4611686018427387904, 3] weights"),
        (struct.pack("<IQQI", 2, 64, 3, Q4_0), struct.pack("<IQQI", 9, 64, 3, Q4_0), "dimensions"),
        (struct.pack("<QIQ", 2, F32, 0), struct.pack("<QIQ", 2, F32, 7), "begins at byte 7 of"),
        (b"head_count" + struct.pack("<I", 4), b"head_count" + struct.pack("<I", 77), "kind 77"),
        (struct.pack("<IQ", 8, 2), struct.pack("<IQ", 8, 1 << 60), "ends within its header"),
        (struct.pack("<QQ", 3, 6), struct.pack("<QQ", 3, 1 << 40), "1,099,511,627,776 fields"),
        (struct.pack("<QQ", 3, 6), struct.pack("<QQ", 1 << 40, 6), "1,099,511,627,776 tensors"),
        (struct.pack("<II", 4, 64), struct.pack("<If", 6, float("nan")), "embedding_length = nan"),
    ],
)
def test_a_damaged_header_says_where(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    assert gguf().count(old) >= 1
    text = refused(model(tmp_path, gguf().replace(old, new, 1)))
    assert said in text, text


def test_a_field_that_stands_there_twice_is_damage(tmp_path: Path) -> None:
    data = gguf({"general.name": "x", "general.namf": "y", **LANGUAGE_MODEL})
    text = refused(model(tmp_path, data.replace(b"general.namf", b"general.name")))
    assert "damaged: it says 'general.name' twice" in text


# -- parts -----------------------------------------------------------------------------------------


def test_all_missing_parts_are_named(tmp_path: Path) -> None:
    first, second, third, fourth = split(tmp_path, 4)
    second.unlink()
    fourth.unlink()
    text = refused(first)
    assert f"2 of 4 parts are not in {tmp_path}: {second.name}, {fourth.name};" in text
    assert third.name not in text


def test_a_later_part_leads_to_the_first(tmp_path: Path) -> None:
    paths = split(tmp_path, 3)
    assert "part 2 of 3, by its name; expected the first part" in refused(paths[1])
    assert f"next: set model to {paths[0]}" in refused(paths[1])
    renamed = paths[2].rename(tmp_path / "mine.gguf")
    assert "part 3 of 3, by its header" in refused(renamed)


def test_a_first_part_under_another_name(tmp_path: Path) -> None:
    first = split(tmp_path, 2)[0].rename(tmp_path / "mine.gguf")
    text = refused(first)
    assert "part 1 of 2 by its header" in text and "mine-00001-of-00002.gguf" in text


def test_a_part_that_is_cut_or_another_s(tmp_path: Path) -> None:
    first, second = split(tmp_path, 2)
    whole = second.read_bytes()
    second.write_bytes(whole[:-10])
    assert f"{second} is cut short" in refused(first)
    second.write_bytes(first.read_bytes())
    assert "part 1 of 2 by its header, in the place of part 2 of 2" in refused(first)
    told = {"split.no": 1, "split.count": 2, "split.tensors.count": 2}
    second.write_bytes(gguf(told, (("a", F32, (8,)), ("b", F32, (8,)))))
    assert "hold 3 tensors, and by its header 2" in refused(first)


# -- no language model -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "tensors", "said"),
    [
        ({"general.architecture": "clip", "clip.vision.block_count": 2}, TENSORS, "a projector"),
        ({**LANGUAGE_MODEL, "general.type": "mmproj"}, TENSORS, "a projector"),
        ({**LANGUAGE_MODEL, "general.type": "adapter"}, TENSORS, "a LoRA adapter"),
        ({"general.type": "imatrix"}, TENSORS, "an importance matrix"),
        ({"general.architecture": "controlvector"}, TENSORS, "a control vector"),
        (LANGUAGE_MODEL, (), "a vocabulary: it holds no weights"),
        ({"general.architecture": "whisper"}, TENSORS, "its architecture: 'whisper'"),
        ({}, TENSORS, "states no number of layers"),
    ],
)
def test_gguf_of_another_kind(
    tmp_path: Path, fields: dict[str, Any], tensors: Any, said: str
) -> None:
    text = refused(model(tmp_path, gguf(fields, tensors)))
    assert said in text and "expected a GGUF file of a language model" in text


# -- files that are not to be reached --------------------------------------------------------------


def test_no_such_file_names_the_last_folder_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "models/deep/m.gguf"
    text = refused_elsewhere(path)
    assert f"no file {path}; of its folders {tmp_path} is the last that is there" in text
    assert f"next: `ls {tmp_path}`" in text or "move it out of" in text


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    text = refused_elsewhere(tmp_path / "models/m.gguf")
    assert f"of its folders {tmp_path} is the last that is there" in text


def test_a_disk_that_does_not_answer_is_one_red_check(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(tmp_path, gguf())

    def broken(one: Path) -> Any:
        if one == path:
            raise OSError(5, "Input/output error")
        return read_weights(one)

    monkeypatch.setattr(weights, "read", broken)
    result = host[1](model=str(path))
    assert status(result, "fail") == {"model"}
    assert f"{path} can't be read: [Errno 5] Input/output error" in said(result, "model")
    assert f"cksum {path}" in said(result, "model")


def test_below_tmp_the_unit_s_own_is_the_cause() -> None:
    assert "next: move it out of /tmp: " in refused_elsewhere(Path("/tmp/none-of-that/m.gguf"))
    assert "move it out of /var/tmp" in refused_elsewhere(Path("/var/tmp/none-of-that.gguf"))
    assert "next: `ls /srv`" in refused_elsewhere(Path("/srv/none-of-that.gguf"))


def refused_elsewhere(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        weights.read(path)
    return f"found {error.value}; expected {error.value.expected}; next: {error.value.next}"


def test_a_link_to_nothing_a_folder_and_a_pipe(tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tmp_path / "gone.gguf")
    assert f"{link} is a link to {tmp_path}/gone.gguf, where no file is" in refused(link)
    assert f"{tmp_path} is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refused(tmp_path / "pipe"), "and nobody waits for it"


READ = """
import os, pwd, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from llamafleet.onhost.verify import gguffile
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    gguffile.read(Path(sys.argv[2]))
except gguffile.ModelError as error:
    print(f"found {error}; expected {error.expected}; next: {error.next}")
"""


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that anybody may enter: those of pytest are its user's own."""
    folder = Path(tempfile.mkdtemp(prefix="llamafleet-model."))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(path: Path) -> str:
    code = Path(__file__).parents[3]
    argv = [sys.executable, "-c", READ, str(code), str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can take another account's rights")
def test_what_keeps_the_account_out_is_named(outside: Path) -> None:
    secret = outside / "secret"
    secret.mkdir()
    path = model(secret, gguf())
    path.chmod(0o600)
    text = as_nobody(path)
    assert f"the account nobody can't read {path} (-rw------- of uid 0)" in text
    assert f"next: chmod o+r {path}" in text
    secret.chmod(0o700)
    text = as_nobody(path)
    assert f"the account nobody can't enter the folder {secret} (drwx------ of uid 0)" in text
    assert f"next: chmod o+x {secret}" in text


# -- room ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "free", "said"),
    [
        (24000, 24000, ""),
        (24001, 24000, "no room: m takes 24,001 MiB of GPU memory"),
        (24565, 24000, "too big: m takes 24,565 MiB of GPU memory"),
    ],
)
def test_room(device: float, free: float, said: str) -> None:
    check = judge_room("m", device, free, 24564, 1)
    assert check.status == ("fail" if said else "pass") and check.found.startswith(said)
    assert "24,000 MiB, which are free on the GPU (24,564 MiB in all)" in check.expected
    assert ("nvidia-smi" in check.next) is said.startswith("no room")
    assert "on all 2 GPUs together" in judge_room("m", device, free, 24564, 2).expected


# -- in a whole verification -----------------------------------------------------------------------

NEEDY = {"offload", "vram", "busy", "context", "benchmark"}


def test_a_cut_model_is_one_red_check(host: Host, tmp_path: Path) -> None:
    """It was one numpy error in five checks."""
    _, run = host
    result = run(model=str(model(tmp_path, gguf()[:-500])))
    assert result["verdict"] == "FAIL"
    assert status(result, "fail") == {"model"}
    assert status(result, "skip") == NEEDY
    assert "cut short" in said(result, "model") and "the model can't be used" in said(
        result, "vram"
    )


def test_a_model_of_a_later_llama_cpp_is_one_red_check(host: Host, tmp_path: Path) -> None:
    answers, run = host
    line = "llama_model_load: error loading model: unknown model architecture: 'foo4'"
    answers.answers["outline"] = (None, line)
    result = run(model=str(model(tmp_path, gguf())))
    assert status(result, "fail") == {"model"} and status(result, "skip") == NEEDY
    assert "unknown model architecture: 'foo4'" in said(result, "model")
    assert "newer llama_version" in said(result, "model")


def test_a_synthetic_model_that_can_t_be_written_is_one_red_check(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise ModelError("can't write it: no space", "make room")

    monkeypatch.setattr(synth, "ensure", full)
    result = host[1]()
    assert status(result, "fail") == {"model"}
    assert status(result, "skip") == NEEDY | {"control", "logits"}


def test_a_model_too_big_is_named_before_anything_is_loaded(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, run = host
    big = replace(weights.Weights(32, 0, 0, 1.0), device_bytes=24565 * MIB)
    small = read_weights
    monkeypatch.setattr(weights, "read", lambda path: big if "160m" in path.name else small(path))
    result = run()
    assert status(result, "fail") == {"model"}
    assert "too big: synthetic:160m-q4_0 takes 24,565 MiB" in said(result, "model")
    assert not {"generate", "context", "bench"} & {name for name, _ in answers.asked}


def test_memory_that_others_hold_is_no_room(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Recorded.nvmlDeviceGetMemoryInfo

    def taken(self: Recorded, device: int) -> Any:
        self.used = 24564 - 10
        return whole(self, device)

    monkeypatch.setattr(Recorded, "nvmlDeviceGetMemoryInfo", taken)
    result = host[1]()
    assert status(result, "fail") == {"model"}
    assert "no room" in said(result, "model") and "nvidia-smi" in said(result, "model")


def test_two_gpus_have_room_together(two: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 MiB on two cards of 24,564: no false alarm."""
    _, run = two
    small = read_weights

    def read(path: Path) -> Any:
        found = small(path)
        return replace(found, device_bytes=30_000 * MIB) if "160m" in path.name else found

    monkeypatch.setattr(weights, "read", read)
    assert "model" not in status(run(), "fail")


def test_a_gpu_that_tells_no_memory_is_not_judged(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that shares the host's, as a GB10."""
    monkeypatch.setattr(Recorded, "nvmlDeviceGetMemoryInfo", lambda *_: None)
    result = host[1]()
    assert "model" in status(result, "pass") and "MiB of weights" in said(result, "model")


def test_a_result_names_all_bytes_of_a_split_model(host: Host, tmp_path: Path) -> None:
    paths = split(tmp_path, 3)
    result = host[1](model=str(paths[0]))
    assert result["model"]["bytes"] == sum(path.stat().st_size for path in paths)
    assert json.dumps(every(result)).count("big-00001") >= 1
