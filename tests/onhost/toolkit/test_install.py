"""The toolkit job: its parts on small folders; and, marked e2e, the real thing.

The e2e tests download half a GB for each toolkit: the newest and the oldest, or all where
LLAMAFLEET_TEST_TOOLKITS is set. LLAMAFLEET_TEST_CACHE names a folder that keeps what is unpacked
(0.9 GB each) between runs.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from llamafleet import settings, tables, zipapps
from llamafleet.onhost import job
from llamafleet.onhost.toolkit import wheels as toolkit_wheels
from llamafleet.onhost.verify import fatbin
from llamafleet.tables.toolkits import wheel_toolkits
from tests.onhost.runner import PYTHON, Runner
from tests.onhost.test_build import requirements
from tests.onhost.wheels import hash_option, write_wheel

CXX = shutil.which("g++") or "g++"
MACHINE = platform.machine()
VERSIONS = [w.cuda for w in wheel_toolkits() if w.machine == MACHINE]
ENDS = [*VERSIONS[:1], *VERSIONS[-1:]]
HEADER = """
#define cuMemAlloc                          cuMemAlloc_v2
#define CUDA_VERSION 13000
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *dptr, size_t bytesize);
typedef void (CUDA_CB *CUhostFn)(void *userData);
"""


def small_wheel(folder: Path, nvcc: str | None) -> Path:
    """A wheel laid out as NVIDIA's are, with a shell script for nvcc."""
    files = {"nvidia/cu13/include/cuda.h": HEADER, "nvidia/cu13/lib/libcudart.so.13": ""}
    if nvcc is not None:
        files["nvidia/cu13/bin/nvcc"] = nvcc
    return write_wheel(folder, "nvidia-cuda-nvcc", "13.0.88", files)


ANSWERS = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.{build}" ;;
  *) echo "{text}"; exit {status} ;;
