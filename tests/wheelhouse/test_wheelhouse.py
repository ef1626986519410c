"""The wheelhouse: its manifest, what a host gets of it, and the cut of the source archive."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamafleet.plans.requirements import (
    cache_requirements,
    host_requirements,
    llama_requirement,
    serve_requirements,
)
from llamafleet.protocol.pythons import PYTHONS
from llamafleet.settings import LLAMA_VERSION, Settings
from llamafleet.tables.pinned import HOST, pins
from llamafleet.wheelhouse import collect as house
from llamafleet.wheelhouse.collect import sdist_name, slim_sdist
from llamafleet.wheelhouse.manifest import (
    MANIFEST,
    Manifest,
    WheelhouseError,
    load,
    read,
    sha256_of,
    verify,
)
from tests.test_settings import make_wheelhouse

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


# The manifest


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def test_verify_finds_each_fault_of_a_file(tmp_path: Path) -> None:
    folder = make_wheelhouse(tmp_path / "w")
    assert verify(folder) == []
    (folder / "a.whl").write_text("A.whl")
    (folder / "b.whl").unlink()
    (folder / "c.whl").touch()
    edit(folder, lambda data: data["files"].update({"d": {"sha256": "0" * 64, "bytes": 0}}))
    (folder / "d").mkdir()
    first, second, third, altered = verify(folder)
    assert first == "b.whl is missing"
    assert second == "c.whl is not in manifest.json"
    assert re.fullmatch(r"a\.whl is altered: its sha256 is \w{64}, listed is \w{64}", third)
    assert altered == "d is no file"


def test_verify_of_a_folder_that_is_no_wheelhouse(tmp_path: Path) -> None:
    assert verify(tmp_path / "none") == [f"no folder {tmp_path / 'none'}"]
    path = tmp_path / MANIFEST
    assert verify(tmp_path) == [f"{path} can't be read (No such file or directory)"]
    path.write_text("{")
    assert verify(tmp_path)[0].startswith(f"{path} is not JSON (")
    path.write_text("[]")
    assert verify(tmp_path) == [f"{path} is not a manifest of version 1"]
    path.write_text('{"version": 2}')
    assert verify(tmp_path) == [f"{path} is not a manifest of version 1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("files"),
        lambda data: data.update(files=["a.whl"]),
        lambda data: data["files"].update({"a.whl": {"bytes": 1}}),
        lambda data: data.update(created="yesterday"),
        lambda data: data["llama"].pop("sha256"),
        lambda data: data.update(llama=None),
    ],
)
def test_a_damaged_manifest_is_named(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    folder = make_wheelhouse(tmp_path / "w")
    edit(folder, change)
    with pytest.raises(WheelhouseError, match=r"manifest\.json is damaged"):
        load(folder)
    assert "is damaged" in verify(folder)[0]


def test_the_manifest_s_hash_changes_with_any_file(tmp_path: Path) -> None:
    folder = make_wheelhouse(tmp_path / "w")
    before = read(folder)
    assert (before.folder, before.manifest) == (str(folder), load(folder))
    edit(folder, lambda data: data["files"]["a.whl"].update(sha256="0" * 64))
    assert read(folder).sha256 != before.sha256


# What a kind of host gets


def host_lines(python: str, cmake: bool = True) -> dict[str, str]:
    text = house._for_host(pins(HOST), python, "x86_64", cmake)
    pairs = (line.split(" ", 1)[0].split("==") for line in text.splitlines())
    return {name: version for name, version in pairs}


def test_markers_are_those_of_the_host_not_of_the_controller() -> None:
    by_python = {python: host_lines(python) for python in PYTHONS}
    assert len({lines["numpy"] for lines in by_python.values()}) > 1
    assert "tomli" in by_python["3.10"] and "tomli" not in by_python["3.13"]
    assert all("colorama" not in lines for lines in by_python.values())
    assert all("cmake" in lines for lines in by_python.values())


def test_without_cmake() -> None:
    lines = host_lines("3.12", cmake=False)
    assert "cmake" not in lines and "ninja" in lines


# A real one


@dataclass(frozen=True)
class Real:
    """A wheelhouse for this Python, from the configured index."""

    folder: Path
    manifest: Manifest
    published: Path
    """The source archive as it was downloaded for it: 77 MB, fetched once for all tests."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder = tmp_path_factory.mktemp("real") / "wheelhouse"
    published = tmp_path_factory.mktemp("published") / sdist_name(LLAMA_VERSION)

    def keep_and_cut(source: Path, target: Path) -> None:
        shutil.copy(source, published)
        slim_sdist(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house, "slim_sdist", keep_and_cut)
        manifest = house.build(
            folder,
            version=LLAMA_VERSION,
            sha256=Settings().llama_sha256,
            pythons=[PYTHON],
            arches=[os.uname().machine],
        )
    assert house.sha256_of(published) == Settings().llama_sha256
    return Real(folder, manifest, published)


