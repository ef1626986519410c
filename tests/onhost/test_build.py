"""The build job: what it reads from pip's log, and whole builds of a small source archive.

The archive is called llama-cpp-python and uses the same build backend; it holds two C files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest

from llamafleet import zipapps
from llamafleet.onhost import build, buildlog, job
from llamafleet.onhost import environment as of_jobs
from llamafleet.onhost import wheel as shared_wheel
from llamafleet.onhost.ninja import SORTED, Costs, steps, wrap
from llamafleet.onhost.pip import pip_install
from llamafleet.plans.share import wheel_of
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import (
    BUILD,
    WHEELS,
    BuildConfig,
    BuildInputs,
    BuildProduct,
    SharedWheel,
    machine_id,
)
from tests.onhost.runner import PYTHON, Runner, processes_below, wait_for
from tests.onhost.wheels import hash_option, write_wheel

DATA = Path(__file__).parent / "data"
NEEDED = (
    "scikit-build-core", "cmake", "ninja", "packaging", "pathspec",
    "exceptiongroup", "tomli", "typing-extensions",
)  # fmt: skip

SDIST = {
    "pyproject.toml": """
[build-system]
requires = ["scikit-build-core"]
build-backend = "scikit_build_core.build"
[project]
name = "llama-cpp-python"
version = "0.3.36"
[tool.scikit-build]
wheel.packages = ["llama_cpp"]
wheel.py-api = "py3"
build.verbose = true
""",
    "CMakeLists.txt": """
cmake_minimum_required(VERSION 3.21)
project(toy C)
option(BROKEN "one file does not compile" OFF)
option(SLOW "one step takes a minute" OFF)
option(GGML_CUDA "one more library" OFF)
add_library(llama SHARED one.c two.c)
if(BROKEN)
  target_compile_definitions(llama PRIVATE BROKEN)
endif()
if(SLOW)
  add_custom_command(OUTPUT slow.c COMMAND sleep 61 COMMAND touch slow.c)
  target_sources(llama PRIVATE slow.c)
endif()
install(TARGETS llama LIBRARY DESTINATION llama_cpp/lib)
if(GGML_CUDA)
  add_library(ggml-cuda SHARED two.c)
  install(TARGETS ggml-cuda LIBRARY DESTINATION llama_cpp/lib)
endif()
""",
    "one.c": 'const char *info(void) { return "CPU : NEON = 1 | "; }\n',
    "two.c": "#ifdef BROKEN\nint two(void) { return no_such_name; }\n#endif\n",
    "llama_cpp/__init__.py": """
import ctypes
from pathlib import Path
_lib = ctypes.CDLL(str(Path(__file__).parent / "lib" / "libllama.so"))
_lib.info.restype = ctypes.c_char_p
__version__ = "0.3.36"
def llama_print_system_info():
    return _lib.info()
""",
    "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
}


def requirements() -> str:
    """The blocks of the project's own pinned requirements that the backend needs."""
    text = (zipapps.PACKAGE / "tables" / "host-requirements.txt").read_text()
    blocks = re.findall(r"^\S.*(?:\n    .*)*", text, re.MULTILINE)
    return "\n".join(b for b in blocks if re.match(rf"(?:{'|'.join(NEEDED)})\b(?!-)", b)) + "\n"


def download(root: Path) -> Path:
    """A folder with the backend's wheels."""
    folder, listed, pip = root / "wheels", root / "pinned.txt", root / "pip.pyz"
    listed.write_text(requirements())
    pip.write_bytes(zipapps.pip_zipapp())
    options = ["-q", "download", "--require-hashes", "--only-binary", ":all:", "--no-deps"]
    subprocess.run([PYTHON, str(pip), *options, "-d", str(folder), "-r", str(listed)], check=True)
    return folder


def unpack_cmake(folder: Path, root: Path) -> str:
    """Put a wheel that calls CMake in its place; the requirement of it.

    The 4,000 files of CMake's own are unpacked once: each build would take seconds for them.
    """
    real = next(folder.glob("cmake-*.whl"))
    with zipfile.ZipFile(real) as wheel:
        wheel.extractall(root)
    program = root / "cmake/data/bin/cmake"
    program.chmod(0o755)
    version = real.name.split("-")[1]
    real.unlink()
    script = {f"cmake-{version}.data/scripts/cmake": f'#!/bin/sh\nexec {program} "$@"\n'}
    return f"cmake=={version} {hash_option(write_wheel(folder, 'cmake', version, script))}\n"


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the backend's wheels, their requirements and the small source archive."""
    root = tmp_path_factory.mktemp("cache")
    folder = download(root)
    others = re.sub(r"^cmake==.*(?:\n    .*)*\n", "", requirements(), flags=re.MULTILINE)
    (folder / "requirements.txt").write_text(others + unpack_cmake(folder, root))
    with tarfile.open(folder / "llama_cpp_python-0.3.36.tar.gz", "w:gz") as archive:
        for name, text in SDIST.items():
            entry = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return folder


