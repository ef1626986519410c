"""Fingerprints against those that gpg computes, and files that must not pass."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.onhost.toolkit.openpgp import fingerprints
from tests.gpg import Gpg

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")


@pytest.fixture
def gpg(tmp_path: Path) -> Iterator[Gpg]:
    ring = Gpg(tmp_path / "ring")
    yield ring
    ring.stop()


@needs_gpg
@pytest.mark.parametrize("kind", ["rsa3072", "ed25519"])
def test_as_gpg_says_armored_or_not(gpg: Gpg, kind: str) -> None:
    wanted = gpg.key("lab mirror", kind)
    armored = gpg.run("--armor", "--export", "lab mirror")
    assert fingerprints(armored) == [wanted]
    assert fingerprints(armored.replace(b"\n", b"\r\n")) == [wanted]
    assert fingerprints(gpg.run("--export", "lab mirror")) == [wanted]


@needs_gpg
def test_a_second_key_in_the_file_is_seen(gpg: Gpg) -> None:
    both = {gpg.key("one", "ed25519"), gpg.key("another", "ed25519")}
    assert set(fingerprints(gpg.run("--armor", "--export"))) == both
    separate = gpg.run("--armor", "--export", "one") + gpg.run("--armor", "--export", "another")
    assert set(fingerprints(separate)) == both


@needs_gpg
def test_a_changed_key_has_another_fingerprint(gpg: Gpg) -> None:
    wanted = gpg.key("lab mirror", "rsa3072")
    changed = bytearray(gpg.run("--export", "lab mirror"))
    changed[40] ^= 1
    assert fingerprints(bytes(changed)) != [wanted]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no public key"),
        (b"<html>404 Not Found</html>", "not an OpenPGP file"),
        (b"\xc6\x05\x03abcd", "version 3"),
        (b"\x99\x01\x00\x04", "ends within a packet"),
        (b"\x9b\x04", "without a length"),
        (b"\xc6\xe1\x04", "partial lengths"),
        (
            b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n",
            "armor",
        ),
    ],
)
def test_what_is_no_key_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fingerprints(data)
