"""JSON as dataclasses: what is read, and every way in which it can be wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pytest

from llamafleet.protocol.decode import DecodeError, Rule, decode


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Rule("a whole number above 0", lambda n: n > 0)]


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    rate: float
    on: bool
    toolkit: str | None
    words: tuple[str, ...]
    by_name: dict[str, int]
    anything: dict[str, Any]
    more: tuple[Inner, ...] = ()
    path: Annotated[str, Rule("an absolute path", lambda p: p.startswith("/"))] = "/"


GOOD: dict[str, Any] = {
    "name": "n",
    "kind": "a",
    "inner": {"size": 1},
    "rate": 2,
    "on": True,
    "toolkit": None,
    "words": ["x", "y"],
    "by_name": {"k": 3},
    "anything": {"deep": [1, {"x": None}]},
    "more": [{"size": 2}],
    "path": "/p",
}


def test_a_good_one_is_read_and_written_as_it_was() -> None:
    made = decode(Outer, GOOD)
    assert made.inner == Inner(1) and made.words == ("x", "y") and made.more == (Inner(2),)
    assert isinstance(made.rate, float)
    assert json.loads(json.dumps(asdict(made))) == GOOD


def test_newer_keys_are_tolerated_and_defaults_stand_in() -> None:
    data = {**GOOD, "newer": [1], "inner": {"size": 1, "newer": 2}}
    del data["more"], data["path"]
    assert decode(Outer, data).path == "/"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 5}, "name: found 5, expected text"),
        ({"kind": "c"}, 'kind: found "c", expected a or b'),
        ({"inner": 5}, "inner: found 5, expected an object"),
        ({"inner": {"size": 0}}, "inner.size: found 0, expected a whole number above 0"),
        ({"inner": {"size": "1"}}, 'inner.size: found "1", expected a whole number above 0'),
        ({"inner": {"size": True}}, "inner.size: found true"),
        ({"inner": {}}, "inner.size: found nothing, expected a whole number above 0"),
        ({"rate": "fast"}, 'rate: found "fast", expected a number'),
        ({"rate": float("nan")}, "rate: found NaN, expected a number"),
        ({"rate": 10**400}, "rate: found 1000"),
        ({"inner": {"size": 10**400}}, "inner.size: found 1000"),
        ({"on": 1}, "on: found 1, expected true or false"),
        ({"toolkit": 13.0}, "toolkit: found 13.0, expected text"),
        ({"words": "x"}, 'words: found "x", expected a list'),
        ({"words": ["x", 1]}, "words[1]: found 1, expected text"),
        ({"by_name": {"k": "v"}}, 'by_name.k: found "v", expected a whole number'),
        ({"more": [{"size": 1}, {}]}, "more[1].size: found nothing"),
        ({"path": "here"}, 'path: found "here", expected an absolute path'),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DecodeError) as error:
        decode(Outer, GOOD | change)
    assert len(error.value.errors) == 1 and error.value.errors[0].startswith(said)


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_what_is_no_object_is_named(data: object) -> None:
    with pytest.raises(DecodeError, match=r"the whole: found .*, expected an object"):
        decode(Outer, data)


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(DecodeError) as error:
        decode(Outer, {"inner": {"size": 0}, "kind": 1})
    # Of all keys but those with a default.
    assert len(error.value.errors) == len(GOOD) - 2


def test_a_huge_or_hostile_value_is_cut_and_escaped() -> None:
    with pytest.raises(DecodeError) as error:
        decode(Outer, GOOD | {"name": ["\x1b[2J" + "x" * 10_000]})
    said = str(error.value)
    assert len(said) < 200 and "\x1b" not in said


@pytest.mark.parametrize(("length", "shown"), [(78, '"' + "x" * 78 + '"'), (79, '"' + "x" * 79)])
def test_a_value_is_cut_after_80_characters(length: int, shown: str) -> None:
    with pytest.raises(DecodeError) as error:
        decode(Outer, GOOD | {"on": "x" * length})
    dots = "" if length == 78 else "..."
    assert error.value.errors == [f"on: found {shown}{dots}, expected true or false"]


def test_the_errors_are_the_exception_s_text() -> None:
    with pytest.raises(DecodeError) as error:
        decode(Outer, GOOD | {"name": 5, "on": 5})
    assert str(error.value) == "; ".join(error.value.errors)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("inner", "inner: found nothing, expected an object"),
        ("toolkit", "toolkit: found nothing, expected text or null"),
        ("anything", "anything: found nothing, expected an object"),
    ],
)
def test_what_a_missing_key_should_have_held_is_told(key: str, said: str) -> None:
    data = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(DecodeError) as error:
        decode(Outer, data)
    assert error.value.errors == [said]


def test_an_object_where_text_is_expected_is_named() -> None:
    with pytest.raises(DecodeError) as error:
        decode(Outer, GOOD | {"name": {"a": 1}})
    assert error.value.errors == ['name: found {"a": 1}, expected text']
