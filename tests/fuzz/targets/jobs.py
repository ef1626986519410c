"""What a job reads on a host: its settings, its folder, and what other programs print."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from llamafleet.onhost import driver
from llamafleet.onhost.buildlog import BuildLog, target, undeclared_options
from llamafleet.onhost.compilercache import counted
from llamafleet.onhost.job import JobFailed
from llamafleet.onhost.ninja import Unordered, link_seconds, ordered, packing
from llamafleet.onhost.toolkit.changes import (
    apk_changes,
    apt_changes,
    dnf_changes,
    zypper_changes,
)
from llamafleet.onhost.toolkit.managers import locked_by
from llamafleet.onhost.toolkit.packages import refuse_unpinned
from llamafleet.onhost.toolkit.wheels import Downloads, driver_names
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.diagnose import causes, error_lines, fails, signatures_from
from llamafleet.protocol.fingerprint import explain_difference, fingerprint
from llamafleet.protocol.job import (
    LIMIT,
    PROGRESS,
    STAMP,
    BuildConfig,
    BuildProduct,
    ModelConfig,
    Stamp,
    read_json,
    read_progress,
    status,
    toolkit_config,
)
from llamafleet.protocol.models import estimate_mib, parse
from llamafleet.protocol.place import ModelProduct
from llamafleet.protocol.redact import redacted
from llamafleet.protocol.verify import ConfigError, load
from llamafleet.tables.failures import rows
from tests.fuzz import Target
from tests.fuzz.material import DEEP, documents, dumped, encoded, objects, texts, values, words
from tests.fuzz.targets.controller import ESCAPE, recorded

DATA = Path(__file__).parents[2] / "onhost" / "data"


def lines_of(*names: str) -> list[str]:
    return [(DATA / name).read_text("utf-8", errors="replace") for name in names]


# -- what the controller wrote ---------------------------------------------------------------------

BUILDS, TOOLKITS = recorded("build-config.json"), recorded("[adrw]*-config.json")
VERIFY = {
    "version": 1,
    "host": "gpu-a",
    "inputs": {
        "fingerprint": "f00",
        "driver": "580.95.05",
        "gpus": ["NVIDIA GeForce RTX 4090 GPU-0"],
        "model": "synthetic:tiny-q4_0",
        "bench": {"prompt": 32, "gen": 4, "repetitions": 2},
        "context": 512,
    },
    "backend": "cuda",
    "toolkit": "13.0",
    "prefix": "/opt/llamafleet/versions/f00",
    "stamp": "/opt/llamafleet/versions/f00/build.json",
    "job": "/var/lib/llamafleet/verify",
    "results": "/var/lib/llamafleet/results",
    "models": "/var/lib/llamafleet/models",
    "compute_capabilities": ["8.9"],
    "allow_cpu_only": False,
}
MODEL = {
    "version": 1,
    "kind": "model",
    "key": "0" * 16,
    "inputs": {"parts": ["0" * 64]},
    "folder": "/var/lib/llamafleet/gguf/0000000000000000",
    "parts": [{"url": "https://example.org/m.gguf", "sha256": "0" * 64, "size": 5}],
    "reserve_mib": 1024,
}
PLACED = {
    "files": [{"name": "model.gguf", "sha256": "0" * 64, "size": 5, "changed_ns": 9}],
    "fetched_bytes": 5,
    "shape": None,
}


def _config(data: Any, _: Path) -> object:
    return decode(BuildConfig, data)


def _toolkit(data: Any, _: Path) -> object:
    return toolkit_config(data)


def _product(data: Any, _: Path) -> object:
    return [decode(kind, data) for kind in (Stamp, BuildProduct)]


def _verify(text: str, folder: Path) -> object:
    path = folder / "verify.json"
    path.write_bytes(encoded(text))
    return load(path)


def _inputs(pair: tuple[Any, Any], _: Path) -> object:
    old, new = pair
    return [fingerprint(old), explain_difference(old, new)]


_inputs_of = st.dictionaries(words, values, max_size=3)

CONFIGURATIONS = (
    Target(
        "a build's settings",
        ("protocol.decode:decode",),
        objects(BUILDS),
        _config,
        (DecodeError,),
        known=({**BUILDS[0], "jobs": 10**400}, {**BUILDS[0], "jobs": float("nan")}),
        printable=False,
    ),
    Target(
        "a toolkit's settings",
        ("protocol.job:toolkit_config",),
        objects(TOOLKITS),
        _toolkit,
        (DecodeError,),
        known=({**TOOLKITS[0], "method": []}, {**TOOLKITS[0], "method": ESCAPE}),
        printable=False,
    ),
    Target(
        "a build's proof",
        ("protocol.decode:decode",),
        objects(recorded("build-stamp.json")),
        _product,
        (DecodeError,),
        printable=False,
    ),
    Target(
        "a model's settings and its proof",
        ("protocol.decode:decode",),
        objects([MODEL, PLACED]),
        lambda data, _: [decode(kind, data) for kind in (ModelConfig, ModelProduct)],
        (DecodeError,),
        known=({**MODEL, "parts": [{"sha256": ESCAPE}]}, {**PLACED, "files": [5]}),
        printable=False,
    ),
    Target(
        "a verification's settings",
        ("protocol.verify:load",),
        documents([VERIFY]),
        _verify,
        (ConfigError,),
        known=(*DEEP, "\ud800", '{"version": ' + "9" * 50_000 + "}"),
        printable=False,
    ),
    Target(
        "inputs of a fingerprint",
        ("protocol.fingerprint:fingerprint", "protocol.fingerprint:explain_difference"),
        st.tuples(_inputs_of, _inputs_of),
        _inputs,
        known=(({"a": [{}]}, {"a": ({},)}),),
        printable=False,
        share=0.5,
    ),
    Target(
        "a model's name",
        ("protocol.models:parse",),
        texts(["synthetic:7b-q4_0", "/m.gguf"]),
        lambda text, _: [parse(text), estimate_mib(text)],
        share=0.5,
        printable=False,
    ),
)

# -- a job's folder --------------------------------------------------------------------------------


def _folder(pair: tuple[str, str], folder: Path) -> object:
    for name, text in zip((PROGRESS, STAMP), pair, strict=True):
        (folder / name).write_bytes(encoded(text))
    found = status(folder)
    json.dumps(asdict(found))  # as the command `status` prints it
    return [read_progress(folder), found, bool(read_json(folder / STAMP))]


FOLDERS = (
    Target(
        "a job's folder",
        ("protocol.job:status", "protocol.job:read_progress", "protocol.job:read_json"),
        st.tuples(documents(recorded("build-progress.json")), documents(recorded("*-stamp.json"))),
        _folder,
        known=(
            *((deep, deep) for deep in DEEP),
            (" " * (LIMIT + 1), "\ud800"),
            (dumped({**recorded("build-progress.json")[0], "pid": -1}), "{}"),
            (dumped({**recorded("build-progress.json")[0], "pid": 2**62, "start_ticks": 1}), ""),
        ),
        printable=False,
    ),
)

# -- what other programs print ---------------------------------------------------------------------

APT = lines_of("packages/apt-debian12-with-driver.txt", "packages/apt-debian12-without-driver.txt")
DNF = lines_of("packages/dnf-install.txt", "packages/dnf-erasing.txt")
OTHERS = """\
(1/20) Installing binutils (2.41-r0)
(2/20) Upgrading musl (1.2.4-r2 -> 1.2.5-r0)
(3/20) Purging gcc (13.2-r0)
The following 2 NEW packages are going to be installed:
  gcc gcc-c++