INPUTS = BuildInputs(
    llama_version="0.3.36",
    llama_sha256="0" * 64,
    cmake_options=(),
    toolkit=None,
    compute_capabilities=(),
    compiler="gcc 12",
    arch="x86_64",
    cpu_flags=None,
    glibc="2.36",
    backend="cpu",
    nvcc_append_flags=None,
)
CUDA_INPUTS = asdict(replace(INPUTS, backend="cuda"))


class Build:
    """A build job over the small archive, with one thing or another changed."""

    def __init__(
        self,
        runner: Runner,
        wheelhouse: Path,
        name: str = "f00d",
        key: str = "f00d",
        **changes: Any,
    ) -> None:
        sdist = wheelhouse / "llama_cpp_python-0.3.36.tar.gz"
        sha256 = hashlib.sha256(sdist.read_bytes()).hexdigest()
        self.runner = runner
        self.prefix = runner.root / "versions" / name
        self.folder = runner.job(
            "build",
            key,
            {
                "inputs": asdict(INPUTS),
                "prefix": str(self.prefix),
                "requirements": (wheelhouse / "requirements.txt").read_text(),
                "llama_requirement": f"llama-cpp-python==0.3.36 --hash=sha256:{sha256}",
                "cmake_args": [],
                "allowed_unused": [],
                "environment": {},
                "jobs": 2,
                "index_url": None,
                "find_links": str(wheelhouse),
                **changes,
            },
        )

    def run(self, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.runner.run(*self.runner.command(self.folder), **options)

    @property
    def proof(self) -> Path:
        return self.prefix / BUILD

    @property
    def stamp(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / "stamp.json").read_text())
        return data


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def hostile(folder: Path) -> dict[str, str]:
    """What a login, /etc/environment or a shell's profile may hold: each of it ends or changes a
    build that reads it."""
    home, planted = folder / "home", folder / "planted"
    for text in ("[global]\nuser = true\nconstraint = /none\nindex-url = http://127.0.0.1:9/",):
        for name in (".pip/pip.conf", ".config/pip/pip.conf"):
            (home / name).parent.mkdir(parents=True)
            (home / name).write_text(text)
    planted.mkdir()
    (planted / "sitecustomize.py").write_text("raise SystemExit('planted')\n")
    (planted / "llama_cpp.py").write_text("raise SystemExit('planted')\n")
    return {
        "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "PYTHONPATH": str(planted),
        "PYTHONHOME": str(planted), "PIP_USER": "1", "PIP_CONSTRAINT": "/none",
        "PIP_NO_BINARY": ":all:", "PIP_TARGET": str(planted), "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_CONFIG_FILE": str(home / ".pip/pip.conf"), "CMAKE_ARGS": "-DBROKEN=on",
        "SKBUILD_CMAKE_ARGS": "-DBROKEN=on", "CMAKE_GENERATOR": "none", "CC": "false",
        "CXX": "false", "CFLAGS": "-DBROKEN", "CPPFLAGS": "-DBROKEN", "LDFLAGS": "-lnone",
        "CMAKE_TOOLCHAIN_FILE": "/none", "NINJAFLAGS": "-n", "CPATH": str(planted),
        "GCC_EXEC_PREFIX": "/none/", "COMPILER_PATH": "/none", "DEPENDENCIES_OUTPUT": "/none/x",
        "TMPDIR": "/none", "LD_LIBRARY_PATH": str(planted), "LC_ALL": "tr_TR.UTF-8",
        "VIRTUAL_ENV": "/none", "NVCC_PREPEND_FLAGS": "-DBROKEN", "MAKEFLAGS": "-n",
    }  # fmt: skip


