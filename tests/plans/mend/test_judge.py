"""What is said of an environment, by what was found: each kind of fault, and no false alarm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.plans.mend.judge import Cached, Code, Facts, Finding, judge
from llamafleet.plans.mend.plan import explain, plan_mending
from llamafleet.protocol.environment import Copy, Distribution, Environment, Look, Trial
from llamafleet.protocol.result import failed
from tests.history import RESULT
from tests.plans.hosts import CPU_HOST, GPU_HOST, driver, plan, toolkit

SITE = "/home/ada/env/lib/python3.11/site-packages"
LIBRARIES = {"lib/libllama.so": 1, "lib/libggml-base.so": 1, "lib/libggml-cpu.so": 1}
CUDA = {**LIBRARIES, "lib/libggml-cuda.so": 1}
FOR_4090 = Code(held=("sm_89", "compute_89"))
WITH_TOOLKIT = replace(GPU_HOST, toolkits=(toolkit("13.0"),))

ENVIRONMENT = Environment(
    executable="/home/ada/env/bin/python",
    version="3.11.2",
    prefix="/home/ada/env",
    base_prefix="/usr",
    base_executable="/usr/bin/python3.11",
    site=SITE,
    user_site="",
    owner=1000,
    externally_managed="",
    conda=False,
    conda_package="",
    uv="",
    editable="",
    pip="24.0",
    distributions=tuple(
        Distribution(name, "1.0", SITE, "a" * 64)
        for name in ("diskcache", "jinja2", "llama-cpp-python", "markupsafe", "numpy")
    ),
)


def copy(libraries: dict[str, int], **changes: Any) -> Copy:
    told = {"folder": f"{SITE}/llama_cpp", "by": "environment", "version": "0.3.36", **changes}
    return Copy(libraries=libraries, **told)


def imported(offload: bool = True, *libraries: str) -> Trial:
    return Trial(True, "0.3.36", "", offload, "CUDA : ARCHS = 890", libraries)


def fails(error: str) -> Trial:
    return Trial(False, "", error, False, "", ())


def no_file(name: str) -> str:
    """As ctypes and llama_cpp/_ctypes_extensions.py say it (recorded, 0.3.36)."""
    return (
        f"RuntimeError: Failed to load shared library '{SITE}/llama_cpp/lib/libllama.so': {name}: "
        "cannot open shared object file: No such file or directory"
    )


def facts(*copies: Copy, host: Any = WITH_TOOLKIT, **changes: Any) -> Facts:
    """A CUDA build that is right on a 4090, but for what is changed."""
    there = copies if "look" not in changes else ()
    found = Look(there, there[0].folder if there else "", "/home/ada")
    told: dict[str, Any] = {
        "environment": ENVIRONMENT,
        "look": found,
        "trial": imported() if there else None,
        "machine": host,
        "plan": plan(host, accelerator="auto", scope="user"),
        "code": FOR_4090 if there and there[0].cuda else Code(),
    }
    return Facts(**{**told, **changes})


def red(found: Facts) -> list[Finding]:
    return [finding for finding in judge(found) if finding.red]


def only(found: Facts) -> Finding:
    (finding,) = red(found)
    return finding


def test_a_build_that_uses_the_gpu_is_right() -> None:
    found = facts(copy(CUDA), result=RESULT)
    assert judge(found) == ()
    assert "uses the GPU (PASS)" in explain(found, (), plan_mending(found, (), "0.3.36"))[0]


def test_a_build_for_the_cpu_is_right_where_there_is_no_gpu() -> None:
    found = facts(
        copy(LIBRARIES),
        host=CPU_HOST,
        trial=imported(False),
        result=replace(RESULT, verdict="CPU ONLY"),
    )
    assert judge(found) == ()
    said = explain(found, (), plan_mending(found, (), "0.3.36"))
    assert "there is no NVIDIA GPU here" in said[0]


def test_a_cpu_build_beside_a_gpu_is_exactly_that() -> None:
    finding = only(facts(copy(LIBRARIES), trial=imported(False)))
    assert finding.kind == "cpu_only" and "a build for the CPU alone" in finding.found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"variables": {"CMAKE_ARGS": "-DLLAMA_CUBLAS=on"}}, "LLAMA_CUBLAS is GGML_CUDA since"),
        (
            {
                "variables": {"CMAKE_ARGS": "-DGGML_CUDA=on"},
                "cached": (Cached("/c/a.whl", "pip", False),),
            },
            "pip takes the wheel of before, /c/a.whl, from its cache",
        ),
        ({"variables": {"CMAKE_ARGS": "-DGGML_CUDA=ON"}}, "asks for CUDA and had no effect"),
        ({"cached": (Cached("/c/a.whl", "uv", False),)}, "uv keeps such a wheel, /c/a.whl"),
        ({"cached": (Cached("/c/a.whl", "uv", True),)}, "pip builds for the CPU unless"),
        ({"variables": {"LLAMA_CUBLAS": "1"}}, "LLAMA_CUBLAS is set as a variable, which no"),
        ({}, "pip builds for the CPU unless CMAKE_ARGS says"),
    ],
)
def test_why_it_is_a_cpu_build(changes: dict[str, Any], why: str) -> None:
    assert why in only(facts(copy(LIBRARIES), trial=imported(False), **changes)).why


def test_a_ready_made_wheel_is_named() -> None:
    tag = "cp311-cp311-manylinux_2_17_x86_64"
    made = copy(LIBRARIES, tag=tag, generator="auditwheel")
    assert f"a ready-made wheel ({tag})" in only(facts(made, trial=imported(False))).why


def test_code_for_another_gpu() -> None:
    code = Code(held=("sm_80",), unserved=("8.9",))
    finding = only(facts(copy(CUDA), code=code))
    assert finding.kind == "architecture"
    assert "holds code for sm_80, and none that runs on compute capability 8.9" in finding.found


def test_ptx_alone_is_no_fault() -> None:
    found = facts(copy(CUDA), code=Code(("compute_80",), compiled_at_start=("8.9",)), result=RESULT)
    assert not red(found) and judge(found)[0].kind == "architecture"


@pytest.mark.parametrize(
    ("library", "toolkits", "kind", "why"),
    [
        (
            "libcudart.so.12",
            ("13.0",),
            "cuda_version",
            "built for CUDA 12; this machine has CUDA 13.0",
        ),
        ("libcublas.so.12", (), "cuda_version", "this machine has no CUDA toolkit"),
        ("libcudart.so.13", ("13.0",), "library", "the loader is not told where libcudart.so.13"),
        ("libgomp.so.1", ("13.0",), "library", "The loader finds no libgomp.so.1"),
        ("libcuda.so.1", ("13.0",), "library", "is the NVIDIA driver's"),
    ],
)
def test_a_library_that_is_not_found(
    library: str, toolkits: tuple[str, ...], kind: str, why: str
) -> None:
    host = replace(GPU_HOST, toolkits=tuple(map(toolkit, toolkits)))
    finding = only(facts(copy(CUDA), host=host, trial=fails(no_file(library))))
    assert finding.kind == kind and why in finding.why and library in finding.found


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            "OSError: /lib/libc.so.6: version `GLIBC_2.38' not found (required by x)",
            "built on a newer distribution",
        ),
        ("the interpreter ended with signal 4: no word", "CPU instructions that this CPU"),
        ("ModuleNotFoundError: No module named 'diskcache'", "Python package that is needed"),
        ("OSError: x.so: cannot allocate memory in static TLS block", "thread-local data"),
        ("ValueError: a word that nobody knows", "can't be used as it is"),
    ],
)
def test_an_import_that_fails(error: str, why: str) -> None:
    assert why in only(facts(copy(CUDA), trial=fails(error))).why


def test_a_cuda_build_where_no_gpu_is() -> None:
    found = facts(copy(CUDA), host=CPU_HOST, trial=fails(no_file("libcuda.so.1")))
    finding = only(found)
    assert "without an NVIDIA GPU a build for the CPU is right here" in finding.why
    mending = plan_mending(found, (finding,), "0.3.36")
    assert mending.needed and mending.backend == "cpu"


def test_a_runtime_newer_than_the_driver() -> None:
    host = replace(WITH_TOOLKIT, driver=driver("550"))
    trial = imported(False, "/usr/local/cuda-13.0/lib64/libcudart.so.13.0.96")
    finding = only(facts(copy(CUDA), host=host, trial=trial))
    assert finding.kind == "cuda_version"
    assert finding.why == "It was built for CUDA 13; the driver runs CUDA up to 12.4"


def test_a_gpu_that_is_hidden_is_shown_by_no_build() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    found = facts(copy(CUDA), trial=imported(False), variables=hidden)
    finding = only(found)
    assert finding.kind == "no_device" and finding.next == "unset CUDA_VISIBLE_DEVICES"
    assert not plan_mending(found, (finding,), "0.3.36").needed


def test_nothing_is_installed() -> None:
    found = facts()
    finding = only(found)
    assert finding.kind == "absent"
    assert plan_mending(found, (finding,), "0.3.36").needed


@pytest.mark.parametrize(
    ("by", "cure"),
    [
        ("PYTHONPATH", "unset PYTHONPATH"),
        ("current folder", "start Python in another folder"),
        ("user site", "export PYTHONNOUSERSITE=1"),
        ("other", "remove /x/llama_cpp"),
    ],
)
def test_another_copy_in_front(by: Any, cure: str) -> None:
    """No build mends that: the right one is there."""
    found = facts(copy(CUDA, folder="/x/llama_cpp", by=by), copy(CUDA), result=RESULT)
    finding = only(found)
    assert finding.kind == "shadowed" and cure in finding.next
    assert not plan_mending(found, (finding,), "0.3.36").needed


def test_another_copy_behind_is_worth_a_note() -> None:
    found = facts(copy(CUDA), copy(CUDA, folder="/x/llama_cpp", by="other"), result=RESULT)
    assert not red(found) and [f.kind for f in judge(found)] == ["duplicate"]


def test_a_file_that_is_gone() -> None:
    broken = copy(CUDA, missing=("llama_cpp/lib/libggml-cpu.so",))
    finding = only(facts(broken))
    assert finding.kind == "incomplete" and "libggml-cpu.so" in finding.found


def test_two_records_of_it() -> None:
    twice = (*ENVIRONMENT.distributions, Distribution("llama-cpp-python", "0.2.0", SITE, "b" * 64))
    found = facts(copy(CUDA), environment=replace(ENVIRONMENT, distributions=twice), result=RESULT)
    finding = only(found)
    assert "0.2.0 and 1.0" in finding.found and "pip uninstall -y llama-cpp-python" in finding.next
    without = replace(found, environment=replace(found.environment, pip=""))
    assert only(without).next.startswith("uv pip uninstall --python /home/ada/env/bin/python ")


def editable(libraries: dict[str, int], **changes: Any) -> Facts:
    sources = copy(libraries, folder="/home/ada/my src/llama_cpp", by="other", version="")
    environment = replace(ENVIRONMENT, editable="/home/ada/my src")
    return facts(sources, environment=environment, **changes)


def test_an_editable_installation_is_the_environments_own() -> None:
    """Neither absent, nor in front of it: nobody is told to remove his sources."""
    assert judge(editable(CUDA, result=RESULT)) == ()
    found = editable(LIBRARIES, trial=imported(False))
    assert only(found).kind == "cpu_only"
    (problem,) = plan_mending(found, judge(found), "0.3.36").problems
    assert "editable installation of /home/ada/my src" in problem.found


def test_a_folder_that_its_own_user_cant_write() -> None:
    """As on a file system that is mounted to be read: no other user could either."""
    found = facts(copy(LIBRARIES), trial=imported(False), writable=False)
    found = replace(found, environment=replace(ENVIRONMENT, owner=found.machine.uid))
    (problem,) = plan_mending(found, judge(found), "0.3.36").problems
    assert problem.next.startswith("findmnt -T ") and "sudo" not in problem.next


def test_a_path_with_blanks_can_be_typed() -> None:
    told = replace(ENVIRONMENT, executable="/home/ada/my env/bin/python", owner=4711)
    found = facts(copy(LIBRARIES), trial=imported(False), writable=False, environment=told)
    (problem,) = plan_mending(found, judge(found), "0.3.36").problems
    assert problem.next.endswith("--python '/home/ada/my env/bin/python'")


def test_a_gpu_that_is_not_asked_for_is_not_denied() -> None:
    found = facts(
        copy(LIBRARIES),
        trial=imported(False),
        plan=plan(WITH_TOOLKIT, accelerator="cpu", scope="user"),
        result=replace(RESULT, verdict="CPU ONLY"),
    )
    (said,) = explain(found, judge(found), plan_mending(found, judge(found), "0.3.36"))
    assert "accelerator = cpu" in said and "no NVIDIA GPU" not in said


def test_a_red_check_is_a_finding_with_its_words() -> None:
    check = failed("offload", "0 of 33 layers", "33 of 33", "build it")
    result = replace(RESULT, verdict="FAIL", gpus=(replace(RESULT.gpus[0], checks=(check,)),))
    found = facts(copy(CUDA), result=result)
    assert "offload: 0 of 33 layers" in only(found).found
    assert plan_mending(found, judge(found), "0.3.36").needed


def test_what_was_not_proven_is_not_right() -> None:
    assert only(facts(copy(CUDA), unproven="no index")).kind == "unproven"


def test_variables_and_caches_are_notes_where_the_build_is_right() -> None:
    found = facts(
        copy(CUDA),
        result=RESULT,
        variables={"LLAMA_CUBLAS": "1", "GGML_CUDA": "1", "CMAKE_ARGS": "-DLLAMA_CUDA=on"},
        cached=(Cached("/c/a.whl", "pip", False),),
    )
    assert not red(found)
    nexts = [finding.next for finding in judge(found)]
    assert nexts == [
        *("pip cache remove llama_cpp_python", "unset LLAMA_CUBLAS", "unset CMAKE_ARGS"),
        "unset GGML_CUDA",
    ]


# -- the plan --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requires", "said"),
    [
        (("numpy", "typing-extensions"), "  add typing-extensions"),
        (("numpy",), "  no other package changes"),
        ((), "  add what it needs and this environment lacks, named once it is built"),
    ],
)
def test_what_would_be_added_is_what_its_own_metadata_says(
    requires: tuple[str, ...], said: str
) -> None:
    found = facts(copy(LIBRARIES, requires=requires), trial=imported(False))
    assert said in explain(found, judge(found), plan_mending(found, judge(found), "0.3.36"))


def test_what_would_be_done_is_said() -> None:
    found = facts(copy(LIBRARIES, version="0.3.16"), trial=imported(False))
    said = "\n".join(explain(found, judge(found), plan_mending(found, judge(found), "0.3.36")))
    assert "plan: build llama-cpp-python 0.3.36 from source for the GPU" in said
    assert "with CUDA 13.0 at /usr/local/cuda-13.0" in said
    assert "-DCMAKE_CUDA_ARCHITECTURES=89" in said
    assert f"install that very wheel into {SITE}: 0.3.16 -> 0.3.36" in said


def test_the_place_of_an_environment_of_ones_own() -> None:
    """Nobody but root reaches one in root's home, and root gives up its rights to use it."""
    managed = replace(ENVIRONMENT, externally_managed="/usr/lib/python3.11/EXTERNALLY-MANAGED")
    machine = replace(WITH_TOOLKIT, user="root", uid=0)
    found = facts(copy(LIBRARIES), trial=imported(False), environment=managed, host=machine)
    (problem,) = plan_mending(found, judge(found), "0.3.36").problems
    assert problem.next.endswith(
        "python -m venv /opt/llama && llamafleet fix --venv /opt/llama --yes"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"externally_managed": "/usr/lib/python3.11/EXTERNALLY-MANAGED"},
            "python -m venv ~/llama",
        ),
        ({"conda_package": "/c/conda-meta/llama-cpp-python-1.json"}, "conda remove --force"),
    ],
)
def test_an_environment_that_is_not_the_users_to_change(
    changes: dict[str, Any], words: str
) -> None:
    environment = replace(ENVIRONMENT, **changes)
    machine = replace(WITH_TOOLKIT, user="ada", uid=1000)
    found = facts(copy(LIBRARIES), trial=imported(False), environment=environment, host=machine)
    (problem,) = plan_mending(found, judge(found), "0.3.36").problems
    assert words in problem.next


def test_one_that_cant_be_written() -> None:
    found = facts(copy(LIBRARIES), trial=imported(False), writable=False)
    (problem,) = plan_mending(found, judge(found), "0.3.36").problems
    assert "sudo -u '#1000' llamafleet fix --python" in problem.next


def test_what_stands_in_the_way_of_a_build_is_a_note_where_none_is_needed() -> None:
    host = replace(WITH_TOOLKIT, compilers=(), package_manager=None)
    found = facts(copy(CUDA), host=host, result=RESULT)
    assert found.plan.problems and not red(found)


def test_a_users_site_is_where_the_old_one_lies() -> None:
    """Of a Python that is no environment, as pip installs there without root."""
    home = replace(ENVIRONMENT, base_prefix=ENVIRONMENT.prefix, user_site="/home/ada/.local/lib")
    own = copy(LIBRARIES, folder="/home/ada/.local/lib/llama_cpp", by="user site")
    found = facts(own, environment=home, trial=imported(False), writable=False)
    mending = plan_mending(found, judge(found), "0.3.36")
    assert (mending.site, mending.scheme) == ("/home/ada/.local/lib", "user site")
    assert mending.needed and not mending.problems