def test_a_real_wheelhouse_is_small_and_as_its_manifest_says(real: Real) -> None:
    folder, manifest = real.folder, real.manifest
    assert verify(folder) == []
    assert load(folder) == manifest
    assert sum(file.bytes for file in manifest.files.values()) < 60e6
    archive = manifest.files[sdist_name(LLAMA_VERSION)]
    assert archive.bytes < 5e6
    assert archive.source_sha256 == manifest.llama.source_sha256 == Settings().llama_sha256
    assert archive.sha256 == manifest.llama.sha256 != Settings().llama_sha256
    assert folder.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in folder.parent.iterdir()] == ["wheelhouse"]


def pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def offline(folder: Path, lines: str, target: Path, *options: object) -> Any:
    """pip, with the wheelhouse alone and hashes required."""
    target.mkdir()
    wanted = target.with_suffix(".txt")
    wanted.write_text(lines)
    return pip(
        *("download", "--no-index", "--find-links", folder, "--require-hashes"),
        *("-r", wanted, "-d", target, *options),
    )


def test_pip_takes_everything_from_it_alone(real: Real, tmp_path: Path) -> None:
    folder, manifest = real.folder, real.manifest
    lines = host_requirements(manifest) + cache_requirements(manifest)
    # Each of its own: the server's packages do not go into a build's environment.
    for name, wanted in (("host", lines), ("serve", serve_requirements(manifest))):
        done = offline(folder, wanted, tmp_path / name)
        assert done.returncode == 0, done.stderr
    wheels = {name for name in manifest.files if name.endswith(".whl")}
    taken = [*(tmp_path / "host").iterdir(), *(tmp_path / "serve").iterdir()]
    assert {path.name for path in taken} == wheels


def test_pip_builds_the_metadata_of_the_cut_archive(real: Real, tmp_path: Path) -> None:
    wanted = llama_requirement(Settings(), real.manifest)
    done = offline(real.folder, wanted, tmp_path / "sdist", "--no-deps")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sdist" / sdist_name(LLAMA_VERSION)).is_file()


