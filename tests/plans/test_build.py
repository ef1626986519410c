"""CMake options, environment, jobs, and what to do about a build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet import tables
from llamafleet.facts.host import Build, Compiler, HostSnapshot, Job, Tool
from llamafleet.plans.build import jobs, names_of, sibling_c_compiler
from llamafleet.plans.make import explain
from llamafleet.plans.plan import BuildPlan, JobPlan
from llamafleet.protocol.job import JobError
from llamafleet.settings import Settings
from tests.plans.hosts import (
    CPU_HOST,
    GPU_HOST,
    LIBRARIES,
    build_of,
    built,
    clang,
    driver,
    gcc,
    gpu,
    installed,
    plan,
    proven,
    there,
    toolkit,
    with_builds,
)

ROOT = "/usr/local/cuda-13.0"
HOST = replace(GPU_HOST, toolkits=(toolkit("13.0"),))


def refused(host: HostSnapshot, *builds: BuildPlan, by: str = "unsupported-gnu-version") -> Any:
    """The same host after those builds failed, as nvcc refused their compiler."""
    error = JobError(phase="configure", signature=by)
    return replace(host, jobs=tuple(built(one, ok=False, error=error) for one in builds))


@pytest.mark.parametrize("by", ["unsupported-gnu-version", "host-compiler-refused"])
def test_where_nvcc_refuses_a_compiler_the_next_one_is_tried_once(by: str) -> None:
    two = replace(HOST, compilers=gcc(12, 11))
    first = build_of(two)
    assert first.inputs.compiler == "gcc 12" and not first.instead and not first.config.notes
    made = plan(refused(two, first, by=by))
    second = made.build
    assert second and second.instead == first.fingerprint != second.fingerprint
    assert "-DCMAKE_CUDA_HOST_COMPILER=/usr/bin/g++-11" in second.config.cmake_args
    assert second.config.notes == ("nvcc refused /usr/bin/g++-12: built with /usr/bin/g++-11",)
    assert second.config.notes[0] in made.notes and second.reason.startswith("nvcc refused")
    three = replace(HOST, compilers=gcc(12, 11, 13))
    best = build_of(three)
    after = build_of(refused(three, best))
    assert build_of(refused(three, best, after)).fingerprint == after.fingerprint, "no third one"


@pytest.mark.parametrize(
    ("compilers", "by", "settings"),
    [
        (gcc(12, 11), "ptxas-fatal", {}),
        (gcc(12), "unsupported-gnu-version", {}),
        (gcc(12, 16), "unsupported-gnu-version", {}),
        ((*gcc(12), Compiler("/opt/g++", "gcc", "12.1.0")), "unsupported-gnu-version", {}),
        (gcc(12, 11), "unsupported-gnu-version", {"host_compiler": "/usr/bin/g++-12"}),
    ],
)
def test_no_other_compiler_is_tried_where_it_would_not_help(
    compilers: tuple[Compiler, ...], by: str, settings: dict[str, str]
) -> None:
    host = replace(HOST, compilers=compilers)
    first = build_of(host, **settings)
    again = build_of(refused(host, first, by=by), **settings)
    assert again.fingerprint == first.fingerprint and not again.instead


def test_options_for_cuda() -> None:
    assert build_of(HOST).config.cmake_args == (
        "-DCMAKE_CUDA_ARCHITECTURES=89",
        f"-DCMAKE_CUDA_COMPILER={ROOT}/bin/nvcc",
        "-DCMAKE_CUDA_HOST_COMPILER=/usr/bin/g++-12",
        "-DCMAKE_INSTALL_BINDIR=llama_cpp/bin",
        "-DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include",
        "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",
        "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
        f"-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-rpath,{ROOT}/lib64",
        "-DCMAKE_SHARED_LINKER_FLAGS_RELEASE=-Wl,--disable-new-dtags",
        f"-DCUDAToolkit_ROOT={ROOT}",
        "-DGGML_CCACHE=OFF",
        "-DGGML_CUDA=on",
        "-DGGML_CUDA_NCCL=OFF",
        "-DGGML_NATIVE=on",
        "-DGIT_EXE=OFF",
        "-DGIT_EXECUTABLE=OFF",
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAVA_BUILD=OFF",
    )


def test_options_for_the_cpu() -> None:
    assert build_of(CPU_HOST, accelerator="auto").config.cmake_args == (
        "-DCMAKE_INSTALL_BINDIR=llama_cpp/bin",
        "-DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include",
        "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",
        "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
        "-DCMAKE_SHARED_LINKER_FLAGS_RELEASE=-Wl,--disable-new-dtags",
        "-DGGML_CCACHE=OFF",
        "-DGGML_CUDA=off",
        "-DGGML_NATIVE=on",
        "-DGIT_EXE=OFF",
        "-DGIT_EXECUTABLE=OFF",
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAVA_BUILD=OFF",
    )


def test_options_of_the_settings_replace_and_extend() -> None:
    args = build_of(HOST, cmake_options={"LLAVA_BUILD": "ON", "GGML_CUDA_FA_QUANTS": "all"})
    assert (
        "-DLLAVA_BUILD=ON" in args.config.cmake_args
        and "-DLLAVA_BUILD=OFF" not in args.config.cmake_args
    )
    assert "-DGGML_CUDA_FA_QUANTS=all" in args.config.cmake_args
    assert list(args.config.cmake_args) == sorted(args.config.cmake_args)


def test_an_option_that_leaves_a_part_out_goes_where_the_version_lacks_it(tmp_path: Path) -> None:
    """Any other of ours stays: the build is refused by its name, never another one in silence."""
    text = tables.text("releases.yaml").replace(
        "    source: *pypi\n",
        "    lacks: [LLAVA_BUILD, GGML_CUDA_NCCL, GGML_NATIVE]\n    source: *pypi\n",
        1,
    )
    (tmp_path / "releases.yaml").write_text(text)
    usual = set(build_of(HOST).config.cmake_args)
    with tables.overlaid(tmp_path):
        made = build_of(HOST).config
    assert usual - set(made.cmake_args) == {"-DLLAVA_BUILD=OFF", "-DGGML_CUDA_NCCL=OFF"}
    assert set(made.cmake_args) < usual and made.allowed_unused == ()


def test_of_a_version_that_is_not_known_cmake_may_lack_those_options_and_no_other() -> None:
    newer = build_of(HOST, llama_version="0.3.9999", llama_sha256="1" * 64).config
    assert newer.cmake_args == build_of(HOST).config.cmake_args
    assert set(newer.allowed_unused) == {"GGML_CUDA_NCCL", "LLAMA_OPENSSL", "LLAVA_BUILD"}
    assert build_of(HOST, llama_version="0.3.27").config.allowed_unused == ()


def test_the_archive_is_said_where_it_is_not_the_usual_one() -> None:
    def said(**settings: Any) -> list[str]:
        return [line for line in explain(plan(HOST, **settings)) if "sha256" in line]

    assert said() == []
    older = said(llama_version="0.3.27")
    assert older[0].startswith("  llama-cpp-python 0.3.27, sha256 b9eb9957") and len(older) == 1
    (newer,) = said(llama_version="0.3.9999", llama_sha256="1" * 64)
    assert newer.endswith(f"sha256 {'1' * 64}: not known here, nor are its options")
    assert said(llama_sha256="1" * 64) == [f"  llama-cpp-python 0.3.36, sha256 {'1' * 64}"]


def test_amx_is_left_out_where_the_cpu_lists_it() -> None:
    amx = replace(HOST, cpu_flags=("avx2", "amx_int8", "amx_tile"))
    assert {"-DCMAKE_C_FLAGS=-mno-amx-int8", "-DCMAKE_CXX_FLAGS=-mno-amx-int8"} <= set(
        build_of(amx).config.cmake_args
    )
    own = build_of(amx, cmake_options={"CMAKE_CXX_FLAGS": "-O3"})
    assert "-DCMAKE_CXX_FLAGS=-mno-amx-int8 -O3" in own.config.cmake_args
    assert not any("amx" in a for a in build_of(HOST).config.cmake_args)


def test_what_hides_errors_comes_on_request_only() -> None:
    plain = build_of(HOST)
    assert not any("FORCED" in a for a in plain.config.cmake_args)
    assert "NVCC_APPEND_FLAGS" not in plain.config.environment
    forced = build_of(HOST, compiler_forced=True, allow_unsupported_compiler=True)
    assert "-DCMAKE_CUDA_COMPILER_FORCED=ON" in forced.config.cmake_args
    assert forced.config.environment["NVCC_APPEND_FLAGS"] == "--allow-unsupported-compiler"


def test_environment_for_cuda() -> None:
    assert build_of(HOST).config.environment == {
        "CC": "/usr/bin/gcc-12",
        "CMAKE_BUILD_PARALLEL_LEVEL": "16",
        "CUDACXX": f"{ROOT}/bin/nvcc",
        "CUDAHOSTCXX": "/usr/bin/g++-12",
        "CXX": "/usr/bin/g++-12",
        "FORCE_CMAKE": "1",
        "GGML_CUDA": "1",
        "LD_LIBRARY_PATH": f"{ROOT}/lib64",
        "PATH": f"{ROOT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def test_environment_for_the_cpu() -> None:
    made = build_of(
        CPU_HOST, accelerator="auto", allow_unsupported_compiler=True
    ).config.environment
    assert set(made) == {
        "CC",
        "CXX",
        "CMAKE_BUILD_PARALLEL_LEVEL",
        "FORCE_CMAKE",
        "PATH",
    }


def test_a_build_is_told_how_it_reaches_an_index() -> None:
    plain = build_of(HOST).config
    assert (plain.proxies, plain.ca_bundle, plain.netrc) == ({}, None, None)
    own = {"http_proxy": "http://h:1", "https_proxy": "http://h:2", "no_proxy": ".lab"}
    host = replace(HOST, proxies=own, ca_bundle="/etc/ssl/certs/ca-certificates.crt")
    config = build_of(host).config
    assert (config.proxies, config.ca_bundle) == (own, host.ca_bundle)
    asked = build_of(host, proxy="http://p:3128", netrc="/home/ada/netrc").config
    assert asked.proxies == {
        "http_proxy": "http://p:3128",
        "https_proxy": "http://p:3128",
        "no_proxy": ".lab",
    }
    assert asked.netrc == "/etc/llamafleet/netrc"
    # How it is reached changes no code.
    assert asked.key == plain.key and asked.environment == plain.environment


def test_a_cmake_off_the_usual_path_is_found_last() -> None:
    odd = replace(HOST, cmake=Tool("/opt/tools/bin/cmake", "4.1.0"))
    assert build_of(odd).config.environment["PATH"].endswith("/sbin:/bin:/opt/tools/bin")
    usual = replace(HOST, cmake=Tool("/usr/bin/cmake", "3.25.1"))
    assert build_of(usual).config.environment["PATH"].endswith("/sbin:/bin")


def test_the_environment_does_not_change_with_the_free_memory() -> None:
    busy = build_of(replace(HOST, memory_available_mib=2100))
    assert busy.config.jobs == 1 and busy.config.environment == build_of(HOST).config.environment


@pytest.mark.parametrize(
    ("cxx", "cc"),
    [
        ("/usr/bin/g++", "/usr/bin/gcc"),
        ("/usr/bin/g++-12", "/usr/bin/gcc-12"),
        ("/usr/bin/x86_64-linux-gnu-g++-12", "/usr/bin/x86_64-linux-gnu-gcc-12"),
        ("/usr/bin/clang++", "/usr/bin/clang"),
        ("/usr/lib/llvm-15/bin/clang++-15", "/usr/lib/llvm-15/bin/clang-15"),
        ("/usr/bin/c++", None),
        ("/opt/g++-12/bin/cxx", None),
    ],
)
def test_the_c_compiler_beside_a_cxx_compiler(cxx: str, cc: str | None) -> None:
    assert sibling_c_compiler(cxx) == cc


def test_no_c_compiler_is_set_where_its_name_does_not_follow() -> None:
    odd = replace(HOST, compilers=(replace(gcc(12)[0], path="/usr/bin/c++"),))
    assert "CC" not in build_of(odd).config.environment
    assert (
        build_of(replace(HOST, compilers=clang(20))).config.environment["CC"] == "/usr/bin/clang-20"
    )


@pytest.mark.parametrize(
    ("asked", "cores", "memory", "backend", "expected"),
    [
        (None, 16, 64000, "cuda", 16),
        (None, 16, 8192, "cuda", 4),
        (None, 16, 8192, "cpu", 8),
        (None, 2, 24000, "cpu", 2),
        (None, 16, 100, "cuda", 1),
        (None, 1, 0, "cpu", 1),
        (3, 16, 64000, "cuda", 3),
        (32, 16, 64000, "cuda", 16),
        (8, 16, 4096, "cuda", 2),
    ],
)
def test_jobs(asked: int | None, cores: int, memory: int, backend: Any, expected: int) -> None:
    assert jobs(Settings(jobs=asked), cores, memory, backend) == expected


def test_first_build() -> None:
    made = build_of(HOST)
    assert (made.action, made.reason) == ("build", "nothing was built on this host yet")
    assert made.python == "/usr/bin/python3.11"


BUILD = build_of(HOST)
KEY = BUILD.fingerprint
DONE = with_builds(HOST, there(BUILD))
OLD = replace(
    HOST,
    jobs=(built(BUILD),),
    versions=(KEY,),
    builds={KEY: Build(KEY, runs=True, libraries=LIBRARIES)},
    current=KEY,
)
"""Built by code that left its proof in the job's folder."""