def test_a_build_is_made_checked_and_not_made_twice(
    runner: Runner, wheelhouse: Path, tmp_path: Path
) -> None:
    toy = Build(
        runner,
        wheelhouse,
        cmake_args=["-DGGML_CUDA=on", "-DNOT_KNOWN=1", "-DCMAKE_C_FLAGS=-O1 -g"],
        allowed_unused=["NOT_KNOWN"],
        inputs=CUDA_INPUTS,
        jobs=1,
    )
    # What the build before took: two.c the longest, of the library that is linked last.
    before = toy.folder.parent / "beef" / "cmake" / ".ninja_log"
    before.parent.mkdir(parents=True)
    before.write_text("0\t9000\t1\tCMakeFiles/ggml-cuda.dir/two.c.o\tff\n")
    answer = toy.run(env=os.environ | hostile(tmp_path))
    assert answer.returncode == 0, (toy.folder / "build.log").read_text()[-3000:]

    stamp = toy.stamp
    assert stamp["ok"] is True
    assert stamp["units"] == 5
    assert stamp["order"] == "longest first, 3 units, 1 of them by name"
    assert 0 < stamp["packing"] <= 1
    made = steps((toy.folder / "cmake" / ".ninja_log").read_text(), 1)
    assert [one.output.rpartition("/")[2] for one in made] == [
        "two.c.o", "one.c.o", "two.c.o", "libllama.so", "libggml-cuda.so",
    ]  # fmt: skip
    assert (stamp["llama_cpp_python"], stamp["system_info"]) == ("0.3.36", "CPU : NEON = 1 | ")
    assert stamp["wheel_bytes"] > 1000
    assert re.fullmatch("[0-9a-f]{64}", stamp["wheel_sha256"])
    assert list(stamp["phases"]) == [
        "start", "resolve", "configure", "compile", "link", "install", "check",
    ]  # fmt: skip
    assert stamp["phases"]["link"] > 0
    assert abs(sum(stamp["phases"].values()) - stamp["wall_s"]) < 0.5 + 0.1 * stamp["wall_s"]
    assert {Path(path).name for path in stamp["libraries"]} == {"libllama.so", "libggml-cuda.so"}
    for path, sha256 in stamp["libraries"].items():
        assert hashlib.sha256((toy.prefix / path).read_bytes()).hexdigest() == sha256
    assert not (toy.prefix / build.INCOMPLETE).exists()
    proof = json.loads(toy.proof.read_text())
    assert proof["machine_id"] == machine_id()
    told = ("kind", "key", "ok", "libraries", "inputs", "machine_id", "units")
    assert {name: proof[name] for name in told} == {name: stamp[name] for name in told}
    # It is for everybody; what was said while it was made is not.
    assert toy.prefix.stat().st_mode & 0o777 == 0o755
    assert (toy.folder / "build.log").stat().st_mode & 0o777 == 0o640

    cache = (toy.folder / "cmake" / "CMakeCache.txt").read_text()
    assert "CMAKE_C_FLAGS:STRING=-O1 -g" in cache
    left = {path.name for path in (toy.folder / "cmake").rglob("*") if path.is_file()}
    assert left == {Path(name).name for name in build.KEEP}
    assert not (toy.folder / "tmp").exists()
    # pip was told to make none: it is made while the source is configured.
    packages = next(toy.prefix.glob("lib/python*/site-packages"))
    assert "--no-compile" in (toy.folder / "build.log").read_text()
    for name in ("pathspec/backend.py", "llama_cpp/__init__.py"):
        source = packages / name
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")), name

    again = toy.run()
    assert again.returncode == 0
    assert "done already" in again.stdout
    assert toy.stamp == stamp


def tool(wheelhouse: Path, name: str, folder: Path) -> Path:
    """CMake or ninja, out of its wheel."""
    with zipfile.ZipFile(next(wheelhouse.glob(f"{name}-*.whl"))) as wheel:
        inside = next(one for one in wheel.namelist() if one.endswith(f"/scripts/{name}"))
        path = Path(wheel.extract(inside, folder))
    path.chmod(0o755)
    return path


