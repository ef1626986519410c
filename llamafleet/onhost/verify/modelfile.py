"""The files of a language model: all parts of one that is split, and nothing that is no model."""

from __future__ import annotations

import os
from pathlib import Path

from llamafleet.onhost.verify import gguffile
from llamafleet.onhost.verify.gguffile import GgufFile
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol.place import PART_OF

COUNT, NUMBER, TENSORS = "split.count", "split.no", "split.tensors.count"
LAYERS = ".block_count"
MODEL = "a GGUF file of a language model"
PARTS = "all parts of one model, side by side"
SHOWN = 20
"""Names of missing parts that are listed."""

OTHERS = {
    "mmproj": "a projector of a vision model",
    "clip": "a projector of a vision model",
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
    "controlvector": "a control vector",
}
"""What is no language model, by general.type or general.architecture (gguf's constants)."""


def read(path: Path) -> tuple[GgufFile, ...]:
    """Every file of a model, each whole. Raises ModelError and OSError."""
    _first_of(path)
    first = gguffile.read(path)
    count = first.number(COUNT)
    if number := first.number(NUMBER):
        raise _later(path, f"{path} is part {number + 1} of {count}, by its header")
    _is_model(first)
    if count <= 1:
        files: tuple[GgufFile, ...] = (first,)
    else:
        files = (first, *_others(path, count))
        _of_one_model(files)
    if not any(file.tensors for file in files):
        raise ModelError(f"{path} is a vocabulary: it holds no weights", _another(path), MODEL)
    return files


def _first_of(path: Path) -> None:
    """Raises ModelError where the name says that the file is a later part."""
    match = PART_OF.search(path.name)
    if match and int(match[1]) > 1:
        raise _later(path, f"{path} is part {int(match[1])} of {int(match[2])}, by its name")


def _later(path: Path, found: str) -> ModelError:
    match = PART_OF.search(path.name)
    first = _name(path, 1, int(match[2])) if match else "its first part"
    return ModelError(found, f"set model to {first}", "the first part, which leads to all others")


def _name(path: Path, number: int, count: int) -> Path:
    stem = PART_OF.sub("", path.name).removesuffix(".gguf")
    return path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf")


def _others(path: Path, count: int) -> list[GgufFile]:
    """The parts behind the first one."""
    match = PART_OF.search(path.name)
    if match is None or int(match[2]) != count:
        found = f"{path} is part 1 of {count} by its header, and its name does not say so"
        advice = f"give the parts their names again, as {_name(path, 1, count).name}"
        raise ModelError(found, advice, PARTS)
    names = [_name(path, number, count) for number in range(2, count + 1)]
    missing = [name.name for name in names if not os.path.lexists(name)]
    if missing:
        listed = f"{', '.join(missing[:SHOWN])}{' and more' if len(missing) > SHOWN else ''}"
        found = f"{len(missing)} of {count} parts are not in {path.parent}: {listed}"
        raise ModelError(found, f"fetch them into {path.parent}", PARTS)
    return [gguffile.read(name) for name in names]


def _of_one_model(files: tuple[GgufFile, ...]) -> None:
    """Raises ModelError for parts that do not belong together."""
    for place, file in enumerate(files):
        if file.number(NUMBER) != place or file.number(COUNT) != len(files):
            found = (
                f"{file.path} is part {file.number(NUMBER) + 1} of {file.number(COUNT)} by its "
                f"header, in the place of part {place + 1} of {len(files)}"
            )
            raise ModelError(found, f"fetch {file.path.name} again", PARTS)
    wanted, there = files[0].number(TENSORS), sum(len(file.tensors) for file in files)
    if wanted and wanted != there:
        found = f"the parts of {files[0].path} hold {there} tensors, and by its header {wanted}"
        raise ModelError(found, "fetch all parts again, from one place", PARTS)


def _is_model(file: GgufFile) -> None:
    """Raises ModelError for a GGUF file of another kind."""
    architecture = file.text("general.architecture")
    other = OTHERS.get(file.text("general.type")) or OTHERS.get(architecture)
    if other:
        raise ModelError(f"{file.path} is {other}, no language model", _another(file.path), MODEL)
    if not any(key.endswith(LAYERS) and file.number(key) > 0 for key in file.fields):
        found = (
            f"{file.path} states no number of layers (its architecture: "
            f"{architecture[:40]!r}): it is no language model"
        )
        raise ModelError(found, _another(file.path), MODEL)


def _another(path: Path) -> str:
    return f"set model to the file of the language model itself: `ls -lS {path.parent}`"
