"""Settings, toolkit, compiler -> CMake options, environment, fingerprint, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Literal

from llamafleet.facts.host import Compiler, HostSnapshot, Job
from llamafleet.layout import Layout
from llamafleet.plans.plan import BuildPlan, JobPlan, ToolkitPlan
from llamafleet.plans.requirements import host_requirements, llama_requirement
from llamafleet.plans.toolkit.architectures import cuda_architectures
from llamafleet.protocol.fingerprint import explain_difference, fingerprint
from llamafleet.protocol.job import PATH, BuildConfig, BuildInputs
from llamafleet.protocol.result import Backend
from llamafleet.settings import Settings
from llamafleet.wheelhouse.manifest import Manifest

MIB_PER_UNIT: dict[Backend, int] = {"cuda": 2048, "cpu": 1024}
"""Memory that one compile job may need. Measured peak for sm_89: 710 MiB; the rest is margin for
several architectures and the linker."""

CPU_OPTIONS = {
    "GGML_CUDA": "off",
    "GGML_NATIVE": "on",
    # The vision library: about 60 more units, and nothing here loads it.
    "LLAVA_BUILD": "OFF",
    "LLAMA_OPENSSL": "OFF",
    # One copy of each library in the wheel, not up to six.
    "CMAKE_INSTALL_LIBDIR": "llama_cpp/lib",
    "CMAKE_INSTALL_BINDIR": "llama_cpp/bin",
    "CMAKE_INSTALL_INCLUDEDIR": "llama_cpp/include",
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME": "ON",
    # The commit is written into the library: it must not depend on git, or on who owns the tree.
    "GIT_EXE": "OFF",
    "GIT_EXECUTABLE": "OFF",
}

NO_AMX = "-mno-amx-int8"
"""Leaves llama.cpp's AMX kernels out: built by gcc 12.2 they die with SIGSEGV at ldtilecfg on the
first decode (measured; llama.cpp PR 26954 describes it). Layers on a GPU lose nothing."""

PATH_OPTIONS = ("CMAKE_CUDA_COMPILER", "CMAKE_CUDA_HOST_COMPILER", "CUDAToolkit_ROOT")
"""Where a tool lies does not change the code it makes; its version is an input of its own. The
run-time search path does stay an input: it is written into the library."""


ALLOWED_UNUSED: tuple[str, ...] = ()
"""Options of ours that CMake may report as unused; any other is a mistyped one. The source tree and
CMake 4.4 read all of them (measured, both backends)."""


def cmake_options(
    settings: Settings,
    compiler: Compiler,
    toolkit: ToolkitPlan | None,
    capabilities: Sequence[str],
    cpu_flags: Sequence[str] = (),
) -> dict[str, str]:
    """-D options by name, sorted; those of the settings win. `toolkit` None: for the CPU.

    `cpu_flags`: of /proc/cpuinfo.

    Raises ValueError on a malformed compute capability, also one in the settings' own
    CMAKE_CUDA_ARCHITECTURES: native among them.
    """
    options = dict(CPU_OPTIONS)
    if toolkit is not None:
        options |= {
            "GGML_CUDA": "on",
            "CMAKE_CUDA_ARCHITECTURES": cuda_architectures(capabilities),
            "CMAKE_CUDA_COMPILER": f"{toolkit.root}/bin/nvcc",
            # Without it CMake's two ways to find a toolkit can find two different ones (measured).
            "CUDAToolkit_ROOT": toolkit.root,
            "CMAKE_CUDA_HOST_COMPILER": compiler.path,
            "GGML_CUDA_NCCL": "OFF",
            # CMake leaves the toolkit out of the run-time search path (measured: $ORIGIN only).
            "CMAKE_SHARED_LINKER_FLAGS": f"-Wl,-rpath,{toolkit.libdir}",
        }
        if settings.compiler_forced:
            options["CMAKE_CUDA_COMPILER_FORCED"] = "ON"
    options |= settings.cmake_options
    if "amx_int8" in cpu_flags:
        for name in ("CMAKE_C_FLAGS", "CMAKE_CXX_FLAGS"):
            options[name] = f"{NO_AMX} {options.get(name, '')}".strip()
    if "native" in options.get("CMAKE_CUDA_ARCHITECTURES", "").lower():
        raise ValueError(
            "CMAKE_CUDA_ARCHITECTURES = 'native' in cmake_options: expected numbers, as '89'"
        )
    return dict(sorted(options.items()))


def environment(
    settings: Settings, snapshot: HostSnapshot, compiler: Compiler, toolkit: ToolkitPlan | None
) -> dict[str, str]:
    """Variables of the build, and of a shell that wants to build by hand.

    The same for the same host: the jobs here are bounded by all memory, those of one build by
    the memory that is free then.
    """
    backend: Backend = "cuda" if toolkit else "cpu"
    values = {
        "CXX": compiler.path,
        "FORCE_CMAKE": "1",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(
            jobs(settings, snapshot.cores, snapshot.memory_mib, backend)
        ),
        "PATH": search_path(snapshot),
    }
    if settings.wheelhouse:
        # An index or a mirror in the host's pip.conf must not be asked.
        values["PIP_CONFIG_FILE"] = "/dev/null"
    c_compiler = sibling_c_compiler(compiler.path)
    if c_compiler:
        values["CC"] = c_compiler
    if toolkit is not None:
        values |= {
            "CUDACXX": f"{toolkit.root}/bin/nvcc",
            "CUDAHOSTCXX": compiler.path,
            "GGML_CUDA": "1",
            "LD_LIBRARY_PATH": toolkit.libdir,
            "PATH": f"{toolkit.root}/bin:{values['PATH']}",
        }
        if settings.allow_unsupported_compiler:
            values["NVCC_APPEND_FLAGS"] = "--allow-unsupported-compiler"
    return dict(sorted(values.items()))


def search_path(snapshot: HostSnapshot) -> str:
    """The usual folders, and last that of the host's CMake: a wheelhouse may come without one."""
    folder = str(PurePosixPath(snapshot.cmake.path).parent) if snapshot.cmake else ""
    return f"{PATH}:{folder}" if folder and folder not in PATH.split(":") else PATH