The following package is going to be REMOVED:
  nvidia-driver

E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1234 (apt-get)
System management is locked by the application with pid 77 (zypper).
"""
POLICY = """\
Package files:
 100 /var/lib/dpkg/status
     release a=now
 -10 https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64  Packages
     release o=NVIDIA,l=NVIDIA CUDA,c=
 500 http://deb.debian.org/debian bookworm/main amd64 Packages
"""
NINJA = """\
# ninja log v5
0\t100\t1764000000\tone.c.o\tabc
100\t250\t1764000001\tlibllama.so\tdef
100\t120\t1764000001\ttwo.c.o\t012
"""
CACHE = """\
//Build it
GGML_CUDA:BOOL=ON
GGML_CUDDA:UNINITIALIZED=ON
LLAMA_BUILD_COMMIT:UNINITIALIZED=x
CMAKE_BUILD_TYPE:STRING=Release
"""
HEADER = """\
#define cuDeviceTotalMem                    cuDeviceTotalMem_v2
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuDeviceGetCount(int *count);
"""
PIP = lines_of("build-cpu.log")


def _apt(text: str, _: Path) -> object:
    return apt_changes(text.split("\n"))


def _dnf(text: str, _: Path) -> object:
    return dnf_changes(text.split("\n"))


def _others(text: str, _: Path) -> object:
    lines = text.split("\n")
    return [apk_changes(lines), zypper_changes(lines), locked_by(lines)]


def _redacted(text: str, _: Path) -> object:
    said = redacted(text)
    assert said == redacted(said), "it is not done at once"
    return said


def _policy(text: str, _: Path) -> object:
    refuse_unpinned(text, "https://developer.download.nvidia.com/compute/cuda")
    return None


def _pip(text: str, _: Path) -> object:
    log = BuildLog()
    for line in text.split("\n"):
        log.feed(line)
    told = [log.phase, log.step, log.steps, log.unused, log.wheel_bytes, log.wheel_sha256]
    return [*told, target(text)]


BUILD_NINJA = """\
cmake_ninja_workdir = /b/
build all: phony liba.so
build CMakeFiles/a.dir/a$ b.c.o: C_COMPILER__a_unscanned_Release /s/a$ b.c || order
  FLAGS = -O3
