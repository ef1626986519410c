"""Settings, toolkit, compiler -> CMake options, environment, fingerprint, and what to do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Literal

from llamafleet.facts.host import Compiler, HostSnapshot, Job
from llamafleet.layout import Layout
from llamafleet.plans.account import record_of
from llamafleet.plans.compilercache import NO_OTHER_CACHE, plan_cache
from llamafleet.plans.network import plan_network
from llamafleet.plans.plan import BuildPlan, SwitchPlan, ToolkitPlan, account_job
from llamafleet.plans.requirements import host_requirements, llama_requirement
from llamafleet.plans.toolkit.architectures import cuda_architectures
from llamafleet.plans.toolkit.compatibility import miscompiles
from llamafleet.protocol.fingerprint import explain_difference, fingerprint
from llamafleet.protocol.job import (
    BUILD,
    LIBRARY_PATH,
    NVCC,
    PARALLEL,
    PATH,
    STAMP,
    BuildConfig,
    BuildInputs,
    SharedWheel,
    Stamp,
)
from llamafleet.protocol.miscompiles import wrong_build
from llamafleet.protocol.result import Backend
from llamafleet.settings import Settings
from llamafleet.tables.cpu_baselines import BASELINES, NATIVE, OPTIONS, Baseline
from llamafleet.tables.releases import release
from llamafleet.wheelhouse.manifest import Manifest

MIB_PER_UNIT: dict[Backend, int] = {"cuda": 2048, "cpu": 1024}
"""Memory that one compile job may need. Measured peak for sm_89: 710 MiB; the rest is margin for
several architectures and the linker."""

CPU_OPTIONS = {
    "GGML_CUDA": "off",
    NATIVE: "on",
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
    **NO_OTHER_CACHE,
    # DT_RPATH in place of DT_RUNPATH: LD_LIBRARY_PATH comes before that one (ld.so(8)).
    "CMAKE_SHARED_LINKER_FLAGS_RELEASE": "-Wl,--disable-new-dtags",
}

NO_AMX = "-mno-amx-int8"
"""Leaves llama.cpp's AMX kernels out: built by gcc 12.2 they die with SIGSEGV at ldtilecfg on the
first decode (measured; llama.cpp PR 26954 describes it). Layers on a GPU lose nothing."""

PATH_OPTIONS = (
    "CMAKE_CUDA_COMPILER",
    "CMAKE_CUDA_HOST_COMPILER",
    "CUDAToolkit_ROOT",
    "CMAKE_SHARED_LINKER_FLAGS_RELEASE",
)
"""Where a tool lies does not change the code it makes; its version is an input of its own. The
run-time search path does stay an input, as it is written into the library, but not when it is
searched: builds of before are proven by what they load."""

NO_INPUTS = frozenset({*PATH_OPTIONS, *NO_OTHER_CACHE})
"""Options that change no code: a build that is there stays what it is."""


NO_WHEELS: Mapping[str, SharedWheel] = {}

UNPROVEN = "it has no proof that it is whole"
NUMBER = re.compile(r"(-[0-9]{1,6})?")
"""What follows the fingerprint in the name of a build's folder."""

MAY_LACK = ("GGML_CUDA_NCCL", "LLAMA_OPENSSL", "LLAVA_BUILD")
"""Options of ours that leave a part out: a version that has no such option is built without it. All
releases of tables/releases.yaml have all of ours (measured)."""


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
    if settings.cpu_baseline:
        options |= baseline_options(settings.cpu_baseline)
    options = _known(options, settings.llama_version) | settings.cmake_options
    # With a baseline they are off by an option.
    if "amx_int8" in cpu_flags and not settings.cpu_baseline:
        for name in ("CMAKE_C_FLAGS", "CMAKE_CXX_FLAGS"):
            options[name] = f"{NO_AMX} {options.get(name, '')}".strip()
    if "native" in options.get("CMAKE_CUDA_ARCHITECTURES", "").lower():
        raise ValueError(
            "CMAKE_CUDA_ARCHITECTURES = 'native' in cmake_options: expected numbers, as '89'"
        )
    return dict(sorted(options.items()))