def sibling_c_compiler(cxx: str) -> str | None:
    """The C compiler beside a C++ compiler, where its name follows: g++-12 -> gcc-12."""
    path = PurePosixPath(cxx)
    name = re.sub(r"g\+\+(?=-[\d.]+$|$)", "gcc", path.name)
    if "clang++" in path.name:
        name = path.name.replace("clang++", "clang")
    return None if name == path.name else str(path.with_name(name))


def jobs(settings: Settings, cores: int, memory_mib: int, backend: Backend) -> int:
    """Parallel compile jobs: at most the settings', the cores, and what the memory holds."""
    return max(1, min(settings.jobs or cores, cores, memory_mib // MIB_PER_UNIT[backend]))


def build_inputs(
    settings: Settings,
    snapshot: HostSnapshot,
    *,
    compiler: Compiler,
    toolkit: ToolkitPlan | None,
    capabilities: Sequence[str],
    options: dict[str, str],
) -> BuildInputs:
    """Exactly what changes the machine code. The driver does not."""
    native = options["GGML_NATIVE"].lower() in ("on", "1", "true", "yes", "y")
    flags = sha256(" ".join(sorted(snapshot.cpu_flags)).encode()).hexdigest()[:16]
    unsupported = toolkit is not None and settings.allow_unsupported_compiler
    return BuildInputs(
        llama_version=settings.llama_version,
        llama_sha256=settings.llama_sha256,
        cmake_options=tuple(f"{n}={v}" for n, v in options.items() if n not in PATH_OPTIONS),
        toolkit=toolkit.version if toolkit else None,
        compute_capabilities=tuple(capabilities) if toolkit else (),
        compiler=f"{compiler.kind} {compiler.major}",
        arch=snapshot.arch,
        cpu_flags=flags if native else None,
        glibc=snapshot.glibc,
        backend="cuda" if toolkit else "cpu",
        nvcc_append_flags="--allow-unsupported-compiler" if unsupported else None,
    )


def plan_build(
    settings: Settings,
    snapshot: HostSnapshot,
    *,
    compiler: Compiler,
    toolkit: ToolkitPlan | None,
    capabilities: Sequence[str],
    python: str,
    layout: Layout,
    house: Manifest | None,
) -> BuildPlan:
    """The build of this host; `house`: of the wheelhouse that takes the registries' place.

    Raises ValueError as `cmake_options` does.
    """
    options = cmake_options(settings, compiler, toolkit, capabilities, snapshot.cpu_flags)
    inputs = build_inputs(
        settings,
        snapshot,
        compiler=compiler,
        toolkit=toolkit,
        capabilities=capabilities,
        options=options,
    )
    key = fingerprint(asdict(inputs))
    config = BuildConfig(
        key=key,
        inputs=inputs,
        python=python,
        pip=layout.pip,
        requirements=host_requirements(house),
        index_url=settings.index_url,
        find_links=layout.wheelhouse if house else None,
        prefix=layout.version(key),
        llama_requirement=llama_requirement(settings, house),
        cmake_args=tuple(f"-D{name}={value}" for name, value in options.items()),
        allowed_unused=ALLOWED_UNUSED,
        environment=environment(settings, snapshot, compiler, toolkit),
        jobs=jobs(settings, snapshot.cores, snapshot.memory_available_mib, inputs.backend),
    )
    action, reason = decide(snapshot, key, inputs)
    job = JobPlan(
        kind="build",
        key=key,
        folder=layout.job("build", key),
        python=python,
        minutes=settings.build_timeout_minutes,
        start=action == "build",
    )
    return BuildPlan(config, action, reason, job if action in ("build", "attach") else None)


def decide(
    snapshot: HostSnapshot, key: str, inputs: BuildInputs
) -> tuple[Literal["build", "attach", "activate", "none"], str]:
    """What to do for that fingerprint, and why."""
    job = snapshot.job("build", key)
    if job and job.alive:
        return "attach", "this build runs already"
    if job and job.ok and key in snapshot.versions:
        if snapshot.current == key:
            return "none", "built and active"
        return "activate", f"built; current is {snapshot.current or 'not set'}"
    if job and job.unreadable:
        return "build", f"the stamp of the last attempt can't be read ({job.unreadable})"
    if job and job.ok:
        return "build", "it was built, but its files are gone"
    if job and job.stamp:
        phase = job.stamp.error.phase if job.stamp.error else "?"
        return "build", f"the last attempt failed in phase {phase}"
    if job:
        return "build", "the last attempt ended without a word"
    last = last_build(snapshot)
    if last is None or last.stamp is None:
        return "build", "nothing was built on this host yet"
    return "build", explain_difference(last.stamp.inputs, asdict(inputs))


def last_build(snapshot: HostSnapshot) -> Job | None:
    """The active build's job, else the newest that ended well."""
    active = snapshot.job("build", snapshot.current) if snapshot.current else None
    if active and active.ok:
        return active
    done = [j for j in snapshot.jobs if j.kind == "build" and j.ok]
    return max(done, key=lambda j: j.stamp.finished if j.stamp else 0.0, default=None)