def test_what_is_linked_is_the_same_in_either_order(wheelhouse: Path, tmp_path: Path) -> None:
    """Also after CMake has written build.ninja anew."""
    source, tree = tmp_path / "source", tmp_path / "tree"
    for name, text in SDIST.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    cmake, own = (tool(wheelhouse, name, tmp_path) for name in ("cmake", "ninja"))
    costs = Costs({"ggml-cuda.dir/two.c": 9.0, "llama.dir/two.c": 5.0}, [])

    def made(program: Path) -> dict[str, str]:
        options = ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={program}", "-DGGML_CUDA=on"]
        for told in (["-S", str(source), "-B", str(tree), *options], ["--build", str(tree)]):
            subprocess.run([str(cmake), *told], check=True, capture_output=True)
        return {one.name: sha256_of(one) for one in tree.glob("*.so")}

    plain = made(own)
    shutil.rmtree(tree)
    tree.mkdir()
    wrapper = wrap(tmp_path / "order", own, tree, costs)
    assert made(wrapper) == plain and len(plain) == 2
    assert (tree / SORTED).read_text() != (tree / "build.ninja").read_text()
    (source / "CMakeLists.txt").touch()
    assert made(wrapper) == plain


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "no {prefix}/bin/ninja"),
        (("-DCMAKE_GENERATOR=Ninja",), "cmake_options names the build program"),
        (("-DCMAKE_MAKE_PROGRAM:FILEPATH=/n",), "cmake_options names the build program"),
    ],
)
def test_why_the_order_is_cmake_s_is_told(
    tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    if options:
        (prefix / "bin/ninja").touch()
    told = job.Job("build", tmp_path, "f00d")
    told.begin_log()
    config, env = replace(CONFIG, prefix=str(prefix), cmake_args=options), {"CMAKE_ARGS": ""}
    reason = f"as CMake wrote it: {why.format(prefix=prefix)}"
    found = build._longest_first(told, config, env, tmp_path / "cmake", tmp_path, last="")
    assert found == (env, reason)
    assert f"build order: {reason}\n" in told.log_path.read_text()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wrong_hash_is_refused(runner: Runner, wheelhouse: Path) -> None:
    wrong = f"llama-cpp-python==0.3.36 --hash=sha256:{'0' * 64}"
    toy = Build(runner, wheelhouse, llama_requirement=wrong)
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert (error["phase"], error["signature"]) == ("resolve", "pip-hash-mismatch")
    assert error["cause"]
    assert error["fix"]
    assert "0" * 64 in "\n".join(error["lines"])
    assert not toy.prefix.exists()


def test_a_pip_that_is_none_is_named(runner: Runner, wheelhouse: Path) -> None:
    toy = Build(runner, wheelhouse)
    runner.pip.write_bytes(b"cut off")
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert error["phase"] == "resolve"
    assert error["lines"][0] == (
        f"{runner.pip}: found no archive that can be unpacked (File is not a zip file); expected "
        "pip's; next: run the same command again"
    )


def test_missing_wheel_is_named(runner: Runner, wheelhouse: Path, tmp_path: Path) -> None:
    poor = tmp_path / "poor"
    shutil.copytree(wheelhouse, poor)
    for wheel in poor.glob("ninja-*"):
        wheel.unlink()
    toy = Build(runner, poor)
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert (error["phase"], error["signature"]) == ("resolve", "skbuild-not-found")
    assert "ninja" in "\n".join(error["lines"])


def test_compile_error_in_the_middle(runner: Runner, wheelhouse: Path) -> None:
    toy = Build(runner, wheelhouse, cmake_args=["-DBROKEN=on"])
    answer = toy.run()
    assert answer.returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert (error["phase"], error["signature"]) == ("compile", "source-error")
    assert "no_such_name" in "\n".join(error["lines"])
    assert "no_such_name" in answer.stderr
    assert (toy.folder / "build.log").read_text().count("FAILED: ") == 1
    assert len(error["lines"]) <= 21
    assert not toy.prefix.exists()
    assert "no_such_name" in (toy.folder / "build.log").read_text()


KILLED = "cc: fatal error: Killed signal terminated program cc1"
FULL = "cc: fatal error: one.o: No space left on device"


def small_memory(folder: Path, second: str = "") -> dict[str, str]:
    """A C compiler that is ended as the kernel does it, if another compiles at the same time.

    `second`: what it says in place of compiling, once that has happened.
    """
    folder.mkdir()
    compiler = folder / "cc"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *one.c*|*two.c*) ;; *) exec cc "$@";; esac\n'
        f"if [ -e {folder}/killed ] && [ -n '{second}' ]; then echo '{second}' >&2; exit 1; fi\n"
        f"if ! mkdir {folder}/busy; then touch {folder}/killed; echo '{KILLED}' >&2; exit 1; fi\n"
        'sleep 1; cc "$@"; status=$?\n'
        f"rmdir {folder}/busy; exit $status\n"
    )
    compiler.chmod(0o755)
    return {"CC": str(compiler)}


def test_a_build_that_is_out_of_memory_is_made_once_more_with_fewer_jobs(
    runner: Runner, wheelhouse: Path, tmp_path: Path
) -> None:
    told = ["nvcc refused another one"]
    toy = Build(runner, wheelhouse, environment=small_memory(tmp_path / "small"), notes=told)
    assert toy.run().returncode == 0, toy.stamp
    assert toy.stamp["notes"] == told
    retry = toy.stamp["retry"]
    assert (retry["signature"], retry["before"], retry["jobs"]) == ("compile-killed", 2, 1)
    assert retry["line"] == KILLED
    assert json.loads(toy.proof.read_text())["retry"] == retry
    assert json.loads((toy.folder / "progress.json").read_text())["retry"] == retry
    log = (toy.folder / "build.log").read_text()
    assert log.count("*** Building project with") == 2
    assert "compile-killed with jobs = 2; once more with jobs = 1\n" in log


def test_a_second_failure_is_told_with_both_causes_and_is_the_last(
    runner: Runner, wheelhouse: Path, tmp_path: Path
) -> None:
    toy = Build(runner, wheelhouse, environment=small_memory(tmp_path / "small", FULL))
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert (error["phase"], error["signature"]) == ("compile", "enospc")
    assert error["lines"][1].startswith(f"the first attempt: {KILLED} (compile-killed with ")
    assert any(FULL in line for line in error["lines"][2:])
    assert toy.stamp["retry"]["jobs"] == 1
    log = (toy.folder / "build.log").read_text()
    assert log.count("*** Building project with") == 2
    assert not toy.prefix.exists()