esac
"""


class Install:
    """A toolkit job over the small wheel."""

    def __init__(
        self, tmp_path: Path, nvcc: str | None, cxx: str = CXX, cuda: str = "13.0", **more: Any
    ) -> None:
        self.runner = Runner(tmp_path)
        self.root = tmp_path / "toolkits" / "cuda-13.0"
        self.root.parent.mkdir()
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        wheel = small_wheel(wheels, nvcc)
        config = {
            "inputs": {"method": "wheels"},
            "method": "wheels",
            "cuda": cuda,
            "root": str(self.root),
            "requirements": f"nvidia-cuda-nvcc==13.0.88 {hash_option(wheel)}\n",
            "cxx": cxx,
            "index_url": None,
            "find_links": str(wheels),
            **more,
        }
        self.folder = self.runner.job("toolkit", "13.0", config)

    def run(self) -> subprocess.CompletedProcess[str]:
        return self.runner.run(*self.runner.command(self.folder))

    @property
    def stamp(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / "stamp.json").read_text())
        return data

    def nothing_is_left(self) -> bool:
        return not list(self.root.parent.iterdir()) and not (self.folder / "tmp").exists()


def test_small_toolkit_is_laid_out(tmp_path: Path) -> None:
    small = Install(tmp_path, ANSWERS.format(release="13.0", build=88, text="compiled", status=0))
    small.root.mkdir()
    (small.root / "leftover").write_text("of an unfinished run")
    answer = small.run()
    assert answer.returncode == 0, answer.stderr
    assert {p.name for p in small.root.iterdir()} == {"bin", "include", "lib", "lib64", "wheels"}
    assert (small.root / "lib64").readlink() == Path("lib")
    assert (small.root / "lib64" / "libcudart.so").readlink() == Path("libcudart.so.13")
    assert [p.name for p in (small.root / "lib" / "stubs").iterdir()] == ["libcuda.so"]
    assert [p.name for p in (small.root / "wheels").iterdir()] == [
        "nvidia_cuda_nvcc-13.0.88.dist-info"
    ]
    assert (small.stamp["nvcc"], small.stamp["download_bytes"]) == ("13.0.88", 0)
    assert list(small.stamp["phases"]) == ["start", "download", "layout", "check", "activate"]
    assert not small.root.with_name("cuda-13.0.partial").exists()
    assert "done already" in small.run().stdout


def test_pip_may_be_replaced_while_it_runs(tmp_path: Path) -> None:
    """As a deploy by another version does."""
    small = Install(tmp_path, ANSWERS.format(release="13.0", build=88, text="", status=0))
    assert small.run().returncode == 0
    log = (small.folder / "toolkit.log").read_text()
    assert f" {small.folder}/tmp/pip " in log and f" {small.runner.pip} " not in log


def test_an_index_that_refuses_is_in_the_log_with_its_status(tmp_path: Path) -> None:
    small = Install(tmp_path, None)
    # It knows no POST, GET or HEAD: 501.
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/simple"
        file = small.runner.config(small.folder)
        told = json.loads(file.read_text()) | {"index_url": url, "find_links": None}
        file.write_text(json.dumps(told))
        try:
            assert small.run().returncode == job.EXIT_FAILED
        finally:
            server.shutdown()
    assert "501 Server Error" in (small.folder / "toolkit.log").read_text()


def test_stub_has_the_drivers_names_and_asks_for_the_real_one(tmp_path: Path) -> None:
    small = Install(tmp_path, ANSWERS.format(release="13.0", build=88, text="", status=0))
    assert small.run().returncode == 0
    stub = small.root / "lib" / "stubs" / "libcuda.so"
    source = tmp_path / "main.c"
    source.write_text("int cuMemAlloc_v2(void); int main(void) { return cuMemAlloc_v2(); }\n")
    link = [CXX, "-x", "c", str(source), "-o", str(tmp_path / "main"), f"-L{stub.parent}", "-lcuda"]
    subprocess.run(link, check=True)
    dynamic = subprocess.run(
        ["readelf", "-d", str(tmp_path / "main")], check=True, capture_output=True, text=True
    ).stdout
    assert "[libcuda.so.1]" in dynamic
    # The sad side: a name that the header lacks does not link.
    source.write_text("int cuNoSuch(void); int main(void) { return cuNoSuch(); }\n")
    assert subprocess.run(link, check=False, capture_output=True).returncode != 0


def test_another_release_is_refused(tmp_path: Path) -> None:
    small = Install(tmp_path, ANSWERS.format(release="12.9", build=88, text="", status=0))
    assert small.run().returncode == job.EXIT_FAILED
    assert small.stamp["error"]["phase"] == "check"
    line = small.stamp["error"]["lines"][0]
    assert line == "nvcc --version: found '12.9'; expected 13.0"
    assert small.nothing_is_left()


@pytest.mark.parametrize(
    ("build", "capabilities", "ok"),
    [
        ("78", ["8.9", "12.0"], False),
        ("51", ["10.0"], False),
        ("86", ["8.9", "12.0"], True),
        ("78", ["8.9"], True),
    ],
)
def test_a_compiler_of_wrong_code_is_refused(
    tmp_path: Path, build: str, capabilities: list[str], ok: bool
) -> None:
    script = ANSWERS.format(release="13.2", build=build, text="compiled", status=0)
    small = Install(tmp_path, script, cuda="13.2", compute_capabilities=capabilities)
    assert (small.run().returncode == 0) is ok
    if ok:
        assert small.stamp["nvcc"] == f"13.2.{build}"
        return
    assert small.stamp["error"]["phase"] == "check"
    line = small.stamp["error"]["lines"][0]
    assert f"nvcc 13.2.{build} computes iq1_s, iq2_s, iq3_s wrongly" in line
    assert small.nothing_is_left()


def test_nvcc_that_does_not_run_is_refused(tmp_path: Path) -> None:
    small = Install(tmp_path, "not a program")
    assert small.run().returncode == job.EXIT_FAILED
    assert small.stamp["error"]["lines"][0] == "nvcc --version: found ''; expected 13.0"
    assert small.nothing_is_left()


def test_host_compiler_too_new_is_diagnosed(tmp_path: Path) -> None:
    text = "error: #error -- unsupported GNU version! gcc versions later than 15 are not supported!"
    small = Install(tmp_path, ANSWERS.format(release="13.0", build=88, text=text, status=1))
    assert small.run().returncode == job.EXIT_FAILED
    error = small.stamp["error"]
    assert (error["phase"], error["signature"]) == ("check", "unsupported-gnu-version")
    assert small.nothing_is_left()


def test_wheels_without_nvcc_are_refused(tmp_path: Path) -> None:
    small = Install(tmp_path, None)
    assert small.run().returncode == job.EXIT_FAILED
    assert "found no bin/nvcc" in small.stamp["error"]["lines"][0]
    assert small.nothing_is_left()


def test_missing_host_compiler_is_named(tmp_path: Path) -> None:
    small = Install(
        tmp_path, ANSWERS.format(release="13.0", build=88, text="", status=0), "/no/such/g++"
    )
    assert small.run().returncode == job.EXIT_FAILED
    assert "can't run /no/such/g++" in small.stamp["error"]["lines"][0]


def test_altered_wheel_is_refused(tmp_path: Path) -> None:
    small = Install(tmp_path, ANSWERS.format(release="13.0", build=88, text="", status=0))
    small_wheel(tmp_path / "wheels", "something else")
    assert small.run().returncode == job.EXIT_FAILED
    assert small.stamp["error"]["signature"] == "pip-hash-mismatch"
    assert small.nothing_is_left()


def test_names_of_the_driver() -> None:
    assert toolkit_wheels.driver_names(HEADER) == ["cuInit", "cuMemAlloc", "cuMemAlloc_v2"]


def test_downloads_are_added_up() -> None:
    downloads = toolkit_wheels.Downloads()
    assert downloads.feed("Collecting x") is None
    for line in ("Progress 0 of 5000000", "Progress 2000000 of 5000000"):
        seen = downloads.feed(line)
    assert (seen, downloads.bytes) == ((2, 5), 0)
    downloads.feed("Progress 5000000 of 5000000")
    assert downloads.feed("Progress 1000000 of 3000000") == (6, 8)
    downloads.feed("Progress 3000000 of 3000000")
    assert downloads.bytes == 8_000_000


# ---- the real wheels


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(os.environ.get("LLAMAFLEET_TEST_CACHE") or tmp_path_factory.mktemp("cache"))
    root.mkdir(parents=True, exist_ok=True)
    return root


@pytest.fixture(
    scope="module", params=VERSIONS if "LLAMAFLEET_TEST_TOOLKITS" in os.environ else ENDS
)
def cuda(cache: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Root of a CUDA Toolkit that the job installed."""
    version: str = request.param
    runner, root = Runner(cache), cache / "toolkits" / f"cuda-{version}"
    root.parent.mkdir(exist_ok=True)
    folder = runner.job(
        "toolkit",
        version,
        {
            "inputs": {"method": "wheels"},
            "method": "wheels",
            "cuda": version,
            "root": str(root),
            "requirements": tables.text(f"toolkit-wheels-{version}.txt"),
            "cxx": CXX,
            "index_url": None,
            "find_links": None,
        },
    )
    answer = runner.run(*runner.command(folder))
    assert answer.returncode == 0, answer.stderr
    yield root
    if not os.environ.get("LLAMAFLEET_TEST_CACHE"):
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def tools(cache: Path) -> Path:
    """bin folder of a venv with the build backend, CMake, ninja and cuobjdump."""
    venv, pip = cache / "tools", cache / "pip.pyz"
    pip.write_bytes(zipapps.pip_zipapp())
    if not (venv / "done").exists():
        subprocess.run([PYTHON, "-m", "venv", "--clear", "--without-pip", str(venv)], check=True)
        listed = cache / "requirements.txt"
        listed.write_text(requirements())
        install = [str(venv / "bin" / "python"), str(pip), "-q", "install"]
        subprocess.run([*install, "--require-hashes", "-r", str(listed)], check=True)
        subprocess.run([*install, "--no-deps", "nvidia-cuda-cuobjdump==13.2.86"], check=True)
        (venv / "done").touch()
    return venv / "bin"


