"""`python -m tests.upstream.extract ARCHIVE...`: extracts of source archives, for the tests beside.

Whole files where they are read whole; of sources the lines alone that hold words which are looked
for in logs.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

from llamafleet.upstream import archive, c
from llamafleet.upstream.archive import LLAMA_CPP
from llamafleet.upstream.source import _HEADERS, _MAIN, BINDINGS
from llamafleet.upstream.used import patterns

FOLDER = Path(__file__).parent / "releases"
WHOLE = {"pyproject.toml", "llama_cpp/__init__.py", BINDINGS, *_HEADERS, *_MAIN}
LONG = f"{LLAMA_CPP}ggml/src/ggml.c"


def main(names: list[str]) -> None:
    for name in map(Path, names):
        files = archive.read(name)
        kept = {path: text for path, text in files.items() if path in WHOLE}
        # Of it one structure is read.
        head = files[LONG].index("struct ggml_object {")
        kept[LONG] = files[LONG][head : files[LONG].index("};", head) + 3]
        for path in files.keys() - WHOLE:
            if words := _words(files[path]):
                kept[path] = words
        with tarfile.open(FOLDER / f"{name.name.removesuffix('.gz')}.xz", "w:xz") as made:
            for path, text in sorted(kept.items()):
                entry = tarfile.TarInfo(f"{name.name.removesuffix('.tar.gz')}/{path}")
                entry.size = len(text.encode())
                made.addfile(entry, io.BytesIO(text.encode()))


def _words(text: str) -> str:
    wanted = [
        value
        for name, value in patterns().items()
        if name not in ("llama_log.trouble", "llama_log.cuda")
    ]
    macros = {"GGML_CUDA_NAME": "CUDA"}
    return "".join(
        f"{line}\n"
        for line in text.splitlines()
        if "#define GGML_CUDA_NAME" in line
        or any(one.search(said) for said in c.said(line, macros) for one in wanted)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
