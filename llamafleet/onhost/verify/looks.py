"""What a file is that is no GGUF file, by its first bytes: what people fetch in a model's place."""

from __future__ import annotations

import re
from pathlib import Path

CONVERT = "fetch the model as GGUF, or convert it with llama.cpp's convert_hf_to_gguf.py"
UNPACK = "unpack it, and set model to the .gguf file in it"
ANEW = "fetch it again: `head -c 200 {path}` shows what came instead"
JOIN = "join its pieces in their order, `cat {stem}?* > {stem}`, and set model to {stem}"

# The first that fits. Magic numbers: file(1)'s database, llama.cpp's old convert.py (ggml, ggmf,
# ggjt, ggla), git-lfs' docs/spec.md, safetensors' README, pickle's PROTO opcode.
KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), kind, advice)
    for pattern, kind, advice in (
        (
            rb"version https://git-lfs",
            "a Git LFS pointer: the file that it stands for was never fetched",
            "`git lfs pull` in its folder, or fetch the file itself",
        ),
        (rb"\s*(<!doctype|<html|<head|<\?xml|<!--)", "a web page", ANEW),
        (rb"\s*[{\[]\s*[\"\]}{]", "JSON, as a server's answer or a model's index", ANEW),
        (rb".{5}\0{3}\s*\{\s*\"", "a safetensors file", CONVERT),
        (rb"PK\x03\x04", "a zip archive, as PyTorch writes its models", CONVERT),
        (rb"\x80[\x02-\x05]", "a pickle, as PyTorch wrote its models", CONVERT),
        (rb"\x89HDF", "an HDF5 file, as Keras writes its models", CONVERT),
        (rb"(lmgg|fmgg|tjgg|algg)", "a GGML file of before GGUF (2023)", CONVERT),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a packed archive", UNPACK),
        (rb".{257}ustar", "a tar archive", UNPACK),
        (rb"\0+\Z", "zero bytes alone at its start: a download that never came", ANEW),
    )
)
_PIECE = re.compile(r"[.-](part|split)[-_.]?\w+$")
"""The end of the name of a piece that was cut off by bytes: a.gguf.part2of3, a.gguf-split-b."""

SHOWN = 60
"""Characters of a text that are shown."""


def looks_like(head: bytes, path: Path) -> tuple[str, str]:
    """What it is, and what to type; `head`: its first bytes, up to 512."""
    if pieces := to_join(path):
        return "a later piece of a file that was cut by bytes", pieces
    for pattern, kind, advice in KINDS:
        if pattern.match(head):
            return kind, advice.format(path=path)
    text = head[:SHOWN].decode("utf-8", errors="replace")
    if text.strip() and all(c.isprintable() or c.isspace() for c in text):
        return f"a text that begins {' '.join(text.split())!r}", ANEW.format(path=path)
    return f"something else (it begins {head[:8].hex(' ')})", ANEW.format(path=path)


def to_join(path: Path) -> str:
    """What to type for a piece of a file; "": its name says of none."""
    stem = _PIECE.sub("", path.name)
    return JOIN.format(stem=path.with_name(stem)) if stem != path.name else ""