build CMakeFiles/a.dir/long.c.o: C_COMPILER__a_unscanned_Release /s/long.c | ${cmake_ninja_workdir}x
  FLAGS = -O3
build liba.so: C_SHARED_LIBRARY_LINKER__a CMakeFiles/a.dir/a$ b.c.o CMakeFiles/a.dir/long.c.o
default all
"""


def _ninja(text: str, _: Path) -> object:
    return [link_seconds(text, 2), packing(text, 2)]


def _build_ninja(text: str, _: Path) -> object:
    return ordered(text, len)


RESULTS = """\
# /src/ggml.c
cache_miss
local_storage_write
# /src/ggml-cuda.cu
direct_cache_hit
remote_storage_hit
"""


def _results(text: str, _: Path) -> object:
    return sorted(counted(text).elements())


def _cache(text: str, _: Path) -> object:
    return undeclared_options(text)


def _wheels(text: str, _: Path) -> object:
    downloads = Downloads()
    return [*map(downloads.feed, text.split("\n")), driver_names(text)]


SIGNATURES = signatures_from(rows())
LOGS = lines_of(
    "build-cpu.log", "logs/cuda-init-error.log", "packages/apt-debian12-with-driver.txt"
)
FAILURES = """\
CMake Error at /usr/share/cmake/Modules/CMakeDetermineCUDACompiler.cmake:277 (message):
  CMAKE_CUDA_ARCHITECTURES must be non-empty if set.
