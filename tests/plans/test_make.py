"""The joined plan: all problems at once, and every check of a host red once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Tool
from llamafleet.layout import Layout
from llamafleet.plans.make import (
    explain,
    layout_for,
    make_plan,
)
from llamafleet.settings import Settings
from tests.plans.hosts import (
    CPU_HOST,
    GPU_HOST,
    build_of,
    driver,
    gcc,
    only_problem,
    plan,
    proven,
    there,
    toolkit,
    with_builds,
)


def pythons(*tools: tuple[str, str, bool]) -> HostSnapshot:
    return replace(CPU_HOST, pythons=tuple(Tool(*tool) for tool in tools))


def test_a_fitting_host_is_planned_to_the_end() -> None:
    made = plan()
    assert made.host == "lab-1" and made.problems == ()
    assert made.toolkit and made.toolkit.install and made.build and made.verify
    assert made.verify.config.inputs.fingerprint == made.build.fingerprint


def test_all_problems_at_once() -> None:
    host = replace(
        GPU_HOST,
        uid=1000,
        user="joe",
        arch="riscv64",
        pythons=(),
        compilers=(),
        package_manager=None,
        driver=driver(library="590.1"),
        disk_free_mib={"prefix": 10, "state": 20},
    )
    made = plan(host)
    assert [p.check for p in made.problems] == [
        "rights",
        "machine",
        "driver",
        "python",
        "compiler",
        "disk",
        "disk",
    ]
    assert all(p.found and p.expected and p.next for p in made.problems)


def test_a_host_that_could_not_be_read() -> None:
    unread = HostSnapshot(error="no shell answered")
    problem = only_problem(plan(unread))
    assert plan(unread).backend == "cuda" and plan(unread, accelerator="cpu").backend == "cpu"
    assert problem.check == "snapshot" and problem.found == "no shell answered"


def test_scope_system_without_root() -> None:
    host = replace(CPU_HOST, uid=1000, user="joe")
    problem = only_problem(plan(host, accelerator="auto"))
    assert problem.check == "rights" and "joe (uid 1000)" in problem.found
    assert "_sudo = True" in problem.next
    assert not plan(host, accelerator="auto", scope="user").problems


def test_a_machine_without_wheels() -> None:
    problem = only_problem(plan(replace(CPU_HOST, arch="armv7l"), accelerator="auto"))
    assert problem.check == "machine" and "armv7l" in problem.found


@pytest.mark.parametrize("version", ["3.10.0", "3.12.7", "3.14.2", "3.14.0rc1"])
def test_supported_pythons(version: str) -> None:
    host = pythons(("/usr/bin/python3", version, True))
    assert build_of(host, accelerator="auto").python == "/usr/bin/python3"


@pytest.mark.parametrize("version", ["3.9.18", "3.15.0", "2.7.18"])
def test_other_pythons(version: str) -> None:
    host = pythons(("/usr/bin/python3", version, True))
    problem = only_problem(plan(host, accelerator="auto"))
    assert problem.check == "python" and version in problem.found
    # The distribution's own is not a supported one: installing it would change nothing.
    assert problem.next == "install Python 3.10 to 3.14, and set python to its path"


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"package_manager": "apt"}, "sudo apt install python3"),
        ({"package_manager": "dnf", "os_id": "fedora"}, "sudo dnf install python3"),
        (
            {"package_manager": "dnf", "os_id": "rhel", "os_version": "9.6"},
            "sudo dnf install python3.12",
        ),
        (
            {"package_manager": "dnf", "os_like": ("rhel", "centos"), "os_version": "8.10"},
            "sudo dnf install python3.12",
        ),
        (
            {"package_manager": "dnf", "os_id": "rhel", "os_version": "10.0"},
            "sudo dnf install python3",
        ),
    ],
)
def test_command_that_installs_a_python(changes: dict[str, Any], command: str) -> None:
    host = replace(pythons(), **changes)
    assert only_problem(plan(host, accelerator="auto")).next == command


def test_no_python_and_no_package_manager() -> None:
    host = replace(pythons(), package_manager=None)
    problem = only_problem(plan(host, accelerator="auto"))
    assert problem.found == "no Python" and "install Python 3.10" in problem.next


def test_the_newest_python_that_the_building_account_may_run() -> None:
    host = pythons(
        ("/usr/bin/python3.11", "3.11.2", True),
        ("/usr/bin/python3.9", "3.9.2", True),
        ("/root/.pyenv/versions/3.13.1/bin/python3.13", "3.13.1", False),
    )
    assert build_of(host, accelerator="auto").python == "/usr/bin/python3.11"
    theirs = build_of(host, accelerator="auto", scope="user")
    assert theirs.python.endswith("python3.13")
    hidden = replace(host, pythons=host.pythons[2:])
    # Whoever may enter /root: no unit does.
    assert "units see nothing" in only_problem(plan(hidden, accelerator="auto")).found
    closed = pythons(("/srv/python/bin/python3.13", "3.13.1", False))
    assert "(not for every user)" in only_problem(plan(closed, accelerator="auto")).found


def test_the_python_of_the_settings() -> None:
    host = pythons(("/usr/bin/python3.11", "3.11.2", True), ("/usr/bin/python3.9", "3.9.2", True))
    asked = {"accelerator": "auto", "python": "/usr/bin/python3.11"}
    assert build_of(host, **asked).python == "/usr/bin/python3.11"
    for path in ("/usr/bin/python3.9", "/opt/python"):
        problem = only_problem(plan(host, accelerator="auto", python=path))
        assert path in problem.expected and "set python" in problem.next


CUDA_THERE = replace(GPU_HOST, toolkits=(toolkit("13.0"),))


@pytest.mark.parametrize(
    ("host", "settings", "prefix", "state"),
    [
        (CPU_HOST, {"accelerator": "auto"}, 600, 1580),
        (CPU_HOST, {"accelerator": "auto", "model": "/srv/m.gguf"}, 600, 1500),
        (CPU_HOST, {"accelerator": "auto", "model": "synthetic:7b-f16"}, 600, 14355),
        (CUDA_THERE, {}, 2000, 9650),
        (GPU_HOST, {}, 5000, 9650),
    ],
)
def test_disk(host: HostSnapshot, settings: dict[str, Any], prefix: int, state: int) -> None:
    def on(prefix: int, state: int) -> HostSnapshot:
        return replace(host, disk_free_mib={"prefix": prefix, "state": state})

    assert not plan(on(prefix, state), **settings).problems
    small = only_problem(plan(on(prefix - 1, state), **settings))
    assert small.check == "disk" and small.found == f"{prefix - 1} MiB free for prefix"
    assert small.expected == f"{prefix} MiB"
    small = only_problem(plan(on(prefix, state - 1), **settings))
    assert small.found == f"{state - 1} MiB free for state"
    both = prefix + state
    assert not plan(on(both, both), **settings).problems
    one = only_problem(plan(on(both - 1, both - 1), **settings))
    assert "prefix" in one.found and "state" in one.found and one.expected == f"{both} MiB"


def test_free_space_that_is_not_known() -> None:
    problem = only_problem(plan(replace(CPU_HOST, disk_free_mib={}), accelerator="auto"))
    assert problem.check == "disk" and problem.found.startswith("unknown MiB")


def test_a_host_with_nothing_to_do_needs_no_room() -> None:
    build = build_of(CUDA_THERE)
    first = plan(CUDA_THERE).verify
    assert first is not None
    full = replace(
        with_builds(CUDA_THERE, there(build)),
        result=proven(first),
        disk_free_mib={"prefix": 0, "state": 0},
    )
    assert not plan(full).problems
    # Verified again with the model that is there; and after a driver update that waits for a boot.
    assert not plan(full, context=512).problems
    assert [p.check for p in plan(replace(full, driver=driver(library="590.1"))).problems] == [
        "driver"
    ]


def test_a_compiler_too_old_for_anything() -> None:
    problem = only_problem(plan(replace(CPU_HOST, compilers=gcc(9)), accelerator="auto"))
    assert problem.check == "compiler"
    problem = only_problem(plan(replace(CUDA_THERE, compilers=gcc(16))))
    assert problem.check == "compiler" and "g++-15" in problem.next


def test_wheels_without_glibc() -> None:
    problem = only_problem(plan(replace(GPU_HOST, glibc=None)))
    assert problem.check == "glibc"
    assert not plan(replace(CPU_HOST, glibc=None), accelerator="auto").problems


def test_where_things_lie() -> None:
    assert layout_for(Settings(), CPU_HOST) == Layout.system()
    user = replace(CPU_HOST, home="/home/joe")
    assert layout_for(Settings(scope="user"), user) == Layout.user("/home/joe")
    made = make_plan("x", Settings(scope="user"), replace(GPU_HOST), Layout.user("/home/joe"))
    assert made.toolkit and made.toolkit.root.startswith("/home/joe/.local/share/llamafleet/")


def test_what_would_be_done_is_explained() -> None:
    lines = "\n".join(explain(plan()))
    assert "backend: cuda" in lines and "packages: none (all there)" in lines
    assert "toolkit: install CUDA 13.0 at /opt/llamafleet/toolkits/cuda-13.0" in lines
    assert "  not 13.1: the driver runs CUDA up to 13.0" in lines
    assert "(nothing was built on this host yet)" in lines
    assert "16 jobs, -DCMAKE_CUDA_ARCHITECTURES=89 " in lines
    assert "verify: needed (never verified" in lines


def test_problems_are_explained_and_nothing_else() -> None:
    lines = explain(plan(CPU_HOST))
    assert lines[0] == "backend: cuda" and len(lines) == 2
    assert lines[1].startswith("PROBLEM gpu: found no NVIDIA GPU")
    assert "next: " in lines[1]


def test_notes_and_packages_are_explained() -> None:
    lines = explain(plan(replace(CPU_HOST, compilers=()), accelerator="auto"))
    assert lines[1].startswith("note: NO NVIDIA GPU FOUND")
    assert lines[2] == "packages: install g++ (no C++ compiler is on the host)"
    assert lines[3] == "build, verify: planned once the packages are there"
