"""Where a served model may come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.inventory import SettingsError, validate_fleet
from llamafleet.modelsource import digests_of, parts_of, sizes_of, source_of
from llamafleet.serving import Profile

A, B = "a" * 64, "b" * 64
SPLIT = "https://example.org/m/big-00001-of-00002.gguf"


def test_a_path_a_file_and_a_url() -> None:
    assert parts_of("/srv/m.gguf") == ("path", ("/srv/m.gguf",))
    assert parts_of("file:m/a b.gguf") == ("file", (str(Path.cwd() / "m/a b.gguf"),))
    assert parts_of("http://h:8/a%20b.gguf") == ("url", ("http://h:8/a%20b.gguf",))


def test_the_first_part_leads_to_all() -> None:
    source = source_of(SPLIT, [A, B], [1, 2])
    assert source.parts == (SPLIT, SPLIT.replace("00001-of", "00002-of"))
    assert source.sizes == (1, 2) and len(source.key()) == 16


def test_a_model_is_known_by_its_content_and_a_path_by_itself() -> None:
    one, other = source_of("http://a/x.gguf", [A]), source_of("https://b/y.gguf", [A])
    assert one.key() == other.key() == A[:16]
    assert source_of("file:/x.gguf").key([A]) == A[:16]
    assert source_of("/x.gguf", [A]).key() == source_of("/x.gguf").key() != A[:16]


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ("m.gguf", "the absolute path of a .gguf file"),
        ("/srv/m.bin", "the absolute path of a .gguf file"),
        ("/srv/$(id).gguf", "the absolute path of a .gguf file"),
        ("/srv/a\n.gguf", "the absolute path of a .gguf file"),
        ("ftp://h/m.gguf", "the absolute path of a .gguf file"),
        ("https://u:p@h/m.gguf", "without user and password"),
        ("https://h/m.gguf?token=x", "without query"),
        ("https://h:99999/m.gguf", "a port that there can be"),
        ("https://h/" + "m" * 2000, "at most 2000 characters"),
        ("file:m.bin", "file:PATH of a .gguf file"),
        ("/m-00002-of-00003.gguf", "the first part"),
        ("/m-00001-of-00000.gguf", "the first part"),
        ("/m-00001-of-99999.gguf", "the first part"),
    ],
)
def test_what_is_no_place_of_a_model(model: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        parts_of(model)
    assert allowed in str(raised.value)


@pytest.mark.parametrize(
    ("model", "sha256"),
    [
        ("http://h/m.gguf", ()),
        ("http://h/m.gguf", ("A" * 64,)),
        ("http://h/m.gguf", (A, B)),
        (SPLIT, (A,)),
        (SPLIT, (A, A)),
        ("/m.gguf", ("",)),
    ],
)
def test_a_sha256_for_each_part(model: str, sha256: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        digests_of(model, sha256)
    assert digests_of("/m.gguf", ()) == ()


def test_sizes_are_bytes_of_each_part() -> None:
    for sizes in ((1,), (0, 1), (-1, 1), (1 << 50, 1)):
        with pytest.raises(ValueError, match="a number of bytes, a list of 2"):
            sizes_of(SPLIT, sizes)
    assert sizes_of(SPLIT, ()) == ()


def refused(**profile: object) -> list[str]:
    """The lines that an inventory with this profile is refused with."""
    with pytest.raises(SettingsError) as raised:
        validate_fleet({"a": {"serve": {"chat": profile}}})
    return raised.value.lines


def test_an_inventory_is_refused_with_the_key_that_is_wrong(tmp_path: Path) -> None:
    (line,) = refused(model="http://h/m.gguf")
    assert line.startswith("host a: serve.chat.sha256: found ")
    assert line.endswith("; a model that has a URL needs it")
    (line,) = refused(model="m.gguf", sha256="x")
    assert line.startswith("host a: serve.chat.model: found ") and "absolute path" in line
    (line,) = refused(model=SPLIT, sha256=[A, B], size=[5])
    assert line.startswith("host a: serve.chat.size: found ") and "a list of 2" in line
    (line,) = refused(model=f"file:{tmp_path}/none.gguf")
    assert "serve.chat.model: found" in line and "No such file" in line
    assert "p4ssw0rd" not in " ".join(refused(model="https://u:p4ssw0rd@h/m.gguf", sha256=A))


def test_one_value_may_stand_for_a_list() -> None:
    made = Profile.model_validate({"model": "http://h/m.gguf", "sha256": A, "size": 5})
    assert made.source == source_of("http://h/m.gguf", [A], [5])
