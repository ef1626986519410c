"""The oldest and the newest release that may be built: their archives configured by real CMake."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from llamafleet.onhost.buildlog import BuildLog, undeclared_options
from llamafleet.plans.build import CPU_OPTIONS, MAY_LACK
from llamafleet.protocol.options import OWN
from llamafleet.tables.releases import Release, releases
from llamafleet.upstream import archive, cmake
from llamafleet.wheelhouse.collect import PROJECT, sdist_name, sdist_names, slim_sdist
from llamafleet.wheelhouse.index import fetch_archive, sources
from llamafleet.wheelhouse.manifest import sha256_of
from tests.e2e.booted import CACHE
from tests.onhost.llama import PYTHON, needs_llama

pytestmark = [pytest.mark.e2e, needs_llama]

OURS = CPU_OPTIONS | dict.fromkeys(MAY_LACK, "OFF")
"""The CPU's, and those of a CUDA build that every machine can configure."""
FOUND_ALONG = re.compile(r"GGML_S?CCACHE_FOUND")
"""A program that CMake looks for; its name is llama.cpp's, and no option."""


def fetched(release: Release) -> Path:
    """Its archive from the index; once per machine."""
    file = CACHE / "sdists" / sdist_name(release.version)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file() or sha256_of(file) != release.sha256:
        names = sdist_names(release.version)
        fetch_archive(sources(), PROJECT, names, release.sha256, file)
    return file


def configured(file: Path, folder: Path, options: dict[str, str]) -> tuple[str, str]:
    """(what CMake says, CMakeCache.txt)."""
    slim_sdist(file, folder / file.name)
    with tarfile.open(folder / file.name) as opened:
        opened.extractall(folder, filter="data")
    (tree,) = (path.parent for path in folder.glob("*/pyproject.toml"))
    tools = Path(PYTHON).parent
    argv = [tools / "cmake", "-G", "Ninja", "-S", tree, "-B", folder / "made"]
    argv += [f"-D{name}={value}" for name, value in options.items()]
    argv += [f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
    done = subprocess.run(
        # What scikit-build-core sets besides; the tree reads it.
        [*argv, "-DSKBUILD=2", f"-DSKBUILD_PLATLIB_DIR={folder}", "-DCMAKE_BUILD_TYPE=Release"],
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr, (folder / "made/CMakeCache.txt").read_text()


def unused(said: str) -> list[str]:
    log = BuildLog()
    for line in said.splitlines():
        log.feed(line)
    return [name for name in log.unused if not name.startswith("SKBUILD")]


@pytest.mark.parametrize("release", [releases()[0], releases()[-1]], ids=lambda one: one.version)
def test_it_is_configured_with_our_options(release: Release, tmp_path: Path) -> None:
    """CMake uses each of them, and declares no option that the table does not have."""
    said, cache = configured(fetched(release), tmp_path, OURS)
    assert (unused(said), undeclared_options(cache)) == ([], [])
    typed = re.findall(rf"^({OWN.pattern}):(?!INTERNAL|STATIC)\w+=", cache, re.MULTILINE)
    strange = {one for one in typed if not FOUND_ALONG.fullmatch(one)} - release.options
    assert len(typed) > 100 and not strange


@pytest.mark.long
@pytest.mark.parametrize("release", releases(), ids=lambda one: one.version)
def test_its_row_is_as_its_archive_says(release: Release, tmp_path: Path) -> None:
    file = fetched(release)
    files = archive.read(file)
    declared = cmake.declared({p: text for p, text in files.items() if archive.is_cmake(p)})
    assert set(declared) == release.options
    said, cache = configured(file, tmp_path, OURS | {"GGML_TYPING_ERROR": "ON"})
    assert undeclared_options(cache) == ["GGML_TYPING_ERROR"] and not unused(said)