def baseline_options(name: Baseline) -> dict[str, str]:
    """ggml's own for a CPU of that level, each one said: their defaults go by the host."""
    on = BASELINES[name].on
    return {NATIVE: "off"} | {option: "on" if option in on else "off" for option in OPTIONS}


def _known(options: Mapping[str, str], version: str) -> dict[str, str]:
    """Options of ours without those that the version lacks and may lack.

    Any other that it lacks changes what is built: it stays, and the build is refused by its name.
    """
    row = release(version)
    lacking = [name for name in MAY_LACK if row and name not in row.options]
    return {name: value for name, value in options.items() if name not in lacking}


def allowed_unused(version: str) -> tuple[str, ...]:
    """Options of ours that CMake may report as unused; any other is a mistyped one."""
    return () if release(version) else MAY_LACK


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
        PARALLEL: str(jobs(settings, snapshot.cores, snapshot.memory_mib, backend)),
        "PATH": search_path(snapshot),
    }
    c_compiler = sibling_c_compiler(compiler.path)
    if c_compiler:
        values["CC"] = c_compiler
    if toolkit is not None:
        values |= {
            NVCC: f"{toolkit.root}/bin/nvcc",
            "CUDAHOSTCXX": compiler.path,
            "GGML_CUDA": "1",
            LIBRARY_PATH: toolkit.libdir,
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
    native = options[NATIVE].lower() in ("on", "1", "true", "yes", "y")
    flags = sha256(" ".join(sorted(snapshot.cpu_flags)).encode()).hexdigest()[:16]
    unsupported = toolkit is not None and settings.allow_unsupported_compiler
    return BuildInputs(
        llama_version=settings.llama_version,
        llama_sha256=settings.llama_sha256,
        cmake_options=tuple(f"{n}={v}" for n, v in options.items() if n not in NO_INPUTS),
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
    wheels: Mapping[str, SharedWheel] = NO_WHEELS,
    notes: tuple[str, ...] = (),
) -> BuildPlan:
    """The build of this host; `house`: of the wheelhouse that takes the registries' place.

    `wheels`: those that other hosts built, by fingerprint. `notes`: what is not as usual in it.

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
    choice = decide(settings, snapshot, fingerprint(asdict(inputs)), inputs)
    config = _config(
        settings,
        snapshot,
        layout,
        name=choice.name,
        inputs=inputs,
        options=options,
        variables=environment(settings, snapshot, compiler, toolkit),
        python=python,
        house=house,
        notes=notes,
    )
    return _shared(_planned(settings, layout, config, choice), settings, snapshot, layout, wheels)


def _config(
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    name: str,
    inputs: BuildInputs,
    options: Mapping[str, str],
    variables: dict[str, str],
    python: str,
    house: Manifest | None,
    notes: tuple[str, ...],
) -> BuildConfig:
    """What the job of the build in the folder `name` is told, where no wheel is shared."""
    network = plan_network(settings, snapshot, layout)
    return BuildConfig(
        key=fingerprint_of(name),
        inputs=inputs,
        python=python,
        pip=layout.pip,
        requirements=host_requirements(house),
        index_url=settings.index_url,
        find_links=layout.wheelhouse if house else None,
        prefix=layout.version(name),
        llama_requirement=llama_requirement(settings, house),
        cmake_args=tuple(f"-D{option}={value}" for option, value in options.items()),
        allowed_unused=allowed_unused(settings.llama_version),
        environment=variables,
        jobs=jobs(settings, snapshot.cores, snapshot.memory_available_mib, inputs.backend),
        proxies=network.proxies,
        ca_bundle=network.ca_bundle,
        netrc=network.netrc,
        cache=plan_cache(settings, layout, house),
        notes=notes,
    )


def _planned(settings: Settings, layout: Layout, config: BuildConfig, choice: Choice) -> BuildPlan:
    """The job that carries out the choice, and where the proof of the build is then."""
    job = account_job(
        config.kind,
        config.key,
        layout,
        python=config.python,
        minutes=settings.build_timeout_minutes,
        start=choice.action == "build",
    )
    proof = f"{job.folder}/{STAMP}" if choice.older else f"{config.prefix}/{BUILD}"
    needed = None if choice.action == "none" else job
    return BuildPlan(config, choice.action, choice.reason, proof, needed)


def _shared(
    plan: BuildPlan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    wheels: Mapping[str, SharedWheel],
) -> BuildPlan:
    """The same build; where hosts share wheels it takes another one's, or keeps its own."""
    shares = settings.build_sharing == "wheel"
    wheel = wheels.get(plan.fingerprint) if shares and plan.action == "build" else None
    maker = wheel.host if wheel else _shared_from(snapshot, plan)
    return replace(
        plan,
        config=replace(
            plan.config,
            keep_wheel=shares and wheel is None,
            wheel=wheel,
            wheel_file=f"{layout.shared}/{wheel.name}" if wheel else "",
        ),
        reason=f"wheel of {maker}; {plan.reason}" if maker else plan.reason,
        clears=wheel is not None or _left(snapshot, layout),
    )


def _shared_from(snapshot: HostSnapshot, plan: BuildPlan) -> str:
    """The host that built what is there; "": this one did."""
    there = snapshot.builds.get(plan.name) if plan.action == "none" else None
    return there.product.shared_from if there and there.product else ""


def _left(snapshot: HostSnapshot, layout: Layout) -> bool:
    """A folder of shared wheels lies there; in a folder of somebody else's it may be theirs."""
    return layout.shared in snapshot.owners and layout.prefix in record_of(snapshot, layout)


@dataclass(frozen=True)
class Choice:
    """What to do for a fingerprint, why, and in which folder."""

    action: Literal["build", "attach", "none"]
    reason: str
    name: str
    older: bool = False
    """It was built by code that left its proof in the job's folder."""


def decide(settings: Settings, snapshot: HostSnapshot, key: str, inputs: BuildInputs) -> Choice:
    """A build is there if its own proof is good, it runs and its libraries are as stamped.

    No folder is ever built into twice, so what is there stays whole whatever becomes of the next.
    """
    names = names_of(key, snapshot.versions)
    free = next(name for name in _numbered(key) if name not in snapshot.versions)
    job = snapshot.job("build", key)
    if job and job.alive:
        begun = [name for name in names if _stamp(snapshot, name) is None]
        return Choice("attach", "this build runs already", begun[-1] if begun else free)
    faults = {name: fault(snapshot, name) for name in names}
    sound = [name for name in names if not faults[name]]
    if sound and not settings.rebuild:
        name = max(sound, key=lambda name: _finished(snapshot, name))
        active = f"current is {snapshot.current or 'not set'}"
        reason = "built and active" if name == snapshot.current else f"built; {active}"
        return Choice("none", reason, name, older=_own_stamp(snapshot, name) is None)
    if sound:
        return Choice("build", "rebuild is set", free)
    # The one in use is what matters; without one the last that was tried.
    damaged = [name for name in names if faults[name] != UNPROVEN]
    if damaged:
        name = snapshot.current if snapshot.current in damaged else damaged[-1]
        return Choice("build", f"the build {name} is damaged: {faults[name]}", free)
    return Choice("build", _never_whole(snapshot, job, inputs), free)


def fault(snapshot: HostSnapshot, name: str) -> str:
    """Why a build can't be used; "": it can."""
    build, stamp, key = snapshot.builds.get(name), _stamp(snapshot, name), fingerprint_of(name)
    if build is None or stamp is None:
        return UNPROVEN
    if not stamp.ok or (stamp.kind, stamp.key) != ("build", key):
        return f"its proof is that of {stamp.kind} {stamp.key}"
    if stamp.machine_id not in ("", snapshot.machine_id):
        return "it was made on another machine"
    if not build.runs:
        return "its interpreter does not run"
    own = _own_stamp(snapshot, name)
    job = snapshot.job("build", key)
    product = build.product if own else job.product if job else None
    if product is None:
        # An older stamp says by itself what it can.
        return "its proof names no libraries" if own else ""
    return _differing(product.libraries, build.libraries) or _miscompiled(stamp, product.nvcc)


def _miscompiled(stamp: Stamp, nvcc: str) -> str:
    """Why its code is wrong on its GPUs; "": nothing is known against its compiler."""
    toolkit, gpus = stamp.inputs.get("toolkit"), stamp.inputs.get("compute_capabilities")
    if not isinstance(toolkit, str) or not isinstance(gpus, list | tuple):
        return ""
    wrong = wrong_build(miscompiles(), nvcc, toolkit, [str(gpu) for gpu in gpus])
    return f"it was compiled by {wrong}" if wrong else ""


def _differing(stamped: Mapping[str, str], found: Mapping[str, str]) -> str:
    """How libraries are not as they were made, by name; "": they are."""
    words = [
        f"{PurePosixPath(path).name} {'differs' if path in found else 'is gone'}"
        for path, sha256 in sorted(stamped.items())
        if found.get(path) != sha256
    ]
    words += [f"{PurePosixPath(path).name} was added" for path in sorted(found.keys() - stamped)]
    return ", ".join(words[:5])


def _own_stamp(snapshot: HostSnapshot, name: str) -> Stamp | None:
    """That of its build.json."""
    build = snapshot.builds.get(name)
    return build.stamp if build else None


def _stamp(snapshot: HostSnapshot, name: str) -> Stamp | None:
    """The proof of a build. Code of before left it in the job's folder, for the bare name alone.

    It named no machine; a stamp there that does is of a later attempt, into another folder.
    """
    job = snapshot.job("build", name)
    older = job.stamp if job and job.stamp and job.ok and not job.stamp.machine_id else None
    return _own_stamp(snapshot, name) or older


def _finished(snapshot: HostSnapshot, name: str) -> float:
    stamp = _stamp(snapshot, name)
    return stamp.finished if stamp else 0.0


def fingerprint_of(name: str) -> str:
    """Of a build's folder."""
    return name.partition("-")[0]


def names_of(key: str, versions: Sequence[str]) -> list[str]:
    """The folders of that fingerprint, in the order in which they were made."""
    numbers = {name: name.removeprefix(key) for name in versions if fingerprint_of(name) == key}
    whole = {name: int(end[1:] or 1) for name, end in numbers.items() if NUMBER.fullmatch(end)}
    return sorted(whole, key=whole.__getitem__)


def _numbered(key: str) -> Iterator[str]:
    yield key
    yield from (f"{key}-{number}" for number in itertools.count(2))


def _never_whole(snapshot: HostSnapshot, job: Job | None, inputs: BuildInputs) -> str:
    """Why it is built that was never seen whole."""
    if job and job.unreadable:
        return f"the stamp of the last attempt can't be read ({job.unreadable})"
    if job and job.ok:
        return "it was built, but its files are gone"
    if job and job.stamp:
        phase = job.stamp.error.phase if job.stamp.error else "?"
        return f"the last attempt failed in phase {phase}"
    if job:
        return "the last attempt ended without a word"
    last = last_build(snapshot)
    if last is None:
        return "nothing was built on this host yet"
    return explain_difference(last.inputs, asdict(inputs))


def last_build(snapshot: HostSnapshot) -> Stamp | None:
    """Of the active build, else of the newest that ended well."""
    active = snapshot.current and _stamp(snapshot, snapshot.current)
    if active and active.ok:
        return active
    stamps = [build.stamp for build in snapshot.builds.values()]
    stamps += [job.stamp for job in snapshot.jobs if job.kind == "build"]
    done = [stamp for stamp in stamps if stamp and stamp.ok]
    return max(done, key=lambda stamp: stamp.finished, default=None)


def plan_switch(
    snapshot: HostSnapshot, build: BuildPlan, proven: bool, *, serves: bool
) -> SwitchPlan | None:
    """`current` follows a build that is proven, and no other. `serves`: something is served."""
    if snapshot.current == build.name:
        return None
    keep = served_before(snapshot, build.name) if serves else ""
    return SwitchPlan(build.name, f"current is {snapshot.current or 'not set'}", proven, keep)


def served_before(snapshot: HostSnapshot, name: str) -> str:
    """The whole build that was the last to be known to serve, before the one of that name; "":
    none, or it is that one.

    While `previous` is there, nobody has seen `current` serve.
    """
    known = snapshot.previous or snapshot.current or ""
    return known if known != name and known and not fault(snapshot, known) else ""


def plan_discard(snapshot: HostSnapshot, build: BuildPlan, proven: bool) -> tuple[str, ...]:
    """Older and damaged builds of the same fingerprint, that the proven one stands for."""
    if not proven:
        return ()
    names = names_of(build.fingerprint, snapshot.versions)
    return tuple(name for name in names if name != build.name)
