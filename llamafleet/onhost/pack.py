"""The wheel of a build, packed of what it installed, so that the files that were proven are those
that are installed elsewhere. Run by the account that builds."""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from llamafleet.onhost.job import EXIT_FAILED, JobFailed

INFO = "llama_cpp_python-*.dist-info"
OF_INSTALLER = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
"""What an installer writes beside a wheel's own files: the recording specification of packages."""
EPOCH = (1980, 1, 1, 0, 0, 0)


def main(argv: Sequence[str]) -> int:
    """`pack --prefix DIR --to DIR`: writes the wheel and prints its path."""
    parser = argparse.ArgumentParser(prog="pack", description=__doc__)
    parser.add_argument("--prefix", type=Path, required=True, help="the build's environment")
    parser.add_argument("--to", type=Path, required=True, help="folder of the wheel")
    options = parser.parse_args(argv)
    try:
        print(pack(options.prefix, options.to))
    except (JobFailed, OSError) as error:
        print(f"pack: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def pack(prefix: Path, folder: Path) -> Path:
    """Raises JobFailed where the build is not as its RECORD says, OSError."""
    found = sorted(prefix.glob(f"lib*/python*/site-packages/{INFO}"))
    places = {info.resolve(): info for info in found}
    if len(places) != 1:
        raise JobFailed(
            f"{prefix}: found {len(places)} of {INFO}; expected one; next: run the same again"
        )
    info = next(iter(places.values()))
    site = info.parent
    files = {name: _read(site, name, sha256) for name, sha256 in _recorded(info)}
    name = f"{info.name.removesuffix('.dist-info')}-{_tag(files[f'{info.name}/WHEEL'])}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        for path, data in [*files.items(), (f"{info.name}/RECORD", _record(files, info.name))]:
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100000 | (site / path).stat().st_mode & 0o777) << 16
            wheel.writestr(entry, data)
    return folder / name


def _recorded(info: Path) -> list[tuple[str, str]]:
    """(path, hash as RECORD has it) of each file of the wheel."""
    text = (info / "RECORD").read_text(encoding="utf-8")
    rows = [row for row in csv.reader(text.splitlines()) if row]
    names = {f"{info.name}/{name}" for name in OF_INSTALLER}
    kept = [row for row in rows if row[0] not in names and not row[0].endswith(".pyc")]
    for row in kept:
        path = PurePosixPath(row[0])
        if path.is_absolute() or ".." in path.parts:
            raise JobFailed(f"{info}: found {path} in RECORD; expected files of its folder alone")
    return [(row[0], row[1]) for row in kept]


def _read(site: Path, name: str, recorded: str) -> bytes:
    data = (site / name).read_bytes()
    if recorded != f"sha256={_digest(data)}":
        raise JobFailed(
            f"{site / name}: found content that RECORD does not tell; expected {recorded}; "
            "next: run the same command again"
        )
    return data


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _tag(wheel: bytes) -> str:
    lines = wheel.decode("utf-8").splitlines()
    tags = [line.removeprefix("Tag: ").strip() for line in lines if line.startswith("Tag: ")]
    if len(tags) != 1:
        raise JobFailed(f"WHEEL: found the tags {tags}; expected one")
    return tags[0]


def _record(files: dict[str, bytes], info: str) -> bytes:
    told = io.StringIO()
    writer = csv.writer(told, lineterminator="\n")
    for name, data in files.items():
        writer.writerow((name, f"sha256={_digest(data)}", len(data)))
    writer.writerow((f"{info}/RECORD", "", ""))
    return told.getvalue().encode()
