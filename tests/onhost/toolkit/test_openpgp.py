"""Key files: as gpg and apt read them, and what must not pass."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from llamafleet.onhost.toolkit.openpgp import LIMIT, armored, fingerprints, read
from tests.gpg import Gpg

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
BEGIN, END = b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"-----END PGP PUBLIC KEY BLOCK-----"


@pytest.fixture
def gpg(tmp_path: Path) -> Iterator[Gpg]:
    ring = Gpg(tmp_path / "ring")
    yield ring
    ring.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    """A ring with the keys "pinned", with a subkey that signs, and "hidden"."""
    ring = Gpg(tmp_path_factory.mktemp("two") / "ring")
    pinned = ring.key("pinned", "rsa3072", "sign")
    ring.run("--passphrase", "", "--quick-add-key", pinned, "rsa3072", "sign", "never")
    ring.key("hidden", "rsa3072", "sign")
    yield ring
    ring.stop()


def export(ring: Gpg, name: str, *options: str) -> bytes:
    return ring.run(*options, "--export", name)


def trusted_by_apt(ring: Gpg, keyring: bytes, signer: str, folder: Path) -> bool:
    """The real apt takes a repository that `signer` signed, by a source that names this keyring."""
    site, state = folder / "site", folder / "state"
    shutil.rmtree(state, ignore_errors=True)
    for made in (site, state / "lists/partial", state / "cache/archives/partial"):
        made.mkdir(parents=True, exist_ok=True)
    (site / "Packages").write_bytes(b"")
    empty = hashlib.sha256(b"").hexdigest()
    release = f"Label: x\nDate: {formatdate(usegmt=True)}\nSHA256:\n {empty} 0 Packages\n"
    signed = ring.run("--local-user", signer, "--clearsign", data=release.encode())
    (site / "InRelease").write_bytes(signed)
    (folder / "key.asc").write_bytes(keyring)
    source = folder / "only.list"
    source.write_text(f"deb [signed-by={folder}/key.asc] file:{site} ./\n")
    argv = ["apt-get", "-o", f"Dir::State={state}", "-o", f"Dir::Cache={state}/cache"]
    argv += ["-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Etc::sourcelist={source}"]
    argv += ["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root", "update"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    refused = re.search(r"NO_PUBKEY|not signed|couldn't be verified|unsupported", done.stderr)
    return done.returncode == 0 and not refused


@needs_gpg
@pytest.mark.parametrize("kind", ["rsa3072", "ed25519"])
def test_as_gpg_says_armored_or_not(gpg: Gpg, kind: str) -> None:
    wanted = gpg.key("lab mirror", kind)
    text = gpg.run("--armor", "--export", "lab mirror")
    binary = gpg.run("--export", "lab mirror")
    with_headers = text.replace(BEGIN, BEGIN + b"\nVersion: GnuPG v2.0.22 (GNU/Linux)\nComment: x")
    for form in (text, text.replace(b"\n", b"\r\n"), binary, with_headers, b"\n" + text + b"\n\n"):
        assert fingerprints(form) == [wanted]
    # Written again it is the very file, by gpg's reading too.
    assert armored(read(binary)) == text == armored(read(with_headers))


@needs_gpg
def test_a_second_key_in_the_file_is_seen(gpg: Gpg) -> None:
    both = {gpg.key("one", "ed25519"), gpg.key("another", "ed25519")}
    assert set(fingerprints(gpg.run("--armor", "--export"))) == both
    separate = gpg.run("--armor", "--export", "one") + gpg.run("--armor", "--export", "another")
    with pytest.raises(ValueError, match="several blocks"):
        fingerprints(separate)


@needs_gpg
def test_a_changed_key_has_another_fingerprint(gpg: Gpg) -> None:
    wanted = gpg.key("lab mirror", "rsa3072")
    changed = bytearray(gpg.run("--export", "lab mirror"))
    changed[40] ^= 1
    assert fingerprints(bytes(changed)) != [wanted]


def hidden_ways(pinned: bytes, hidden: bytes, hidden_binary: bytes) -> dict[str, bytes]:
    """Files that begin with the pinned key and hide another one."""
    glued = pinned.replace(END, END + b"\n" + hidden.strip())
    raw = base64.b64encode(hidden_binary)
    return {
        "second block": pinned + hidden,
        "second block with blanks behind its marker": pinned
        + hidden.replace(BEGIN, BEGIN + b" \t ").replace(END, END + b" "),
        "second block with CR line ends alone": pinned + hidden.replace(b"\n", b"\r"),
        "first block with CR line ends alone": hidden.replace(b"\n", b"\r") + b"\n" + pinned,
        "block before, its marker spaced": hidden.replace(BEGIN, BEGIN + b" ") + pinned,
        "markers in one line": glued.replace(END + b"\n" + BEGIN, END + BEGIN),
        "other marker": pinned + hidden.replace(b"PUBLIC KEY BLOCK", b"MESSAGE"),
        "nested marker": pinned.replace(END, BEGIN + b"\n\n" + raw + b"\n" + END),
        "text around": b"key follows\n" + pinned,
        "text behind": pinned + raw + b"\n",
        "body behind the checksum": pinned.replace(END, raw[:76] + b"\n" + END),
    }


@needs_gpg
def test_no_file_with_a_hidden_key_passes(two: Gpg) -> None:
    pinned, hidden = (export(two, name, "--armor") for name in ("pinned", "hidden"))
    ways = hidden_ways(pinned, hidden, export(two, "hidden"))
    for name, planted in ways.items():
        with pytest.raises(ValueError, match=r".") as refused:
            fingerprints(planted)
        assert "\n" not in str(refused.value), name
    # Two keys in the packets of one block are both seen, so the pin refuses them.
    assert len(fingerprints(two.run("--armor", "--export"))) == 2


@needs_gpg
@needs_apt
def test_what_apt_would_have_trusted_is_refused(two: Gpg, tmp_path: Path) -> None:
    """A file of which a laxer reader sees the pinned key alone, and apt the hidden one alone."""
    pinned, hidden = (export(two, name, "--armor") for name in ("pinned", "hidden"))
    planted = hidden.replace(BEGIN, BEGIN + b" ") + pinned
    assert trusted_by_apt(two, planted, "hidden", tmp_path), "a plant that shows nothing"
    with pytest.raises(ValueError, match="several blocks"):
        read(planted)
    ours = armored(read(pinned))
    assert trusted_by_apt(two, ours, "pinned", tmp_path)
    assert not trusted_by_apt(two, ours, "hidden", tmp_path)


@needs_gpg
@needs_apt
def test_a_subkey_does_not_go_with_a_pinned_key(two: Gpg, tmp_path: Path) -> None:
    whole = read(export(two, "pinned"))
    alone = [key.alone() for key in whole]
    assert {p.tag for p in whole[0].packets} == {6, 13, 2, 14}
    assert {p.tag for p in alone[0].packets} == {6, 13, 2}
    assert [k.fingerprint for k in alone] == [k.fingerprint for k in whole]
    assert trusted_by_apt(two, armored(alone), f"{whole[0].fingerprint}!", tmp_path)
    # gpg signs by the newest subkey unless told otherwise.
    assert trusted_by_apt(two, armored(whole), "pinned", tmp_path)
    assert not trusted_by_apt(two, armored(alone), "pinned", tmp_path)


@needs_gpg
def test_packets_that_are_no_key_are_refused(two: Gpg) -> None:
    key = export(two, "pinned")
    secret = two.run("--passphrase", "", "--export-secret-keys", "pinned")
    marker, trust = b"\xca\x03PGP", b"\xb0\x02\x06\x00"
    for planted, why in (
        (secret, "type 5"),
        (key + marker, "type 10"),
        (key + trust, "type 12"),
        (key + b"\xd5\x01\x00", "type 21"),
        (key + b"trailing", "no packet"),
        (key[:-1], "within a packet"),
        (key + b"\x99", "within a packet"),
        (key + b"\xc6\xff\x00", "within a packet"),
        (key[3 + int.from_bytes(key[1:3], "big") :], "no public key at its beginning"),
    ):
        with pytest.raises(ValueError, match=why):
            fingerprints(planted)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an OpenPGP file"),
        (b"<html>404 Not Found</html>", "not an OpenPGP file"),
        (b"\xc6\x05\x03abcd", "version 3"),
        (b"\xc6\x05\x06abcd", "version 6"),
        (b"\xc6\x00", "version ?"),
        (b"\x99\x01\x00\x04", "ends within a packet"),
        (b"\x9b\x04", "without a length"),
        (b"\xc6\xe1\x04", "partial lengths"),
        (b"\xc6\xff\x00\x01\x00\x00\x04" + bytes(0xFFFF), "64 KiB"),
        (b"\xc6" * (LIMIT + 1), "bytes; a key has less"),
        (BEGIN + b"\n\nabc\n" + END + b"\n", "armor"),
        (BEGIN + b"\n\nxgUEYWJjZB==\n" + END + b"\n", "armor"),
        (BEGIN + b"\n\nxgUEYWJjZA==\n=AAAA\n" + END + b"\n", "checksum"),
        (BEGIN + b"\nxgUEYWJjZA==\n" + END + b"\n", "armor"),
    ],
)
def test_what_is_no_key_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("?", r"\?")):
        fingerprints(data)


def test_no_long_input_takes_long() -> None:
    begun = time.process_time()
    for data in (
        BEGIN + b"\n" + b"a: b\n" * 50_000,
        BEGIN + b"\n\n" + b"A\n" * 100_000,
        b"\n" * (LIMIT - 100) + BEGIN,
        b"\xc2\x00" * (LIMIT // 2),
    ):
        with pytest.raises(ValueError):
            fingerprints(data)
    assert time.process_time() - begun < 5