def test_mistyped_option_stops_the_build(runner: Runner, wheelhouse: Path) -> None:
    toy = Build(
        runner,
        wheelhouse,
        cmake_args=["-DGGML_CUBLAS=on", "-DALLOWED=1"],
        allowed_unused=["ALLOWED"],
    )
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert error["signature"] == "unused-cmake-variable"
    assert "found GGML_CUBLAS;" in error["lines"][0]
    assert "*** Installing" not in (toy.folder / "build.log").read_text()


def test_cuda_build_without_its_library_fails(runner: Runner, wheelhouse: Path) -> None:
    toy = Build(runner, wheelhouse, inputs=CUDA_INPUTS)
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert error["lines"][0].startswith("built without CUDA: found no libggml-cuda.so")
    assert (error["phase"], error["signature"]) == ("check", "library-without-cuda")


def nvcc(folder: Path, build: str) -> dict[str, str]:
    """The environment of a build whose nvcc tells that."""
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release 13.2, V{build}'\n")
    path.chmod(0o755)
    return {"CUDACXX": str(path)}


def test_a_compiler_of_wrong_code_builds_nothing(
    runner: Runner, wheelhouse: Path, tmp_path: Path
) -> None:
    inputs = CUDA_INPUTS | {"toolkit": "13.2", "compute_capabilities": ["12.0"]}
    toy = Build(runner, wheelhouse, inputs=inputs, environment=nvcc(tmp_path, "13.2.78"))
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert "nvcc 13.2.78 computes iq1_s, iq2_s, iq3_s wrongly" in error["lines"][0]
    assert (error["phase"], toy.prefix.exists()) == ("resolve", False)


def test_a_build_tells_its_compiler(runner: Runner, wheelhouse: Path, tmp_path: Path) -> None:
    inputs = CUDA_INPUTS | {"toolkit": "13.2", "compute_capabilities": ["12.0"]}
    toy = Build(
        runner,
        wheelhouse,
        inputs=inputs,
        environment=nvcc(tmp_path, "13.2.86"),
        cmake_args=["-DGGML_CUDA=on"],
    )
    assert toy.run().returncode == 0, toy.stamp
    assert toy.stamp["nvcc"] == "13.2.86"


def test_a_wheel_for_other_hosts_is_kept_and_one_of_them_installs_it(
    runner: Runner, wheelhouse: Path, tmp_path: Path
) -> None:
    inputs = asdict(replace(INPUTS, cpu_flags="0" * 16))
    searched = tmp_path / "searched"
    rpath = f"-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--disable-new-dtags,-rpath,{searched}"
    toy = Build(runner, wheelhouse, inputs=inputs, keep_wheel=True, cmake_args=[rpath])
    assert toy.run().returncode == 0, (toy.folder / "build.log").read_text()[-3000:]
    stamp = toy.stamp
    shared = wheel_of("gpu-a", decode(BuildProduct, stamp))
    assert isinstance(shared, SharedWheel), shared
    assert shared.name == "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    file = toy.prefix / WHEELS / shared.name
    assert shared_wheel.sha256_of(file) == stamp["wheel_sha256"] == shared.sha256
    assert file.stat().st_size == stamp["wheel_bytes"] == shared.size
    assert stamp["units"] == 3 and list(stamp["phases"])[-2:] == ["install", "check"]
    assert shared.needs == shared_wheel.native_sets("c++", {"PATH": os.environ["PATH"]}) != ()

    told = {"wheel": asdict(shared), "wheel_file": str(file), "inputs": inputs}
    # Without a build backend and without the source archive.
    (tmp_path / "other").mkdir()
    other = Runner(tmp_path / "other")
    taken = Build(other, wheelhouse, requirements="", **told)
    taken.run()
    got = taken.stamp
    assert got["ok"], (taken.folder / "build.log").read_text()[-3000:]
    assert (got["shared_from"], got["wheel_sha256"]) == ("gpu-a", shared.sha256)
    assert got["units"] == 0 and "compile" not in got["phases"]
    assert (got["libraries"], got["system_info"]) == (stamp["libraries"], stamp["system_info"])
    assert json.loads(taken.proof.read_text())["shared_from"] == "gpu-a"
    assert "done already" in taken.run().stdout

    # The same folder holds another toolkit's libraries on a third host.
    searched.mkdir()
    (searched / "libcudart.so.12").touch()
    (tmp_path / "third").mkdir()
    refused = Build(Runner(tmp_path / "third"), wheelhouse, requirements="", **told)
    assert refused.run().returncode == job.EXIT_FAILED and not refused.prefix.exists()
    assert f"with '{searched}'; expected DT_RPATH" in refused.stamp["error"]["lines"][0]