@pytest.fixture(scope="module")
def tree(cache: Path, tools: Path) -> Path:
    """The source archive of llama-cpp-python, unpacked."""
    name = f"llama_cpp_python-{settings.LLAMA_VERSION}"
    if not (cache / name / "CMakeLists.txt").exists():
        listed = cache / "llama.txt"
        pinned = f"llama-cpp-python=={settings.LLAMA_VERSION}"
        listed.write_text(f"{pinned} --hash=sha256:{settings.Settings().llama_sha256}\n")
        pip = [str(tools / "python"), str(cache / "pip.pyz"), "-q", "download", "--no-deps"]
        pip += ["--no-binary", ":all:", "--no-build-isolation", "-d", str(cache)]
        env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
        subprocess.run([*pip, "-r", str(listed)], check=True, env=env)
        with tarfile.open(cache / f"{name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return cache / name


UNITS = ("scale", "clamp", "pad")


@pytest.fixture(scope="module")
def objects(cuda: Path, tools: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the object files of UNITS, compiled for an RTX 4090 from the configured tree."""
    build = tmp_path_factory.mktemp("cmake")
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(build)}
    options = {
        "GGML_CUDA": "ON",
        "CMAKE_CUDA_ARCHITECTURES": "89",
        "CMAKE_CUDA_COMPILER": f"{cuda}/bin/nvcc",
        "CMAKE_CUDA_HOST_COMPILER": CXX,
        "CUDAToolkit_ROOT": str(cuda),
        "LLAVA_BUILD": "OFF",
    }
    define = [f"-D{key}={value}" for key, value in options.items()]
    cmake = [str(tools / "cmake"), "-S", str(tree), "-B", str(build), "-G", "Ninja", *define]
    configured = subprocess.run(cmake, env=env, check=True, capture_output=True, text=True)
    assert f"Found CUDAToolkit: {cuda}" in configured.stdout
    folder = "vendor/llama.cpp/ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir"
    targets = [f"{folder}/{unit}.cu.o" for unit in UNITS]
    subprocess.run([str(tools / "ninja"), "-C", str(build), *targets], env=env, check=True)
    return build / folder


@pytest.mark.e2e
def test_real_toolkit_compiles_llama_cpp_for_sm_89(objects: Path, tools: Path) -> None:
    cuobjdump = next(tools.parent.glob("lib/python*/site-packages/nvidia/cu13/bin/cuobjdump"))
    for unit in UNITS:
        path = objects / f"{unit}.cu.o"
        assert {str(code) for code in fatbin.read(path).codes} == {"sm_89", "compute_89"}
        dump = [str(cuobjdump), "--list-elf", "--list-ptx", str(path)]
        listed = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
        assert "sm_89.cubin" in listed
        assert "sm_89.ptx" in listed


@pytest.mark.e2e
def test_real_toolkit_for_another_gpu_does_not_look_like_sm_89(cuda: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "x.cu", tmp_path / "x.o"
    source.write_text("__global__ void f(int *p) { *p = 1; }\n")
    nvcc = [str(cuda / "bin" / "nvcc"), "-ccbin", CXX, "-arch=sm_80", "-c", str(source)]
    subprocess.run([*nvcc, "-o", str(output)], check=True)
    assert "sm_89" not in {str(code) for code in fatbin.read(output).codes}


@pytest.mark.e2e
def test_real_toolkit_is_complete_and_not_installed_twice(cache: Path, cuda: Path) -> None:
    for part in ("nvvm/bin/cicc", "include/cublas_v2.h", "lib64/libcublas.so", "bin/ptxas"):
        assert (cuda / part).exists(), part
    assert not list((cuda / "lib" / "stubs").glob("libcuda.so.*"))
    runner, version = Runner(cache), cuda.name.removeprefix("cuda-")
    stamp = json.loads((cache / "toolkit" / version / "stamp.json").read_text())
    assert stamp["nvcc"].startswith(f"{version}.")
    again = runner.run(*runner.command(cache / "toolkit" / version))
    assert "done already" in again.stdout
