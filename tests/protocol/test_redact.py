"""No credential passes, and what is none stays."""

from __future__ import annotations

import time

import pytest

from llamafleet.protocol.redact import redacted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://user:secret@host/simple", "https://***@host/simple"),
        ("https://secret@host/simple", "https://***@host/simple"),
        ("found 'https://u:se@cr/et@host:8443/x'; next", "found 'https://***@host:8443/x'; next"),
        ("--index-url=http://u:p@h/?token=secret&a=b#c", "--index-url=http://***@h/?token=***&a=***#c"),
        ("GET https://h/f?secret", "GET https://h/f?***"),
        ("a https://h/x and http://u:secret@p:1/", "a https://h/x and http://***@p:1/"),
        ("HTTPS://U:SECRET@H", "HTTPS://***@H"),
        ("socks5h://u:secret@h", "socks5h://***@h"),
        ("line\nhttps://u:secret@h\nline", "line\nhttps://***@h\nline"),
        ("Authorization: Basic c2VjcmV0", "Authorization: Basic ***"),
        ("authorization: bearer secret", "authorization: bearer ***"),
    ],
)  # fmt: skip
def test_secrets_are_masked(text: str, said: str) -> None:
    assert redacted(text) == said
    assert "secret" not in redacted(text).lower()
    assert redacted(said) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://pypi.org/simple",
        "https://files.example/x.whl#sha256=0123",
        "is https://h/? right",
        "file:///opt/x",
        "admin@host: no",
        "found 3 errors?",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_long_text_takes_no_long_time() -> None:
    begun = time.process_time()
    for text in ("://" * 10**6, "a" * 10**6 + "://x@" * 10**5, "https://h/?=" + "=&" * 10**6):
        redacted(text)
    assert time.process_time() - begun < 5