def test_a_build_s_job() -> None:
    job = build_of(HOST, build_timeout_minutes=7).job
    assert job == JobPlan(
        kind="build",
        key=BUILD.fingerprint,
        folder=f"/var/lib/llamafleet/build/{BUILD.fingerprint}",
        config=f"/etc/llamafleet/jobs/build-{BUILD.fingerprint}.json",
        python="/usr/bin/python3.11",
        minutes=7,
        start=True,
    )
    assert not job.root, "nothing that is built runs as root"


def test_a_finished_build_is_never_built_again() -> None:
    made = build_of(DONE)
    assert (made.action, made.reason, made.job) == ("none", "built and active", None)
    assert (made.name, made.proof) == (KEY, f"/opt/llamafleet/versions/{KEY}/build.json")


def test_a_finished_build_that_is_not_current_is_switched_to_once_it_is_proven() -> None:
    for current in (None, "0123456789abcdef"):
        made = plan(replace(DONE, current=current))
        assert made.build and (made.build.action, made.build.job) == ("none", None)
        assert made.switch and (made.switch.name, made.switch.proven) == (KEY, False)
    assert plan(DONE).switch is None


@pytest.mark.parametrize("stamp", [None, "unreadable", "failed"])
def test_what_became_of_a_later_attempt_says_nothing_of_a_whole_build(stamp: str | None) -> None:
    jobs = {
        None: (),
        "unreadable": (Job("build", KEY, alive=False, unreadable="found nothing"),),
        "failed": (built(BUILD, ok=False, error=JobError(phase="compile")),),
    }[stamp]
    assert build_of(replace(DONE, jobs=jobs)).action == "none"


