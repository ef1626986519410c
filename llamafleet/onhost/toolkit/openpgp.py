"""OpenPGP public keys: read strictly, and written again from what was read, and nothing else.

apt, rpm and gpg each read a key file their own way, and find keys where another reader sees a
comment. So no file is handed on to them as it came: `read` refuses what it does not wholly
understand, and `armored` makes a new file of the packets. Numbers are sections of RFC 9580.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha1

SIGNATURE, PUBLIC_KEY, USER_ID, SUBKEY, USER_ATTRIBUTE = 2, 6, 13, 14, 17
"""Tags of all packets that a public key may be made of (10.1)."""
KNOWN = (SIGNATURE, PUBLIC_KEY, USER_ID, SUBKEY, USER_ATTRIBUTE)
LIMIT = 1 << 18
"""Bytes of a key file; NVIDIA's have less than 4 kB."""
MOST_PACKETS = 1000
"""A key has some ten."""

_BEGIN, _END = (b"-----%s PGP PUBLIC KEY BLOCK-----" % word for word in (b"BEGIN", b"END"))
_ARMOR = re.compile(
    rb"[ \t\r\n]*"
    + _BEGIN
    + rb"[ \t]*\r?\n(?:[A-Za-z][A-Za-z-]{0,30}: [^\r\n]{0,1000}\r?\n){0,20}[ \t]*\r?\n"
    rb"(?P<body>(?:[A-Za-z0-9+/]{1,128}={0,2}[ \t]*\r?\n)+)"
    rb"(?:=(?P<crc>[A-Za-z0-9+/]{4})[ \t]*\r?\n)?" + _END + rb"[ \t\r\n]*"
)
"""One block, headers as in 6.2.2.1, nothing but blanks around it."""


@dataclass(frozen=True)
class Packet:
    tag: int
    body: bytes


@dataclass(frozen=True)
class Key:
    """One transferable public key (10.1)."""

    packets: tuple[Packet, ...]

    @property
    def fingerprint(self) -> str:
        """Of the primary key: 40 hex digits in upper case (5.5.4.2)."""
        body = self.packets[0].body
        # Over the packet in the old format, with a length of two octets.
        digest = sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
        return digest.hexdigest().upper()

    def alone(self) -> Key:
        """The primary key with its names and their signatures, without subkeys and pictures.

        A fingerprint is of the primary key alone, and a subkey is bound to it only by a signature,
        which not every version of rpm checks (CVE-2021-3521).
        """
        kept: list[Packet] = []
        dropping = False
        for packet in self.packets:
            if packet.tag != SIGNATURE:
                dropping = packet.tag in (SUBKEY, USER_ATTRIBUTE)
            kept += [] if dropping else [packet]
        return Key(tuple(kept))


def fingerprints(data: bytes) -> list[str]:
    """Of each key in a key file. Raises ValueError as `read` does."""
    return [key.fingerprint for key in read(data)]


def read(data: bytes) -> list[Key]:
    """The keys in a key file, armored or not.

    Raises ValueError where it holds anything but public keys of version 4, whole and in order:
    a second block, text around, other packets, octets behind the last.
    """
    if len(data) > LIMIT:
        raise ValueError(f"more than {LIMIT} bytes; a key has less")
    keys: list[list[Packet]] = []
    for packet in _packets(_binary(data)):
        if packet.tag not in KNOWN:
            raise ValueError(f"a packet of type {packet.tag}, which is no part of a public key")
        if packet.tag in (PUBLIC_KEY, SUBKEY):
            _version_4(packet.body)
        if packet.tag == PUBLIC_KEY:
            keys.append([packet])
        elif not keys:
            raise ValueError("no public key at its beginning")
        else:
            keys[-1].append(packet)
    if not keys:
        raise ValueError("no public key in it")
    return [Key(tuple(packets)) for packets in keys]


def armored(keys: Sequence[Key]) -> bytes:
    """A key file of these keys and nothing else (6.2)."""
    binary = b"".join(_octets(packet) for key in keys for packet in key.packets)
    text = base64.b64encode(binary)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join([_BEGIN, b"", *lines, b"=" + _crc(binary), _END, b""])


def _version_4(body: bytes) -> None:
    if body[:1] != b"\x04":
        raise ValueError(f"a key of version {body[0] if body else '?'}; expected version 4")
    if len(body) >= 1 << 16:
        raise ValueError("a key of 64 KiB or more")


def _binary(data: bytes) -> bytes:
    """The packets as octets. Raises ValueError."""
    if data[:1] >= b"\x80":
        return data
    if b"-----" not in data:
        raise ValueError("not an OpenPGP file")
    if data.count(b"-----BEGIN") > 1:
        raise ValueError("several blocks; expected one, as gpg --armor --export writes")
    found = _ARMOR.fullmatch(data)
    if not found:
        raise ValueError("not one whole armored block, with nothing around it: damaged armor")
    text = b"".join(found["body"].split())
    try:
        binary = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"damaged armor ({error})") from error
    if base64.b64encode(binary) != text:
        raise ValueError("damaged armor (bits behind the end)")
    if found["crc"] and found["crc"] != _crc(binary):
        raise ValueError("damaged armor (its checksum is another)")
    return binary


def _crc(data: bytes) -> bytes:
    """The checksum of an armored block, encoded (6.1)."""
    crc = 0xB704CE
    for octet in data:
        crc ^= octet << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return base64.b64encode(crc.to_bytes(3, "big"))


def _octets(packet: Packet) -> bytes:
    """A packet with a header of the shortest length: in the old format where that has its tag."""
    size = len(packet.body)
    if packet.tag > 15:
        return bytes([0xC0 | packet.tag, 0xFF]) + size.to_bytes(4, "big") + packet.body
    width = 0 if size < 1 << 8 else 1 if size < 1 << 16 else 2
    return bytes([0x80 | packet.tag << 2 | width]) + size.to_bytes(1 << width, "big") + packet.body


def _packets(data: bytes) -> Iterator[Packet]:
    """Each packet (4.2). Raises ValueError."""
    at = count = 0
    while at < len(data):
        count += 1
        if count > MOST_PACKETS:
            raise ValueError(f"more than {MOST_PACKETS} packets")
        header = data[at]
        if not header & 0x80:
            raise ValueError("not an OpenPGP file" if at == 0 else "octets that are no packet")
        if header & 0x40:
            tag, (length, at) = header & 0x3F, _new_length(data, at + 1)
        else:
            # 4.2.2: one, two or four octets; 3 stands for "to the end", which no key has.
            tag, size = (header >> 2) & 0x0F, 1 << (header & 3)
            if size == 8:
                raise ValueError("a packet without a length")
            length, at = _number(data, at + 1, size), at + 1 + size
        if at + length > len(data):
            raise ValueError("it ends within a packet")
        yield Packet(tag, data[at : at + length])
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """(length, where the body begins), of 4.2.1; partial lengths are for data, not for keys."""
    first = _number(data, at, 1)
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + _number(data, at + 1, 1) + 192, at + 2
    if first < 255:
        raise ValueError("a packet of partial lengths")
    return _number(data, at + 1, 4), at + 5


def _number(data: bytes, at: int, size: int) -> int:
    octets = data[at : at + size]
    if len(octets) < size:
        raise ValueError("it ends within a packet")
    return int.from_bytes(octets, "big")