/usr/include/c++/14/type_traits:1: error: #error -- unsupported GNU version! gcc versions later
nvcc fatal   : Unsupported gpu architecture 'compute_120'
ERROR: Could not find a version that satisfies the requirement cmake==4.1.0 (from versions: none)
WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'ProxyError'
c++: fatal error: Killed signal terminated program cc1plus
OSError: libcudart.so.13: cannot open shared object file: No such file or directory
ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected
CUDA error: out of memory
[Errno 28] No space left on device
"""


def _diagnosed(text: str, _: Path) -> object:
    found = [replace(match, line="") for match in causes(SIGNATURES, text)]
    return [found, fails(text), error_lines(text)]


PRINTED = (
    Target(
        "what apt would do",
        ("onhost.toolkit.changes:apt_changes",),
        texts(APT),
        _apt,
        known=("Inst " + "a" * 40_000, "Inst " + ":" * 40_000, "Remv " + "a:" * 20_000),
        printable=False,
    ),
    Target(
        "what dnf would do",
        ("onhost.toolkit.changes:dnf_changes",),
        texts(DNF),
        _dnf,
        known=("a" * 40_000, "Installing " * 4000 + ":", " " * 40_000 + "replacing"),
        printable=False,
    ),
    Target(
        "what apk and zypper would do",
        (
            *("onhost.toolkit.changes:apk_changes", "onhost.toolkit.changes:zypper_changes"),
            "onhost.toolkit.managers:locked_by",
        ),
        texts([OTHERS]),
        _others,
        known=(
            "(" + "9" * 40_000 + "/1) Installing x (1)",
            "The following " + "NEW " * 10_000 + "going to be installed:",
            "The following" + " going to be" * 4000,
        ),
        printable=False,
        share=0.5,
    ),
    Target(
        "what must not be said",
        ("protocol.redact:redacted",),
        texts(["get https://user:word@host/simple?token=x#y Authorization: Basic abc=\n"]),
        _redacted,
        known=("://" * 30_000, "@" * 60_000, "a://b@" * 10_000, "Authorization: " * 6000),
        printable=False,
        share=0.5,
    ),
    Target(
        "apt's policy",
        ("onhost.toolkit.packages:refuse_unpinned",),
        texts([POLICY]),
        _policy,
        (JobFailed,),
        known=(" " * 40_000, "9" * 40_000 + " https://developer.download.nvidia.com/compute/cuda"),
        printable=False,
    ),
    Target(
        "pip's output",
        ("onhost.buildlog:BuildLog", "onhost.buildlog:target"),
        texts(PIP),
        _pip,
        known=(
            "[" + "9" * 5000 + "/1] x",
            "[²/1] x",
            "  Created wheel for llama-cpp-python: x size=" + "9" * 5000 + " sha256=" + "0" * 64,
            " " * 40_000,
            "Created wheel for llama_cpp_python: " + "size=1 " * 5000,
            "Manually-specified variables were not used by the project\n" + "x\n" * 5000,
        ),
        printable=False,
    ),
    Target(
        "ninja's log",
        ("onhost.ninja:link_seconds", "onhost.ninja:packing"),
        texts([NINJA]),
        _ninja,
        known=("a\tb\tc\td", "1\t\t\t", "9" * 5000 + "\t1\t1\ta.so", "0\t1\t1\t" + ".so" * 10_000),
    ),
    Target(
        "what CMake told ninja",
        ("onhost.ninja:ordered",),
        texts([BUILD_NINJA]),
        _build_ninja,
        (Unordered,),
        known=(
            "build a: r " + "${" * 40_000,
            "build " + "$" * 40_001,
            "build :",
            "build a: p a\ndefault a",
        ),
        printable=False,
    ),
    Target(
        "CMake's cache",
        ("onhost.buildlog:undeclared_options",),
        texts([CACHE]),
        _cache,
        known=("GGML_" + "A" * 40_000,),
        printable=False,
    ),
    Target(
        "the progress of wheels, and cuda.h",
        ("onhost.toolkit.wheels:Downloads", "onhost.toolkit.wheels:driver_names"),
        texts(["Progress 5 of 10\nProgress 10 of 10\n" + HEADER]),
        _wheels,
        known=(
            "Progress " + "9" * 5000 + " of 1",
            "CUDAAPI" + " " * 40_000,
            "#define cuA" + " " * 40_000,
            " " * 40_000 + "#define",
        ),
        printable=False,
    ),
    Target(
        "the log of a failure",
        ("protocol.diagnose:causes", "protocol.diagnose:fails", "protocol.diagnose:error_lines"),
        texts([*LOGS, FAILURES]),
        _diagnosed,
        known=(
            *("a" * 100_000, " " * 100_000, "\n" * 100_000, "error " * 20_000, "libcu" * 20_000),
            *("1." * 50_000, "ERROR: " * 15_000, "No " * 30_000, "/" * 100_000),
        ),
        printable=False,
        share=0.6,
    ),
)

# -- the driver ------------------------------------------------------------------------------------

_SMI = '#!/bin/sh\ncat "{file}"\nexit {status}\n'
MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Tue Jun  3 09:11:12 2025\n"
LISTED = "\tlibnvidia-ml.so.1 (libc6,x86-64) => /usr/lib/libnvidia-ml.so.1\n"


def _host(folder: Path, program: str, said: str) -> None:
    """A root with one program that prints so."""
    (folder / "said").write_bytes(encoded(said))
    path = folder / "usr/sbin" / program
    path.parent.mkdir(parents=True)
    path.write_text(_SMI.format(file=folder / "said", status=0))
    path.chmod(0o755)


def _as_host(folder: Path) -> object:
    before = os.environ.copy()
    os.environ.update(LLAMAFLEET_ROOT=str(folder), PATH="/nonexistent", LLAMAFLEET_SMI_LIMIT="5")
    try:
        version, source = driver.loaded_driver()
        return [version, source, driver.library_driver()]
    finally:
        os.environ.clear()
        os.environ.update(before)


def _module(text: str, folder: Path) -> object:
    file = folder / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_bytes(encoded(text))
    return _as_host(folder)


def _asked(text: str, folder: Path, *, program: str) -> object:
    _host(folder, program, text)
    # cat itself is not below the root.
    (folder / "usr/sbin" / program).write_text(f'#!/bin/sh\n/bin/cat "{folder}/said"\n')
    return _as_host(folder)


DRIVER = (
    Target(
        "the driver's module",
        ("onhost.driver:loaded_driver",),
        texts([MODULE, "580.95.05\n"]),
        _module,
        known=("9" * 40_000, "1." * 40_000, "9." + "9" * 40_000, "1.2.3" * 10_000, "\ud800"),
        share=0.5,
    ),
    Target(
        "nvidia-smi's driver version",
        ("onhost.driver:loaded_driver",),
        texts(["580.95.05\n580.95.05\n", "NVIDIA-SMI has failed\n"]),
        partial(_asked, program="nvidia-smi"),
        known=(ESCAPE, "9" * 40_000 + ".1", "\n" * 40_000, "x" * 500_000),
        share=0.1,
    ),
    Target(
        "what ccache tells of its results",
        ("onhost.compilercache:counted",),
        texts([RESULTS]),
        _results,
        printable=False,
        share=0.5,
    ),
    Target(
        "ldconfig's list",
        ("onhost.driver:library_driver",),
        texts([LISTED, LISTED.replace("ml.so.1\n", "ml.so.580.95.05\n")]),
        partial(_asked, program="ldconfig"),
        known=(
            "\ud800",
            LISTED.replace("=> /usr", "=> \0"),
            LISTED.replace("=> /usr", "=> " + "/a" * 5000),
            LISTED.replace("libc6,", "libc6," * 10_000),
            " " * 40_000,
        ),
        share=0.1,
    ),
)

TARGETS = (*CONFIGURATIONS, *FOLDERS, *PRINTED, *DRIVER)