GONE, OTHER = "libllama.so is gone", "libllama.so differs"
LIBRARY = next(iter(LIBRARIES))
DAMAGED: dict[str, tuple[Build, str]] = {
    "library gone": (replace(there(BUILD), libraries={}), GONE),
    "library overwritten": (replace(there(BUILD), libraries={LIBRARY: "b" * 64}), OTHER),
    "library added": (
        replace(there(BUILD), libraries={**LIBRARIES, "lib/libggml-evil.so": "c" * 64}),
        "libggml-evil.so was added",
    ),
    "interpreter gone": (replace(there(BUILD), runs=False), "its interpreter does not run"),
    "another build's proof": (
        replace(there(BUILD), stamp=replace(there(BUILD).stamp, key="0" * 16)),  # type: ignore[type-var]
        "its proof is that of build 0000000000000000",
    ),
    "nothing made": (replace(there(BUILD), product=None), "its proof names no libraries"),
    "made elsewhere": (there(BUILD, machine_id="f" * 32), "it was made on another machine"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_build_is_built_again_beside_it(damage: str) -> None:
    build, why = DAMAGED[damage]
    made = build_of(with_builds(HOST, build))
    assert made.action == "build" and made.reason == f"the build {KEY} is damaged: {why}"
    assert made.config.prefix == f"/opt/llamafleet/versions/{KEY}-2"
    # The one after that is taken as it is, and not by its folder's name.
    again = build_of(with_builds(HOST, build, there(BUILD, f"{KEY}-2"), current=KEY))
    assert (again.action, again.name) == ("none", f"{KEY}-2")
    assert again.reason == f"built; current is {KEY}"


@pytest.mark.parametrize(
    ("nvcc", "capability", "again"),
    [("13.2.78", "12.0", True), ("", "12.0", True), ("13.2.86", "12.0", False), ("", "8.9", False)],
)
def test_a_build_of_a_compiler_that_makes_wrong_code_is_built_again(
    nvcc: str, capability: str, again: bool
) -> None:
    """With the same options, so with the same fingerprint: the toolkit of that version is another
    now. Where the compiler was not told, it may have been one of them."""
    host = replace(
        HOST,
        gpus=(gpu(capability),),
        driver=driver("590", cuda="13.2"),
        toolkits=(replace(toolkit("13.2"), build="13.2.86"),),
    )
    build = there(build_of(host))
    assert build.product is not None
    made = build_of(with_builds(host, replace(build, product=replace(build.product, nvcc=nvcc))))
    assert made.action == ("build" if again else "none")
    assert ("it was compiled by" in made.reason and "iq3_s" in made.reason) is again


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_build_is_discarded_when_the_next_is_proven(damage: str) -> None:
    host = with_builds(HOST, DAMAGED[damage][0], there(BUILD, f"{KEY}-2"), current=KEY)
    first = plan(host)
    assert first.discard == () and first.switch and not first.switch.proven
    done = plan(replace(host, result=proven(first.verify)))
    assert done.switch and done.switch.proven and done.discard == (KEY,)
    switched = plan(replace(host, result=proven(first.verify), current=f"{KEY}-2"))
    assert switched.switch is None and switched.discard == (KEY,)


def test_no_name_is_taken_twice() -> None:
    names = (KEY, f"{KEY}-2", f"{KEY}-10", f"{KEY}-x", "0" * 16)
    made = build_of(replace(HOST, versions=names))
    assert made.action == "build" and made.name == f"{KEY}-3"
    assert names_of(KEY, names) == [KEY, f"{KEY}-2", f"{KEY}-10"]


def test_a_rebuild_is_made_beside_what_is_there() -> None:
    made = build_of(DONE, rebuild=True)
    assert (made.action, made.reason) == ("build", "rebuild is set")
    assert made.name == f"{KEY}-2" and made.fingerprint == KEY
    # The newer one is then the planned one.
    newer = there(BUILD, f"{KEY}-2", finished=200.0)
    assert build_of(with_builds(DONE, newer, current=KEY)).name == f"{KEY}-2"
    running = Job("build", KEY, alive=True)
    assert build_of(replace(DONE, jobs=(running,)), rebuild=True).action == "attach"


def test_a_running_build_is_attached_to() -> None:
    running = Job("build", KEY, alive=True)
    made = build_of(replace(HOST, jobs=(running,)))
    assert made.action == "attach" and made.job and not made.job.start
    begun = with_builds(DONE, Build(f"{KEY}-2"), current=KEY)
    assert build_of(replace(begun, jobs=(running,))).name == f"{KEY}-2"


# What older code built, whose proof is the stamp in the job's folder


def test_a_build_of_older_code_is_taken_as_it_is() -> None:
    made = build_of(OLD)
    assert (made.action, made.reason) == ("none", "built and active")
    assert made.proof == f"/var/lib/llamafleet/build/{KEY}/stamp.json"
    job = replace(OLD.jobs[0], product=there(BUILD).product)
    assert build_of(replace(OLD, jobs=(job,))).action == "none"
    damaged = {KEY: Build(KEY, runs=True, libraries={})}
    again = build_of(replace(OLD, jobs=(job,), builds=damaged))
    assert again.action == "build" and again.reason.endswith(GONE)
    assert build_of(replace(OLD, builds={KEY: Build(KEY, runs=False)})).action == "build"


def test_the_stamp_of_a_later_attempt_is_no_proof_of_the_folder_of_before() -> None:
    """It names its machine, which code of before did not."""
    job = OLD.jobs[0]
    assert job.stamp
    machine = "0" * 32
    later = replace(job, stamp=replace(job.stamp, machine_id=machine))
    assert build_of(replace(OLD, machine_id=machine)).action == "none"
    assert build_of(replace(OLD, machine_id=machine, jobs=(later,))).action == "build"


def test_a_failed_build_is_tried_again() -> None:
    failed = built(BUILD, ok=False, error=JobError(phase="compile"))
    made = build_of(replace(OLD, jobs=(failed,)))
    assert made.action == "build" and "failed in phase compile" in made.reason
    assert made.name == f"{KEY}-2"


def test_a_build_that_died_is_tried_again() -> None:
    died = Job("build", BUILD.fingerprint, alive=False)
    made = build_of(replace(HOST, jobs=(died,)))
    assert made.action == "build" and "without a word" in made.reason


def test_a_build_whose_only_stamp_can_not_be_read_is_made_again() -> None:
    odd = Job("build", BUILD.fingerprint, alive=False, unreadable="version: found 2, expected 1")
    made = build_of(replace(OLD, jobs=(odd,)))
    assert made.action == "build"
    assert made.reason == (
        "the stamp of the last attempt can't be read (version: found 2, expected 1)"
    )


def test_a_build_whose_files_are_gone_is_built_again() -> None:
    made = build_of(replace(OLD, versions=(), builds={}))
    assert made.action == "build" and "gone" in made.reason


def test_the_reason_of_a_rebuild_is_what_differs_from_the_active_one() -> None:
    older = build_of(HOST, llama_version="0.3.34", llama_sha256="0" * 64)
    newest = built(older)
    host = replace(OLD, jobs=(built(BUILD, finished=50.0), newest))
    made = build_of(host, llama_version="0.3.37", llama_sha256="1" * 64)
    assert made.action == "build" and "llama_version 0.3.36 -> 0.3.37" in made.reason
    # Neither a failed build nor another kind of job is what the host runs.
    failed = replace(built(BUILD, ok=False, finished=300.0), key="f" * 16)
    wheels = installed("13.0", finished=200.0)
    host = replace(host, jobs=(*host.jobs, failed, wheels))
    made = build_of(replace(host, current=None), llama_version="0.3.37", llama_sha256="1" * 64)
    assert "llama_version 0.3.34 -> 0.3.37" in made.reason


def test_a_build_of_wheels_is_the_same_before_and_after_their_installation() -> None:
    root = "/opt/llamafleet/toolkits/cuda-13.0"
    after = replace(
        GPU_HOST,
        toolkits=(toolkit("13.0", root),),
        jobs=(installed("13.0"),),
    )
    assert build_of(after).fingerprint == build_of(GPU_HOST).fingerprint
