"""A GGUF file's header, read within bounds: what the file is, and whether all of it is there.

The form is that of llama.cpp's ggml/src/gguf.cpp, whose refusals are repeated here before anything
is loaded: they then have numbers and a cure. Nothing of the weights is read.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llamafleet.onhost.verify.looks import looks_like, to_join
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol.ggml_types import SIZES
from llamafleet.protocol.verify import UNIT_S_OWN

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 1 is read by no llama.cpp since 2025, and there is none above 3."""
ALIGNMENT = 32
"""Where the file names no other."""

MOST_FIELDS = 1 << 16
MOST_TENSORS = 1 << 18
"""DeepSeek's largest has some 50,000 where its experts are not merged."""
MOST_TEXTS = 1 << 22
"""Of one list. The largest vocabularies have some 300,000 tokens."""
MOST_KEPT = 4096
"""Numbers of a list, or bytes of a text, that are kept; longer ones are passed over."""
LONGEST_NAME = 1 << 16
MOST_DIMENSIONS = 4
MOST_WEIGHTS = 1 << 50
"""Of one tensor."""

_TEXT, _LIST = 8, 9
_NUMBERS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
"""Kinds of a value, as enum gguf_type numbers them."""

Value = bool | int | float | str | list[int | float]

WHOLE = "a whole GGUF file"
FETCH = "fetch it again, and compare size and sha256 with the publisher's: `sha256sum {path}`"


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table."""

    name: str
    bytes: int
    dims: tuple[int, ...] = ()
    """Columns first, as the file has them."""
    type: int = 0


@dataclass(frozen=True)
class GgufFile:
    """A file whose header is sound and whose weights are all there."""

    path: Path
    fields: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    end: int = 0
    """Where its last tensor ends, with the padding behind it; 0: it has none."""

    def number(self, key: str) -> int:
        """A whole number that the header states; 0: it states none."""
        value = self.fields.get(key)
        return value if type(value) is int else 0

    def text(self, key: str) -> str:
        value = self.fields.get(key)
        return value if isinstance(value, str) else ""


def read(path: Path) -> GgufFile:
    """Read one file's header. Raises ModelError, and OSError while it is read."""
    regular_file(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ModelError(f"{path} is empty", FETCH.format(path=path), WHOLE)
        return _Header(path, file, size).read()


def regular_file(path: Path) -> None:
    """Raises ModelError for what is no file that this account can read; a pipe would never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(path) from error
    except OSError as error:
        raise _no_way(path, error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        advice = f"set model to the .gguf file itself: `ls {path}`"
        raise ModelError(f"{path} is {kind}", advice, WHOLE)
    if not os.access(path, os.R_OK):
        raise _no_way(path, None)


def _missing(path: Path) -> ModelError:
    expected = "the file that the setting `model` names"
    if path.is_symlink():
        target = os.path.realpath(path)
        found = f"{path} is a link to {target}, where no file is"
        return ModelError(found, f"`ls -l {path}`; bring the file there", expected)
    folder = next(one for one in path.parents if one.is_dir())
    found = f"no file {path}"
    if folder != path.parent:
        found += f"; of its folders {folder} is the last that is there"
    advice = f"`ls {folder}`; bring the file to the host, or set another model"
    for private in UNIT_S_OWN:
        if path.is_relative_to(private):
            advice = f"move it out of {private}: the unit of the verification has one of its own"
    return ModelError(found, advice, expected)


def _no_way(path: Path, error: OSError | None) -> ModelError:
    """A file that is not to be reached, or not to be read, with what keeps this account out."""
    account = _account()
    for folder in reversed(path.parents):
        if not os.access(folder, os.X_OK):
            found = f"{account} can't enter the folder {folder} ({_rights(folder)})"
            return ModelError(found, f"chmod o+x {folder}", f"{account} can read {path}")
    if error is None or isinstance(error, PermissionError):
        found = f"{account} can't read {path} ({_rights(path)})"
        return ModelError(found, f"chmod o+r {path}", f"{account} can read it")
    found = f"{path} can't be looked at: {error.strerror or error}"
    return ModelError(found, f"namei -l {path}", WHOLE)


def _account() -> str:
    import pwd

    try:
        return f"the account {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"the account {os.geteuid()}"


def _rights(path: Path) -> str:
    """As "drwx------ of uid 0"; "?": not to be told."""
    try:
        found = path.stat()
    except OSError:
        return "?"
    return f"{stat.filemode(found.st_mode)} of uid {found.st_uid}"


class _Header:
    """Reads the header of one open file, each step within what is left of it."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._at = 0

    def read(self) -> GgufFile:
        self._magic()
        tensors, fields = self._number("<Q"), self._number("<Q")
        self._bounded(fields, MOST_FIELDS, "fields")
        self._bounded(tensors, MOST_TENSORS, "tensors")
        told: dict[str, Value] = {}
        for _ in range(fields):
            key = self._name("a field")
            if key in told:
                raise self._damaged(f"{key!a} twice")
            told[key] = self._value(self._number("<I"))
        rows = [self._row() for _ in range(tensors)]
        alignment = told.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment.bit_count() != 1:
            raise self._damaged(f"an alignment of {alignment!a:.40}")
        weights, end = self._sized(rows, alignment)
        return GgufFile(self._path, told, weights, end)

    def _magic(self) -> None:
        head = self._file.read(512)
        if head[:4] != MAGIC:
            kind, advice = looks_like(head, self._path)
            raise ModelError(f"{self._path} is no GGUF file but {kind}", advice, WHOLE)
        self._file.seek(4)
        self._at = 4
        version = self._number("<I")
        if version in VERSIONS:
            return
        if version & 0xFFFF == 0:
            found = f"{self._path} is GGUF of big endian, for another kind of machine"
        else:
            found = f"{self._path} is GGUF of version {version}"
        advice = "convert the model anew with llama.cpp's convert_hf_to_gguf.py, or fetch another"
        raise ModelError(found, advice, "GGUF of little endian, version 2 or 3")

    # -- pieces ------------------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        self._left(count)
        self._at += count
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        self._left(count)
        self._at += count
        self._file.seek(count, os.SEEK_CUR)

    def _left(self, count: int) -> None:
        if count > self._size - self._at:
            raise ModelError(
                f"{self._path} ends within its header: at byte {self._at:,} it goes on for "
                f"{count:,} bytes, and the file has {self._size:,}: it was cut short or is damaged",
                FETCH.format(path=self._path),
                WHOLE,
            )

    def _number(self, form: str) -> int:
        found: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return found

    def _name(self, of: str) -> str:
        length = self._number("<Q")
        self._left(length)
        self._bounded(length, LONGEST_NAME, f"characters in the name of {of}")
        return self._take(length).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Value:
        if kind == _LIST:
            return self._list(self._number("<I"), self._number("<Q"))
        if kind == _TEXT:
            return self._text()
        form = self._form(kind)
        found: Value = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return found

    def _form(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise self._damaged(f"a value of the unknown kind {kind}")
        return _NUMBERS[kind]

    def _text(self) -> str:
        length = self._number("<Q")
        if length > MOST_KEPT:
            self._skip(length)
            return ""
        return self._take(length).decode("utf-8", errors="replace")

    def _list(self, kind: int, count: int) -> list[int | float]:
        """Numbers, where there are no more than a figure for each layer; else nothing."""
        if kind == _TEXT:
            self._left(8 * count)
            self._bounded(count, MOST_TEXTS, "texts in a list")
            for _ in range(count):
                self._skip(self._number("<Q"))
            return []
        form = self._form(kind)
        size = struct.calcsize(form)
        if count > MOST_KEPT:
            self._skip(count * size)
            return []
        return [struct.unpack(form, self._take(size))[0] for _ in range(count)]

    def _bounded(self, count: int, most: int, what: str) -> None:
        if count > most:
            raise self._damaged(f"{count:,} {what}")

    def _damaged(self, found: str) -> ModelError:
        return ModelError(
            f"the header of {self._path} is damaged: it says {found} (up to byte {self._at:,})",
            FETCH.format(path=self._path),
            WHOLE,
        )

    # -- the tensor table --------------------------------------------------------------------------

    def _row(self) -> _Row:
        name = self._name("a tensor")
        dimensions = self._number("<I")
        self._bounded(dimensions, MOST_DIMENSIONS, f"dimensions of {name!a}")
        shape = [self._number("<Q") for _ in range(dimensions)]
        return _Row(name, shape, self._number("<I"), self._number("<Q"))

    def _sized(self, rows: list[_Row], alignment: int) -> tuple[tuple[GgufTensor, ...], int]:
        """The tensors, which lie one behind the other and end within the file; and where."""
        begin = _padded(self._at, alignment)
        tensors: list[GgufTensor] = []
        end = 0
        for place, row in enumerate(rows):
            if row.offset != _padded(end, alignment):
                raise self._damaged(
                    f"that {row.name!a} begins at byte {row.offset:,} of the weights, where the "
                    f"tensors before it end at {end:,}"
                )
            last = row is rows[-1]
            size = row.bytes(self._size - begin if last else rows[place + 1].offset)
            if size is None:
                raise self._damaged(f"{row.shape} weights of type {row.type} for {row.name!a}")
            end = row.offset + size
            tensors.append(GgufTensor(row.name, size, tuple(row.shape), row.type))
        if rows and begin + end > self._size:
            raise self._cut(begin + end)
        return tuple(tensors), _padded(begin + end, alignment) if rows else 0

    def _cut(self, wanted: int) -> ModelError:
        return ModelError(
            f"{self._path} is cut short: it has {self._size:,} bytes, and by its header "
            f"{wanted:,}: {wanted - self._size:,} are missing",
            to_join(self._path) or FETCH.format(path=self._path),
            WHOLE,
        )


@dataclass(frozen=True)
class _Row:
    """One row of the tensor table, as it stands there."""

    name: str
    shape: list[int]
    type: int
    offset: int

    def bytes(self, after: int) -> int | None:
        """Its size. `after`: where the next begins, which tells that of a type that is newer than
        this table. None: no size at all."""
        weights = 1
        for count in self.shape:
            weights *= count
        known = SIZES.get(self.type)
        if known is None:
            return max(after - self.offset, 0)
        block, size = known
        row = self.shape[0] if self.shape else 1
        return None if row % block or weights > MOST_WEIGHTS else weights // block * size


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
