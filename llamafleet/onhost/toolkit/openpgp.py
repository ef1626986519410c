"""Fingerprints of OpenPGP public keys: as much of RFC 4880 as pinning a repository's key takes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from hashlib import sha1

PUBLIC_KEY = 6
"""Tag of a primary key's packet (4.3); its subkeys and signatures have others."""

_ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)


def fingerprints(data: bytes) -> list[str]:
    """Of each primary key in a key file, armored or not: 40 hex digits in upper case.

    Raises ValueError where it is no key file, or one with a key of another version than 4.
    """
    found = []
    for tag, body in _packets(_binary(data)):
        if tag != PUBLIC_KEY:
            continue
        if body[:1] != b"\x04":
            raise ValueError(f"a key of version {body[0] if body else '?'}; expected version 4")
        # 12.2: over the packet in the old format, with a length of two octets.
        digest = sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
        found.append(digest.hexdigest().upper())
    if not found:
        raise ValueError("no public key in it")
    return found


def _binary(data: bytes) -> bytes:
    blocks = _ARMOR.findall(data)
    if not blocks:
        return data
    binary = b""
    for block in blocks:
        # 6.2: headers end at an empty line; the last line is a checksum.
        text = re.split(rb"\r?\n\r?\n", block, maxsplit=1)[-1]
        lines = [line.strip() for line in text.splitlines()]
        try:
            binary += base64.b64decode(b"".join(x for x in lines if not x.startswith(b"=")))
        except binascii.Error as error:
            raise ValueError(f"damaged armor ({error})") from error
    return binary


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each packet (4.2). Raises ValueError."""
    at = 0
    while at < len(data):
        header = data[at]
        if not header & 0x80:
            raise ValueError("not an OpenPGP file")
        if header & 0x40:
            tag, (length, at) = header & 0x3F, _new_length(data, at + 1)
        else:
            # 4.2.1: one, two or four octets; 3 stands for "to the end", which no key has.
            tag, size = (header >> 2) & 0x0F, 1 << (header & 3)
            if size == 8:
                raise ValueError("a packet without a length")
            length, at = int.from_bytes(data[at + 1 : at + 1 + size], "big"), at + 1 + size
        if at + length > len(data):
            raise ValueError("it ends within a packet")
        yield tag, data[at : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """(length, where the body begins), of 4.2.2; partial lengths are for data, not for keys."""
    first = data[at] if at < len(data) else 0
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + int.from_bytes(data[at + 1 : at + 2], "big") + 192, at + 2
    if first < 255:
        raise ValueError("a packet of partial lengths")
    return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