def test_broken_import_fails(runner: Runner, wheelhouse: Path) -> None:
    toy = Build(runner, wheelhouse, cmake_args=["-DCMAKE_C_FLAGS=-Dinfo=other"])
    assert toy.run().returncode == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert error["phase"] == "check"
    assert error["lines"][0].startswith("import llama_cpp ended with status 1: AttributeError")


def whole(versions: Path, name: str) -> Path:
    """A build that is there, not made by this test."""
    library = versions / name / "lib" / "libllama.so"
    library.parent.mkdir(parents=True)
    library.write_text("works")
    (versions / name / BUILD).write_text("{}")
    return library


def test_a_build_that_fails_takes_nothing_away(runner: Runner, wheelhouse: Path) -> None:
    """Before, the folder of that fingerprint was emptied first, and removed last."""
    works = whole(runner.root / "versions", "f00d")
    toy = Build(runner, wheelhouse, name="f00d-2", cmake_args=["-DBROKEN=on"])
    assert toy.run().returncode == job.EXIT_FAILED
    assert works.read_text() == "works" and not toy.prefix.exists()
    # Nor is one made over it, whoever asks for that.
    again = Build(runner, wheelhouse, name="f00d")
    assert again.run().returncode == job.EXIT_FAILED
    assert "expected none, as no build is made over another" in again.stamp["error"]["lines"][0]
    assert works.read_text() == "works"


def test_what_a_killed_build_left_is_removed_by_the_next(runner: Runner, wheelhouse: Path) -> None:
    works = whole(runner.root / "versions", "beef")
    toy = Build(runner, wheelhouse, cmake_args=["-DSLOW=on"])
    process = runner.start(toy.folder)
    wait_for(lambda: "compile" in json.dumps(runner.status(toy.folder)["progress"]))
    children = session_members_below(toy.folder)
    process.kill()
    process.wait()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    assert toy.prefix.is_dir() and not toy.proof.exists()
    second = Build(runner, wheelhouse, name="f00d-2")
    assert second.run().returncode == 0, second.stamp
    assert second.proof.exists() and not toy.prefix.exists() and works.read_text() == "works"


def session_members_below(folder: Path) -> list[int]:
    """Pids of the live processes with a path below `folder` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{folder}/".encode() in line:
                found.append(int(entry.name))
    return found


def test_its_code_and_pip_may_be_replaced_while_it_runs(runner: Runner, wheelhouse: Path) -> None:
    """As a deploy by another version does. The table of failures is read last of all."""
    toy = Build(runner, wheelhouse, cmake_args=["-DBROKEN=on"])
    process = runner.start(toy.folder)
    wait_for((toy.folder / "requirements.txt").exists)
    for path in (runner.zipapp, runner.pip):
        (path.with_name("new")).write_bytes(b"another version")
        path.with_name("new").replace(path)
    assert process.wait(60) == job.EXIT_FAILED
    error = toy.stamp["error"]
    assert (error["phase"], error["signature"]) == ("compile", "source-error")


def test_a_disk_that_is_full_at_the_very_end_leaves_no_build(
    runner: Runner, wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    toy = Build(runner, wheelhouse)
    monkeypatch.setattr(build, "write_json", full)
    monkeypatch.setattr(build, "_build", lambda *args: PRODUCT)
    config = decode(BuildConfig, json.loads(runner.config(toy.folder).read_text()))
    toy.folder.mkdir(parents=True)
    with pytest.raises(OSError, match="No space left"):
        build.work(job.Job("build", toy.folder, "f00d"), config)
    assert not toy.prefix.exists()


def test_stopped_in_the_middle(runner: Runner, wheelhouse: Path) -> None:
    toy = Build(runner, wheelhouse, cmake_args=["-DSLOW=on"])
    process = runner.start(toy.folder)
    log = toy.folder / "build.log"
    wait_for(lambda: log.exists() and "*** Building project" in log.read_text())
    wait_for(lambda: "compile" in json.dumps(runner.status(toy.folder)["progress"]))
    assert runner.status(toy.folder)["state"] == "running"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    status = runner.status(toy.folder)
    assert status["state"] == "failed"
    assert status["stamp"]["error"]["phase"] == "compile"
    assert status["stamp"]["error"]["lines"] == ["stopped by SIGTERM"]
    assert not toy.prefix.exists()
    wait_for(lambda: not processes_below(toy.folder), 5)


# ---- what is read from a log


def read(lines: list[str]) -> tuple[buildlog.BuildLog, list[str]]:
    log, phases = buildlog.BuildLog(), ["resolve"]
    for line in lines:
        log.feed(line)
        if log.phase != phases[-1]:
            phases.append(log.phase)
    return log, phases


def test_real_log() -> None:
    log, phases = read((DATA / "build-cpu.log").read_text(encoding="utf-8").splitlines())
    assert phases == ["resolve", "configure", "compile", "install"]
    assert (log.step, log.steps) == (135, 135)
    assert log.unused == []
    assert log.wheel_bytes == 4454822
    assert log.wheel_sha256 is not None
    assert log.wheel_sha256.startswith("cb7d1a01c8c5930e")


def test_a_step_shows_what_it_makes() -> None:
    log, _ = read(["  [11/135] : && /usr/bin/g++ -shared -o bin/libggml-base.so ggml.c.o -lm && :"])
    assert (log.step, log.steps, log.line) == (11, 135, "bin/libggml-base.so")


def test_the_steps_of_two_runs_of_ninja_count_together() -> None:
    log, _ = read(["  build order: longest first", "  [1/3] cc -o a.o", "  [3/3] cc -o c.o"])
    assert (log.step, log.steps, log.order) == (3, 3, "longest first")
    log.feed("  [1/2] cc -o liba.so")
    assert (log.step, log.steps) == (4, 5)


def test_a_line_that_only_looks_like_a_step_is_none() -> None:
    log, _ = read(["  x.c: note: array [3/4] is odd", "  see [1] and [2/3]"])
    assert (log.step, log.steps) == (0, 0)


UNUSED = """\
  -- Generating done (0.0s)
  CMake Warning:
    Manually-specified variables were not used by the project:

      GGML_CUBLAS
      LLAMA_OPTION-X


  -- Build files have been written to: /x
  word