def test_pip_refuses_an_archive_altered_since(real: Real, tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(real.folder, altered)
    with (altered / sdist_name(LLAMA_VERSION)).open("ab") as file:
        file.write(b"\0")
    wanted = llama_requirement(Settings(), real.manifest)
    done = offline(altered, wanted, tmp_path / "sdist", "--no-deps")
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr


def test_a_wrong_hash_of_the_archive_leaves_the_old_wheelhouse(tmp_path: Path) -> None:
    folder = make_wheelhouse(tmp_path / "w")
    with pytest.raises(WheelhouseError) as refused:
        house.build(folder, version=LLAMA_VERSION, sha256="0" * 64, pythons=[], arches=[])
    assert f"found sha256 {Settings().llama_sha256}, expected {'0' * 64}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert verify(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


# The cut


Trees = tuple[Path, Path]


@pytest.fixture(scope="module")
def trees(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """The published archive and the cut one, unpacked."""
    folder = tmp_path_factory.mktemp("trees")
    cut = real.folder / sdist_name(LLAMA_VERSION)
    for name, packed in (("full", real.published), ("slim", cut)):
        with tarfile.open(packed) as tar:
            tar.extractall(folder / name, filter="data")
    top = f"llama_cpp_python-{LLAMA_VERSION}"
    return folder / "full" / top, folder / "slim" / top


@pytest.fixture(scope="module")
def tools(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the cmake and ninja of the wheelhouse, below bin/."""
    folder = tmp_path_factory.mktemp("tools")
    done = pip(
        *(
            "install",
            "--no-index",
            "--find-links",
            real.folder,
            "--target",
            folder,
            "cmake",
            "ninja",
        )
    )
    assert done.returncode == 0, done.stderr
    return folder


def contents(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): sha256_of(path) for path in tree.rglob("*") if path.is_file()
    }


def test_the_cut_is_the_same_every_time(real: Real, tmp_path: Path) -> None:
    slim_sdist(real.published, tmp_path / "again")
    first = real.folder / sdist_name(LLAMA_VERSION)
    assert (tmp_path / "again").read_bytes() == first.read_bytes()


def test_every_file_of_the_cut_is_the_published_one(trees: Trees) -> None:
    full, slim = map(contents, trees)
    assert slim.items() <= full.items()
    for folder in ("llama_cpp/", *(f"vendor/llama.cpp/{name}/" for name in (
        "common", "cmake", "include", "src", "ggml/include", "ggml/src/ggml-cpu",
        "ggml/src/ggml-cuda", "vendor",
    ))):  # fmt: skip
        assert {n for n in full if n.startswith(folder)} == {
            n for n in slim if n.startswith(folder)
        }
    licences = {n for n in full if "vendor/llama.cpp/licenses/" in n} | {"LICENSE.md"}
    assert licences <= slim.keys()


@dataclass(frozen=True)
class Configured:
    """What CMake made of a source tree, with the tree's and the build's path taken out."""

    units: list[tuple[str, str]]
    """(source, compile command) of every unit."""
    written: dict[str, str]
    """Sources that CMake wrote, among them the unity files that name the models' sources."""


def configure(tree: Path, build: Path, tools: Path, *options: str) -> Configured:
    """Generating may fail where the toolkit has no cuBLAS; the commands are written all the same.

    The commit is taken out of the written sources: the published archive has a repository.
    """
    shutil.rmtree(build, ignore_errors=True)
    command = [str(tools / "bin/cmake"), "-S", str(tree), "-B", str(build), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tools / 'bin/ninja'}", "-DCMAKE_BUILD_TYPE=Release"]
    command += ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DSKBUILD_PLATLIB_DIR=/nowhere", *options]
    environment = {**os.environ, "PYTHONPATH": str(tools)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    database = build / "compile_commands.json"
    assert database.is_file(), done.stderr

    def neutral(text: str) -> str:
        text = text.replace(str(build), "BUILD").replace(str(tree), "TREE")
        return re.sub(r'(COMMIT +(= )?"|BUILD_NUMBER = )\w+(-dirty)?', r"\1X", text)

    return Configured(
        units=sorted(
            (entry["file"], entry["command"]) for entry in json.loads(neutral(database.read_text()))
        ),
        written={
            str(path.relative_to(build)): neutral(path.read_text())
            for path in build.rglob("*")
            if path.suffix in (".h", ".cpp", ".cxx") and path.is_file()
            # nvcc's scratch of CMake's own probe, with random names in it.
            if "CompilerId" not in str(path)
        },
    )


def missing_includes(build: Path, below: str = "") -> list[str]:
    """Units whose includes can't all be found, by the compiler's own preprocessor."""
    failed = []
    for entry in json.loads((build / "compile_commands.json").read_text()):
        if below not in entry["file"]:
            continue
        words = shlex.split(entry["command"])
        at = words.index("-o")
        done = subprocess.run(
            [*words[:at], *words[at + 2 :], "-M"],
            cwd=entry["directory"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            failed.append(f"{entry['file']}: {done.stderr.splitlines()[0]}")
    return failed


CPU = ("-DGGML_CUDA=OFF", "-DLLAVA_BUILD=ON")


@pytest.fixture(scope="module")
def published_cpu(trees: Trees, tools: Path) -> Configured:
    """The CPU backend as the published archive is configured for it."""
    return configure(trees[0], trees[0].parent / "cpu", tools, *CPU)


def test_a_cpu_build_compiles_the_same(
    trees: Trees, tools: Path, published_cpu: Configured
) -> None:
    _, slim = trees
    of_slim = configure(slim, slim.parent / "cpu", tools, *CPU)
    assert of_slim == published_cpu
    assert len(of_slim.units) > 100
    assert any("unity" in name for name in of_slim.written)
    assert missing_includes(slim.parent / "cpu") == []


@pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc on this machine")
def test_a_cuda_build_compiles_the_same(trees: Trees, tools: Path) -> None:
    full, slim = trees
    root = Path(NVCC).parent.parent
    options = ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=89", f"-DCUDAToolkit_ROOT={root}"]
    options += [f"-DCMAKE_CUDA_COMPILER={NVCC}"]
    of_slim = configure(slim, slim.parent / "cuda", tools, *options)
    assert of_slim == configure(full, full.parent / "cuda", tools, *options)
    assert sum(source.endswith(".cu") for source, _ in of_slim.units) > 100


def without(trees: Trees, tmp_path: Path, missing: str) -> Path:
    """The cut tree with one file less."""
    tree = tmp_path / "tree"
    shutil.copytree(trees[1], tree)
    (tree / missing).unlink()
    return tree


def test_a_source_too_few_is_seen(
    trees: Trees, tools: Path, published_cpu: Configured, tmp_path: Path
) -> None:
    tree = without(trees, tmp_path, "vendor/llama.cpp/src/models/llama.cpp")
    assert configure(tree, tmp_path / "build", tools, *CPU) != published_cpu


def test_a_header_too_few_is_seen(trees: Trees, tools: Path, tmp_path: Path) -> None:
    tree = without(trees, tmp_path, "vendor/llama.cpp/vendor/stb/stb_image.h")
    configure(tree, tmp_path / "build", tools, "-DGGML_CUDA=OFF")
    failed = missing_includes(tmp_path / "build", below="/mtmd/")
    assert failed and all("stb_image.h" in line for line in failed)
