"""Driver, GPUs, C library and compiler -> toolkit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import Driver, Job, Toolkit
from llamafleet.plans.plan import Problem, ToolkitPlan
from llamafleet.plans.toolkit.compatibility import newest_cuda
from llamafleet.settings import Settings
from tests.plans.driver.test_verdict import UPDATED, failing
from tests.plans.hosts import (
    GPU_HOST,
    LAYOUT,
    chosen,
    clang,
    driver,
    gcc,
    gpu,
    installed,
    only_problem,
    plan,
    refused,
    toolkit,
    toolkit_for,
)

ALL = tuple(toolkit(v) for v in ("11.8", "12.0", "12.2", "12.4", "12.8", "13.0", "13.1", "13.5"))
OWN = LAYOUT.toolkit("13.0")
INSTALLED = replace(
    GPU_HOST,
    toolkits=(toolkit("13.0", OWN),),
    jobs=(installed("13.0"),),
)


@pytest.mark.parametrize(
    ("branch", "version"),
    [("535", "12.2"), ("550", "12.4"), ("570", "12.8"), ("580", "13.0"), ("590", "13.1")],
)
def test_the_newest_toolkit_that_the_driver_runs_natively(branch: str, version: str) -> None:
    made = chosen(replace(GPU_HOST, driver=driver(branch), toolkits=ALL))
    assert (made.version, made.method, made.install) == (version, "present", False)
    assert made.root == f"/usr/local/cuda-{version}" and made.libdir == f"{made.root}/lib64"


def test_a_driver_older_than_every_toolkit() -> None:
    problem = refused(replace(GPU_HOST, driver=driver("470"), toolkits=ALL))
    assert problem.check == "driver"
    assert "CUDA 11.4" in problem.found and "CUDA 11.8" in problem.expected
    assert "shows CUDA 11.8 or newer, as 520.61.05 or newer does (11.8)" in problem.next


def test_a_newer_minor_than_the_drivers_is_ruled_out() -> None:
    made = chosen(replace(GPU_HOST, toolkits=ALL))
    ruled = dict(made.ruled_out)
    assert "the driver runs CUDA up to 13.0" in ruled["13.1"]
    assert "the driver runs CUDA up to 13.0" in ruled["13.5"]
    assert ruled["12.8"] == "older than the chosen one"
    assert "accepts gcc up to 11, not 12" in ruled["11.8"]
    assert "13.0" not in ruled


def test_every_other_version_has_a_reason() -> None:
    made = chosen(GPU_HOST)
    assert len(made.ruled_out) == 15 and all(why for _, why in made.ruled_out)


@pytest.mark.parametrize(
    ("found", "cuda"),
    [
        (driver("570"), "12.8"),
        (driver("570", cuda=None), "12.6"),
        (Driver(module="570.124.06"), "12.8"),
        (driver("580", cuda=None), "13.0"),
        (driver("590", cuda=None), "13.1"),
        (Driver(module="520.61.05"), "11.8"),
        (Driver(module="525.60.13"), "12.0"),
        (Driver(library="525.60.12"), "11.8"),
        (Driver(module="580.65.05"), "12.9"),
    ],
)
def test_without_nvidia_smis_word_the_documented_floors_count(found: Driver, cuda: str) -> None:
    newest = newest_cuda(found)
    assert newest is not None and newest[0] == cuda


@pytest.mark.parametrize("found", [Driver(), Driver(smi="470.256.02", smi_state="ok")])
def test_a_driver_of_which_nothing_is_known(found: Driver) -> None:
    assert newest_cuda(found) is None
    problem = refused(replace(GPU_HOST, driver=found))
    assert problem.check == "driver" and "520.61.05" in problem.expected


@pytest.mark.parametrize(
    ("compiler", "version"), [(11, "13.1"), (13, "13.1"), (14, "13.1"), (15, "13.1"), (16, None)]
)
def test_the_compiler_rules_out_toolkits(compiler: int, version: str | None) -> None:
    host = replace(GPU_HOST, driver=driver("590"), toolkits=ALL, compilers=gcc(compiler))
    made = toolkit_for(host)
    if version is None:
        assert isinstance(made, Problem) and made.check == "compiler"
        assert made.next == "sudo apt install g++-15"
    else:
        assert not isinstance(made, Problem) and made.version == version


@pytest.mark.parametrize(("major", "version"), [(12, "12.2"), (13, "12.4"), (14, "12.8")])
def test_a_newer_gcc_needs_a_newer_toolkit(major: int, version: str) -> None:
    old = tuple(toolkit(v) for v in ("11.8", "12.2", "12.4", "12.8"))
    tks = tuple(t for t in old if t.version <= version)
    host = replace(GPU_HOST, driver=driver("570"), toolkits=tks, compilers=gcc(major))
    assert chosen(host).version == version
    host = replace(host, toolkits=tks[:-1], compilers=gcc(major + 1))
    assert isinstance(toolkit_for(host, toolkit_method="present"), Problem)


def test_a_compiler_too_new_names_the_one_to_install_for_this_driver() -> None:
    host = replace(GPU_HOST, driver=driver("570"), compilers=gcc(15, 16), toolkits=ALL)
    problem = refused(host)
    assert problem.check == "compiler" and problem.next == "sudo apt install g++-14"
    elsewhere = refused(replace(host, package_manager="pacman"))
    assert "g++-14" in elsewhere.next and "apt" not in elsewhere.next
    rocky = refused(replace(host, package_manager="dnf", os_like=("rhel", "centos", "fedora")))
    assert rocky.next == "sudo dnf install gcc-toolset-14-gcc-c++"
    fedora = refused(replace(host, package_manager="dnf", os_id="fedora"))
    assert "toolset" not in fedora.next


def test_a_compiler_too_old_is_told_the_range() -> None:
    problem = refused(replace(GPU_HOST, driver=driver("550"), compilers=gcc(8)))
    assert problem.expected.startswith("gcc 11 to 13, ")


def test_no_toolkit_for_the_only_gpu_does_not_advise_to_leave_it_out() -> None:
    host = replace(GPU_HOST, glibc="2.41", gpus=(gpu("6.1"),), compilers=gcc(14))
    assert refused(host).next == "use a distribution with an older glibc"
    two = replace(host, gpus=(gpu("6.1"), gpu("8.9", index=1)))
    assert refused(two).next.startswith("set compute_capabilities")


def test_an_older_compiler_or_clang_beside_it_will_do() -> None:
    both = replace(GPU_HOST, toolkits=(toolkit("13.0"),), compilers=gcc(16, 14))
    assert chosen(both).version == "13.0"
    assert chosen(replace(both, compilers=gcc(16) + clang(20))).version == "13.0"
    assert refused(replace(both, compilers=gcc(16) + clang(21))).check == "compiler"


def test_an_unsupported_compiler_on_request() -> None:
    host = replace(GPU_HOST, toolkits=(toolkit("13.0"),), compilers=gcc(16))
    assert chosen(host, allow_unsupported_compiler=True).version == "13.0"


@pytest.mark.parametrize(
    ("glibc", "version"), [("2.36", "13.5"), ("2.40", "13.5"), ("2.42", "13.5"), ("2.43", "13.5")]
)
def test_the_newest_toolkits_go_with_every_glibc(glibc: str, version: str) -> None:
    host = replace(GPU_HOST, glibc=glibc, driver=driver(cuda="13.5"), toolkits=ALL)
    assert chosen(host).version == version


@pytest.mark.parametrize(
    ("glibc", "present", "fits"),
    [
        ("2.40", "12.8", True),
        ("2.41", "12.8", False),
        ("2.41", "13.0", True),
        ("2.41", "13.1", True),
        ("2.42", "13.0", False),
        ("2.42", "13.1", False),
        ("2.42", "13.2", True),
    ],
)
def test_headers_that_clash_with_glibc(glibc: str, present: str, fits: bool) -> None:
    host = replace(GPU_HOST, glibc=glibc, driver=driver(cuda="13.2"), toolkits=(toolkit(present),))
    made = toolkit_for(host, toolkit_method="present")
    assert (not isinstance(made, Problem)) == fits
    if isinstance(made, Problem):
        assert f"clash with glibc {glibc}" in made.found


def test_a_glibc_too_new_for_the_drivers_toolkits_asks_for_a_driver() -> None:
    problem = refused(replace(GPU_HOST, glibc="2.41", driver=driver("570"), toolkits=ALL))
    assert problem.check == "driver" and "13.0" in problem.expected
    assert "580.65.06" in problem.next


def test_another_c_library_has_no_toolkit() -> None:
    problem = refused(replace(GPU_HOST, glibc=None, toolkits=ALL))
    assert problem.check == "glibc" and "glibc" in problem.next


@pytest.mark.parametrize(
    ("capabilities", "version"),
    [
        (("8.9",), "13.0"),
        (("7.5", "12.0"), "13.0"),
        (("6.1",), "12.8"),
        (("7.0", "8.9"), "12.8"),
        (("6.1", "12.0"), "12.8"),
        (("3.5",), "11.8"),
    ],
)
def test_the_gpus_rule_out_toolkits(capabilities: tuple[str, ...], version: str) -> None:
    gpus = tuple(gpu(c, index=i) for i, c in enumerate(capabilities))
    host = replace(GPU_HOST, gpus=gpus, toolkits=ALL, compilers=gcc(11, 12))
    assert chosen(host).version == version


def test_a_gpu_newer_than_the_drivers_toolkits_asks_for_a_driver() -> None:
    problem = refused(replace(GPU_HOST, gpus=(gpu("12.0"),), driver=driver("550"), toolkits=ALL))
    assert problem.check == "driver" and "CUDA 12.8" in problem.expected


def test_gpus_that_no_toolkit_knows_together() -> None:
    problem = refused(replace(GPU_HOST, gpus=(gpu("3.5"), gpu("12.0", index=1)), toolkits=ALL))
    assert problem.check == "toolkit" and "set compute_capabilities" in problem.next
    assert "13.0: does not know compute capability 3.5" in problem.expected


@pytest.mark.parametrize("part", ["nvcc", "cudart", "cublas", "cccl"])
def test_an_incomplete_toolkit_is_ruled_out_by_name(part: str) -> None:
    made = chosen(replace(GPU_HOST, toolkits=(toolkit("13.0", lacks=part),)))
    assert made.method == "wheels" and made.install and made.root == OWN
    assert ("13.0", f"/usr/local/cuda-13.0: incomplete, lacks {part}") in made.ruled_out


def test_a_complete_older_one_wins_over_an_incomplete_newer_one() -> None:
    host = replace(GPU_HOST, toolkits=(toolkit("13.0", lacks="cublas"), toolkit("12.8")))
    made = chosen(host)
    assert made.version == "12.8" and "lacks cublas" in dict(made.ruled_out)["13.0"]


def test_a_toolkit_of_an_unknown_version_is_not_used() -> None:
    made = chosen(replace(GPU_HOST, toolkits=(toolkit("12.7"),)))
    assert made.method == "wheels"
    assert "not among the known versions" in dict(made.ruled_out)["12.7"]


def test_wheels_where_nothing_is_there() -> None:
    made = chosen(GPU_HOST)
    assert (made.version, made.root, made.libdir) == ("13.0", OWN, f"{OWN}/lib")
    assert made.method == "wheels" and made.install


MINORS = ("13.0", "13.1", "13.2", "13.3", "13.4", "13.5")


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize(("cuda", "version"), [*zip(MINORS, MINORS, strict=True), ("13.9", "13.5")])
def test_wheels_of_the_newest_minor_that_the_driver_runs(
    cuda: str, version: str, arch: str
) -> None:
    made = chosen(replace(GPU_HOST, driver=driver("590", cuda=cuda), arch=arch))
    assert (made.version, made.root) == (version, LAYOUT.toolkit(version))
    assert made.method == "wheels" and made.install


@pytest.mark.parametrize(
    ("changes", "cuda", "version"),
    [
        ({"compilers": gcc(16)}, "13.5", "13.5"),
        ({"compilers": gcc(16)}, "13.3", None),
        ({"compilers": clang(22)}, "13.4", "13.4"),
        ({"compilers": clang(22)}, "13.3", None),
        ({"glibc": "2.42"}, "13.3", "13.3"),
        ({"glibc": "2.42"}, "13.1", None),
        ({"gpus": (gpu("10.7"),)}, "13.4", "13.4"),
        ({"gpus": (gpu("10.7"),)}, "13.3", None),
    ],
)
def test_wheels_that_the_rest_of_the_host_rules_out(
    changes: dict[str, Any], cuda: str, version: str | None
) -> None:
    made = toolkit_for(replace(GPU_HOST, driver=driver("590", cuda=cuda), **changes))
    if version is None:
        assert isinstance(made, Problem)
    else:
        assert isinstance(made, ToolkitPlan) and (made.version, made.method) == (version, "wheels")


def test_wheels_never_tried_on_a_machine_say_so() -> None:
    assert "UNVERIFIED" in chosen(replace(GPU_HOST, arch="aarch64")).reason


def test_a_method_that_may_not_be_used_leaves_an_advice_on_the_driver_too() -> None:
    problem = refused(replace(GPU_HOST, driver=driver("570")), toolkit_method="wheels")
    assert problem.check == "toolkit" and "CUDA 12.8" in problem.expected
    assert "by hand and set toolkit_root, as '/usr/local/cuda-12.8'" in problem.next
    assert "580.65.06 or newer does (13.0) and let wheels do it" in problem.next
    dropped = refused(replace(GPU_HOST, gpus=(gpu("6.1"),)), toolkit_method="wheels")
    assert "CUDA 12.9" in dropped.expected and "wheels do it" not in dropped.next


def test_the_root_of_the_settings_wins() -> None:
    made = chosen(replace(GPU_HOST, toolkits=ALL), toolkit_root="/usr/local/cuda-12.4/")
    assert made.root == "/usr/local/cuda-12.4" and made.version == "12.4"
    assert "toolkit_root" in dict(made.ruled_out)["13.0"]


def test_the_root_of_the_settings_may_be_another_name_of_it() -> None:
    named = replace(toolkit("13.0"), names=("/usr/local/cuda",))
    host = replace(GPU_HOST, toolkits=(named, toolkit("12.8")))
    assert chosen(host, toolkit_root="/usr/local/cuda").root == "/usr/local/cuda-13.0"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ((), "no toolkit anywhere"),
        ((toolkit("13.0"),), "/usr/local/cuda-13.0"),
        ((toolkit("13.0", "/opt/cuda", lacks="cublas"),), "lacks cublas"),
        ((toolkit("13.1", "/opt/cuda"),), "the driver runs CUDA up to 13.0"),
    ],
)
def test_a_root_of_the_settings_that_will_not_do(found: tuple[Toolkit, ...], why: str) -> None:
    problem = refused(replace(GPU_HOST, toolkits=found), toolkit_root="/opt/cuda")
    assert problem.check == "toolkit" and why in problem.found
    assert "/opt/cuda" in problem.expected


def test_the_version_of_the_settings() -> None:
    assert chosen(replace(GPU_HOST, toolkits=ALL), toolkit_version="12.4").version == "12.4"
    other = refused(GPU_HOST, toolkit_version="12.4", toolkit_method="present")
    assert other.check == "toolkit"
    newer = refused(replace(GPU_HOST, toolkits=ALL), toolkit_version="13.1")
    assert newer.check == "driver" and "CUDA 13.1" in newer.next


def test_a_version_of_the_settings_that_does_not_know_the_gpu() -> None:
    problem = refused(replace(GPU_HOST, gpus=(gpu("12.0"),), toolkits=ALL), toolkit_version="12.4")
    assert problem.check == "toolkit" and "toolkit_version = '12.4'" in problem.found
    assert problem.next.startswith("remove toolkit_version")


def test_an_installed_toolkit_of_wheels_is_used() -> None:
    made = chosen(INSTALLED)
    assert made.method == "wheels" and not made.install
    assert (made.root, made.libdir) == (chosen(GPU_HOST).root, chosen(GPU_HOST).libdir)


@pytest.mark.parametrize(
    "changes",
    [
        {"jobs": ()},
        {"jobs": (installed("13.0", ok=False),)},
        {"jobs": (Job("toolkit", "13.0", alive=True),)},
        {"toolkits": ()},
        {"toolkits": (toolkit("13.0", OWN, lacks="cublas"),)},
    ],
)
def test_a_half_installed_toolkit_of_wheels_is_installed(changes: dict[str, Any]) -> None:
    assert chosen(replace(INSTALLED, **changes)).install


def test_an_installed_toolkit_of_wheels_is_kept_beside_an_older_or_equal_one() -> None:
    for beside in ("12.8", "13.0"):
        host = replace(INSTALLED, toolkits=(*INSTALLED.toolkits, toolkit(beside)))
        assert chosen(host).root == OWN
    newer = replace(INSTALLED, driver=driver("590"))
    newer = replace(newer, toolkits=(*INSTALLED.toolkits, toolkit("13.1")))
    assert chosen(newer).version == "13.1"


@pytest.mark.parametrize("cuda", MINORS)
@pytest.mark.parametrize("method", ["auto", "wheels"])
def test_a_newer_driver_does_not_move_a_host_to_newer_wheels(cuda: str, method: str) -> None:
    before = plan(INSTALLED, toolkit_method=method)
    after = plan(replace(INSTALLED, driver=driver("590", cuda=cuda)), toolkit_method=method)
    assert after.toolkit and (after.toolkit.root, after.toolkit.install) == (OWN, False)
    assert before.build and after.build and before.build.fingerprint == after.build.fingerprint


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"driver": driver("590", cuda="13.4"), "gpus": (gpu("10.7"),)}, {}),
        ({"compilers": gcc(16)}, {}),
        ({"glibc": "2.42"}, {}),
        ({}, {"toolkit_version": "13.4"}),
        ({"jobs": ()}, {}),
        ({"jobs": (installed("13.0", ok=False),)}, {}),
        ({"jobs": (Job("toolkit", "13.0", alive=True),)}, {}),
        ({"toolkits": ()}, {}),
        ({"toolkits": (toolkit("13.0", OWN, lacks="cublas"),)}, {}),
    ],
)
def test_an_installed_toolkit_of_wheels_that_does_not_fit_gives_way_to_the_newest(
    changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    host = replace(INSTALLED, **{"driver": driver("590", cuda="13.4"), **changes})
    made = chosen(host, **settings)
    assert (made.version, made.method, made.install) == ("13.4", "wheels", True)


def test_of_two_installed_from_wheels_the_newest_that_fits() -> None:
    newer = (
        toolkit("13.1", LAYOUT.toolkit("13.1")),
        installed("13.1"),
    )
    both = replace(
        INSTALLED,
        toolkits=(*INSTALLED.toolkits, newer[0]),
        jobs=(*INSTALLED.jobs, newer[1]),
    )
    for cuda, version in (("13.5", "13.1"), ("13.1", "13.1"), ("13.0", "13.0")):
        made = chosen(replace(both, driver=driver("590", cuda=cuda)))
        assert (made.version, made.install) == (version, False)
    alone = replace(INSTALLED, toolkits=(newer[0],), jobs=(newer[1],))
    made = chosen(alone)
    assert (made.version, made.install) == ("13.0", True)


def test_only_present_ones_or_only_wheels_on_request() -> None:
    host = replace(GPU_HOST, toolkits=(toolkit("12.8"),))
    assert chosen(host, toolkit_method="wheels").method == "wheels"
    assert chosen(host, toolkit_method="present").root == "/usr/local/cuda-12.8"


def test_a_plan_names_the_toolkit_settings_as_they_are() -> None:
    made = plan(replace(GPU_HOST, toolkits=ALL))
    assert made.toolkit == chosen(replace(GPU_HOST, toolkits=ALL))
    assert Settings().toolkit_method == "auto"


def test_a_host_that_will_get_no_toolkit_is_told_so_before_it_is_rebooted() -> None:
    waiting = failing(**UPDATED)
    assert not plan(waiting, reboot="allow").problems
    problem = only_problem(plan(waiting, reboot="allow", toolkit_method="present"))
    assert problem.check == "toolkit" and "wheels: toolkit_method = 'present'" in problem.expected
    assert problem.next.startswith("change the setting named there")
    there = replace(waiting, toolkits=(toolkit("12.8"),))
    assert plan(there, reboot="allow", toolkit_method="present").reboot


# -- compilers that make wrong code ----------------------------------------------------------------

BLACKWELL = replace(
    GPU_HOST, gpus=(gpu("12.0"),), driver=driver("590", cuda="13.2"), compilers=gcc(13)
)
"""A host whose newest toolkit is 13.2, and whose GPU is one that two builds of it are wrong for."""


def of_build(build: str, root: str = "") -> Toolkit:
    return replace(toolkit("13.2", root), build=build)


@pytest.mark.parametrize("build", ["13.2.51", "13.2.78", ""])
def test_a_toolkit_that_makes_wrong_code_for_this_gpu_is_left(build: str) -> None:
    host = replace(BLACKWELL, toolkits=(toolkit("13.1"), of_build(build)))
    made = chosen(host)
    assert (made.version, made.root) == ("13.1", "/usr/local/cuda-13.1")
    why = dict(made.ruled_out)["13.2"]
    assert why.startswith("/usr/local/cuda-13.2: ") and "iq3_s" in why and "12.0" in why


def test_the_good_build_of_the_same_version_is_taken() -> None:
    host = replace(BLACKWELL, toolkits=(toolkit("13.1"), of_build("13.2.86")))
    assert chosen(host).root == "/usr/local/cuda-13.2"


@pytest.mark.parametrize("build", ["13.2.51", "13.2.78", ""])
def test_other_gpus_are_not_concerned(build: str) -> None:
    host = replace(BLACKWELL, gpus=(gpu("8.9"),), toolkits=(of_build(build),))
    assert chosen(host).root == "/usr/local/cuda-13.2"


def test_one_such_gpu_among_others_is_enough() -> None:
    host = replace(
        BLACKWELL, gpus=(gpu("8.9"), gpu("12.0", index=1)), toolkits=(of_build("13.2.78"),)
    )
    made = chosen(host)
    assert (made.version, made.method, made.install) == ("13.2", "wheels", True)
    assert "nvcc 13.2.78" in dict(made.ruled_out)["13.2"]


def test_a_toolkit_that_was_asked_for_and_makes_wrong_code_is_a_problem() -> None:
    host = replace(BLACKWELL, toolkits=(of_build("13.2.78", "/opt/cuda"),))
    problem = refused(host, toolkit_root="/opt/cuda")
    assert problem.check == "toolkit"
    assert problem.found.startswith("CUDA 13.2, /opt/cuda: nvcc 13.2.78 computes iq1_s")
    assert problem.expected == "an nvcc that makes right code for 12.0"
    assert problem.next == (
        "install one of those that are right, or remove toolkit_root to let another be taken"
    )
    only = refused(host, toolkit_method="present")
    assert only.found == problem.found and "remove toolkit_method" in only.next


def test_the_runfile_of_a_release_that_makes_wrong_code_is_not_offered() -> None:
    problem = refused(BLACKWELL, toolkit_method="runfile", toolkit_version="13.2")
    assert problem.found.startswith("CUDA 13.2, by runfile: nvcc 13.2.78 computes")
    assert "remove toolkit_version and toolkit_method" in problem.next
    older = chosen(BLACKWELL, toolkit_method="runfile")
    assert (older.version, older.install) == ("13.1", True)
    assert dict(older.ruled_out)["13.2"].startswith("by runfile: nvcc 13.2.78 computes")
    elsewhere = replace(BLACKWELL, gpus=(gpu("8.9"),))
    assert chosen(elsewhere, toolkit_method="runfile").version == "13.2"
