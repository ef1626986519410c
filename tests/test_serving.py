"""Profiles of the setting `serve`: what is refused, all at once and before any host is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llamafleet.inventory import read_supplies, validate_fleet
from llamafleet.protocol.serve import SHORTEST_KEY, Placement
from llamafleet.serving import Profile
from llamafleet.supplied import api_key
from tests.test_settings import lines_of

MODEL = {"model": "/srv/a.gguf"}
KEY = "0123456789abcdefghij"


def key_file(folder: Path, text: str = f"{KEY}\n", mode: int = 0o600) -> Path:
    file = folder / "api.key"
    file.write_text(text)
    file.chmod(mode)
    return file


def said(**profiles: Any) -> str:
    return "\n".join(lines_of(serve=profiles))


def test_all_errors_of_all_profiles_at_once(tmp_path: Path) -> None:
    weak = key_file(tmp_path, "short\n")
    found = said(
        chat=MODEL | {"prt": 8001, "n_ctx": "8k", "address": "localhost", "kv_type": "q5"},
        code=MODEL | {"limits": {"waiting": 0, "waitng": 1}, "gpus": [], "like": "l32"},
        web=MODEL | {"address": "0.0.0.0", "port": 8002},
        top=MODEL | {"port": 8003, "api_key_file": str(weak)},
        bare={},
    ).splitlines()
    for line in (
        "serve.chat.prt: found an unknown key, allowed: one of model, sha256, ",
        "serve.chat.n_ctx: found '8k' (str), allowed: a whole number of tokens from 256 to 1048576",
        "serve.chat.address: found 'localhost', allowed: an IP address of the host such as ",
        "serve.chat.kv_type: found 'q5', allowed: f16, q8_0 or q4_0",
        "serve.code.limits.waiting: found 0, allowed: a whole number of requests from 1 to 10000",
        "serve.code.limits.waitng: found an unknown key, allowed: one of waiting, body_mib, ",
        "serve.code.gpus: found (), allowed: a list of UUIDs",
        "serve.code.like: found 'l32', allowed: one of l32-8x3b, l32-8x4b, other, or no key",
        "serve.bare.model: found nothing, allowed: the absolute path of a .gguf file on the host",
    ):
        assert any(one.startswith(f"host gpu-a: {line}") for one in found), (line, found)
    assert any("(nearest: port)" in one for one in found)


@pytest.mark.parametrize("name", ["Chat", "a b", "a/b", "-a", "", "x" * 33, "a.b", "a@b", "ä"])
def test_names_that_a_unit_would_have_to_quote(name: str) -> None:
    assert "profiles by name" in said(**{name: MODEL})


def test_what_is_no_profile() -> None:
    values: list[Any] = [[], "chat", 3, None, {"chat": "/srv/a.gguf"}, {"chat": None}]
    for value in values:
        assert "serve" in "\n".join(lines_of(serve=value)), value


def test_each_has_a_port_of_its_own() -> None:
    found = said(a=MODEL, b=MODEL)
    assert found == (
        "host gpu-a: serve.b.port: found 8000, as serve.a has on 127.0.0.1, allowed: a port of "
        "its own for each profile"
    )
    apart = {"a": MODEL, "b": MODEL | {"address": "127.0.0.2"}, "c": MODEL | {"port": 8001}}
    assert validate_fleet({"gpu-a": {"serve": apart}})["gpu-a"].serve.keys() == apart.keys()


def test_a_port_that_all_addresses_have_is_everybody_s(tmp_path: Path) -> None:
    open_ = MODEL | {"address": "::", "api_key_file": str(key_file(tmp_path))}
    assert "serve.b.port: found 8000, as serve.a has on ::" in said(a=open_, b=MODEL)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "::", "10.0.0.1"])
def test_other_hosts_reach_it_with_a_key_alone(address: str, tmp_path: Path) -> None:
    found = said(chat=MODEL | {"address": address})
    assert f"serve.chat.address: found {address}, which other hosts may reach" in found
    keyed = MODEL | {"address": address, "api_key_file": str(key_file(tmp_path))}
    assert validate_fleet({"gpu-a": {"serve": {"chat": keyed}}})["gpu-a"].serve["chat"].public


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_host_alone_needs_none(address: str) -> None:
    made = validate_fleet({"gpu-a": {"serve": {"chat": MODEL | {"address": address}}}})
    assert not made["gpu-a"].serve["chat"].public


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("\n", "an empty file"),
        ("short\n", "5 characters, not 20 to 512"),
        (f"{KEY}\n{KEY}\n", "2 lines"),
        (f"{KEY} x\n", "blanks or what is no printable ASCII"),
        (f"{KEY}\u00e4\n", "blanks or what is no printable ASCII"),
        ("x" * 513, "513 characters"),
        (f" {KEY}", "blanks"),
    ],
)
def test_keys_that_are_none(text: str, words: str, tmp_path: Path) -> None:
    found = said(chat=MODEL | {"api_key_file": str(key_file(tmp_path, text))})
    assert "serve.chat.api_key_file: found" in found and words in found, found
    assert KEY not in found


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_read_is_none(mode: int, tmp_path: Path) -> None:
    found = said(chat=MODEL | {"api_key_file": str(key_file(tmp_path, mode=mode))})
    assert f"mode {mode:04o}; next: chmod 600 " in found


def test_a_key_file_that_is_not_there_or_none(tmp_path: Path) -> None:
    assert "a file that can't be opened" in said(chat=MODEL | {"api_key_file": "/no/such"})
    assert "Is a directory" in said(chat=MODEL | {"api_key_file": str(tmp_path)})
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in said(chat=MODEL | {"api_key_file": str(tmp_path / "pipe")})


def test_a_key_comes_to_the_profiles_that_name_it(tmp_path: Path) -> None:
    keyed = MODEL | {"api_key_file": str(key_file(tmp_path)), "port": 8001}
    fleet = validate_fleet({"gpu-a": {"serve": {"a": keyed, "b": MODEL}}, "gpu-b": {}})
    supplies = read_supplies(fleet)
    assert supplies["gpu-a"].serve_keys == {"a": KEY} and supplies["gpu-b"].serve_keys == {}
    assert KEY not in repr(supplies)
    assert api_key(key_file(tmp_path, KEY)) == KEY and len(KEY) == SHORTEST_KEY


def test_a_cache_of_another_type_needs_flash_attention() -> None:
    found = said(chat=MODEL | {"kv_type": "q8_0", "flash_attention": False})
    assert "serve.chat.kv_type: found q8_0, allowed: f16 beside flash_attention = False" in found


def test_a_profile_is_like_a_row_where_it_says_nothing_itself() -> None:
    made = Profile.model_validate(MODEL | {"like": "l32-8x3b"})
    assert made.placement == Placement(50, 16384) and made.value("mmap") is True
    own = Profile.model_validate(MODEL | {"like": "l32-8x3b", "n_ctx": 2048, "n_gpu_layers": "fit"})
    assert own.fitted and own.placement == Placement(-1, 2048)
    assert Profile.model_validate(MODEL).placement == Placement(-1, 4096)


def test_a_user_s_own_manager_serves_nothing() -> None:
    """It could keep neither devices nor files from the service, nor the key from its account."""
    profiles = {"chat": MODEL, "code": MODEL | {"port": 8001}}
    (found,) = lines_of(scope="user", serve=profiles)
    assert found == (
        'host gpu-a: serve: found chat, code, allowed: scope = "system" beside it (root)'
    )
    assert validate_fleet({"gpu-a": {"scope": "user", "serve": {}}})