"""


def test_unused_options_are_listed_and_nothing_after_them() -> None:
    log, _ = read(UNUSED.splitlines())
    assert log.unused == ["GGML_CUBLAS", "LLAMA_OPTION-X"]
    buildlog.refuse_unused(log.unused, ["GGML_CUBLAS", "LLAMA_OPTION-X"])
    with pytest.raises(job.JobFailed, match="found LLAMA_OPTION-X;"):
        buildlog.refuse_unused(log.unused, ["GGML_CUBLAS"])


def test_an_option_of_llama_cpp_that_nothing_declares_is_a_mistyped_one() -> None:
    """From a real CMakeCache.txt of 0.3.36 with two mistyped options."""
    cache = (
        "GGML_CUBLASS:UNINITIALIZED=on\n"
        "GGML_CUDA:BOOL=off\n"
        "//No help, variable specified on the command line.\n"
        "LLAMA_BUILD_COMMIT:UNINITIALIZED=0c1e570\n"
        "CMAKE_PLATFORM_NO_VERSIONED_SONAME:UNINITIALIZED=ON\n"
        "LLAVA_BULID:UNINITIALIZED=OFF\n"
    )
    assert buildlog.undeclared_options(cache) == ["GGML_CUBLASS", "LLAVA_BULID"]


PRODUCT = BuildProduct(
    wheel_bytes=1,
    wheel_sha256=None,
    libraries={},
    units=1,
    llama_cpp_python="0.3.36",
    system_info="",
    import_s=0.1,
)
CONFIG = BuildConfig(
    key="f00d",
    inputs=INPUTS,
    python="py",
    pip="pip.pyz",
    requirements="",
    index_url=None,
    find_links=None,
    prefix="/venv",
    llama_requirement="",
    cmake_args=(),
    allowed_unused=(),
    environment={},
    jobs=1,
)


def environment(tmp: Path, **changes: Any) -> dict[str, str]:
    config = replace(CONFIG, **changes)
    return of_jobs.environment(config, build.variables(config), Path("/venv"), tmp)


def test_environment_is_the_plans_and_not_the_callers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (*hostile(tmp_path), "HTTPS_PROXY", "NETRC", "SSL_CERT_FILE", "LD_PRELOAD"):
        monkeypatch.setenv(name, "foreign")
    own = {"CUDACXX": "/cuda/bin/nvcc", "PATH": "/cuda/bin:/bin"}
    env = environment(tmp_path, cmake_args=("-DA=1;2", "-DB=x y"), environment=own, jobs=3)
    assert env == {
        "CUDACXX": "/cuda/bin/nvcc",
        "CMAKE_ARGS": "'-DA=1;2' '-DB=x y'",
        "CMAKE_BUILD_PARALLEL_LEVEL": "3",
        "PATH": "/venv/bin:/cuda/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONNOUSERSITE": "1",
        "PIP_CONFIG_FILE": "/dev/null",
    }


def test_the_plan_s_network_reaches_every_program(tmp_path: Path) -> None:
    proxies = {"https_proxy": "http://p:1", "no_proxy": ".lab"}
    env = environment(tmp_path, proxies=proxies, ca_bundle="/ca.pem", netrc="/etc/l/netrc")
    for name in ("https_proxy", "HTTPS_PROXY"):
        assert env[name] == "http://p:1"
    assert env["no_proxy"] == env["NO_PROXY"] == ".lab"
    assert env["SSL_CERT_FILE"] == env["PIP_CERT"] == "/ca.pem" and env["NETRC"] == "/etc/l/netrc"


def test_one_folder_or_one_index_and_it_stands_on_no_command_line(tmp_path: Path) -> None:
    both = replace(CONFIG, find_links="/w", index_url="https://i")
    assert pip_install(both, "py")[-3:] == ["--no-index", "--find-links", "/w"]
    assert "PIP_INDEX_URL" not in environment(tmp_path, find_links="/w", index_url="https://i")
    argv = pip_install(replace(CONFIG, index_url="https://i"), "py")
    assert "https://i" not in argv and "--require-hashes" in argv
    env = environment(tmp_path, index_url="https://i")
    assert env["PIP_INDEX_URL"] == "https://i" and "PIP_TRUSTED_HOST" not in env
    assert environment(tmp_path, index_url="http://i:8/s")["PIP_TRUSTED_HOST"] == "i:8"


class Proxy(BaseHTTPRequestHandler):
    """A proxy behind which an index lies that nothing else can reach; it asks for a password."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.rstrip("/").rpartition("/")[2]
        if self.headers.get("Authorization") != f"Basic {b64encode(b'bob:hunter2').decode()}":
            self.send_error(401)
        elif self.path == "http://index.test/simple/toy/":
            self._send(f'<a href="http://index.test/{next(self.folder.glob("*.whl")).name}">x</a>')
        elif (self.folder / name).is_file():
            self._send((self.folder / name).read_bytes())
        else:
            self.send_error(404)

    def _send(self, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if data[:1] == b"<" else "application/zip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def proxy(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it is asked for."""
    handler = type("Handler", (Proxy,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pip(tmp_path: Path, wheel: Path, **network: Any) -> subprocess.CompletedProcess[str]:
    """What a job's pip says when it installs `wheel` over that network."""
    archive, listed = tmp_path / "pip.pyz", tmp_path / "listed.txt"
    archive.write_bytes(zipapps.pip_zipapp())
    listed.write_text(f"toy==1.0 {hash_option(wheel)}\n")
    config = replace(CONFIG, pip=str(archive), index_url="http://index.test/simple", **network)
    env = of_jobs.environment(config, {}, Path("/usr"), tmp_path / "tmp")
    argv = pip_install(config, PYTHON)
    return subprocess.run(
        [*argv, "--retries", "1", "--target", str(tmp_path / "made"), "-r", str(listed)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_proxy_and_credentials_reach_pip(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine index.test login bob password hunter2\n")
    wheel = write_wheel(tmp_path, "toy", "1.0", {"toy.py": "made = True\n"})
    with proxy(tmp_path) as (address, asked):
        done = pip(tmp_path, wheel, proxies={"http_proxy": address}, netrc=str(netrc))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "made" / "toy.py").exists()
    assert "http://index.test/simple/toy/" in asked
    assert "hunter2" not in done.stdout + done.stderr


def test_why_an_index_gives_nothing_is_told_by_pip_s_own_words(
    tmp_path: Path, runner: Runner
) -> None:
    """All of it ends in pip's "no matching distribution"; the Python version is the least of it."""
    wheel = write_wheel(tmp_path, "toy", "1.0", {"toy.py": "made = True\n"})
    listed = f"toy==1.0 {hash_option(wheel)}\n"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine index.test login bob password hunter2\n")

    def known(**network: Any) -> str | None:
        changes = {"requirements": listed, "index_url": "http://index.test/simple", **network}
        toy = Build(runner, tmp_path, find_links=None, **changes)
        assert toy.run().returncode == job.EXIT_FAILED
        error = toy.stamp["error"]
        assert "hunter2" not in json.dumps(error)
        return cast("str | None", error["signature"])

    for name in ("llama_cpp_python-0.3.36.tar.gz", "requirements.txt"):
        (tmp_path / name).write_bytes(b"")
    assert known() == "pip-network"
    assert known(proxies={"http_proxy": "http://127.0.0.1:9"}) == "pip-proxy"
    with proxy(tmp_path) as (address, _):
        through: dict[str, Any] = {"proxies": {"http_proxy": address}}
        assert known(**through) == "pip-credentials"
        through["netrc"] = str(netrc)
        assert known(index_url="http://index.test/simpel", **through) == "pip-index"
        wheel.rename(tmp_path / "toy-1.0-cp27-none-any.whl")
        assert known(**through) == "pip-no-distribution"
