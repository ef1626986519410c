"""Plans to the letter: why a host is stopped and what to type, and what each part is told.

LLAMAFLEET_UPDATE_GOLDEN=1 rewrites the file; read the diff: is it right for that host?
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llamafleet.facts.host import Driver, HostSnapshot, PciGpu, Tool
from llamafleet.plans.plan import Plan
from tests.plans.hosts import (
    CPU_HOST,
    GPU_HOST,
    HOUSE,
    clang,
    driver,
    gcc,
    gpu,
    plan,
    toolkit,
    with_house,
)

GOLDEN = Path(__file__).with_name("plans.txt")
WITH = replace(GPU_HOST, toolkits=(toolkit("13.0"),))
RHEL = replace(
    GPU_HOST,
    os_id="rhel",
    os_name="Red Hat Enterprise Linux 9",
    os_like=("fedora",),
    os_version="9.4",
    package_manager="dnf",
    glibc="2.34",
)
ELSEWHERE = replace(GPU_HOST, os_id="arch", os_name="Arch Linux", package_manager=None)

Asked = tuple[HostSnapshot, dict[str, Any]]
STOPPED: dict[str, Asked] = {
    "a toolkit at a root that is not there": (WITH, {"toolkit_root": "/opt/cuda/"}),
    "an incomplete toolkit at the root": (
        replace(GPU_HOST, toolkits=(toolkit("13.0", lacks="cccl"),)),
        {"toolkit_root": "/usr/local/cuda-13.0"},
    ),
    "no glibc": (replace(GPU_HOST, glibc=None), {}),
    "no glibc and no name": (replace(GPU_HOST, glibc=None, os_name=None), {}),
    "a compiler too new for every toolkit": (replace(GPU_HOST, compilers=gcc(99)), {}),
    "a compiler too new, on RHEL": (
        replace(RHEL, compilers=gcc(99)),
        {"install_packages": False},
    ),
    "a compiler too old": (replace(WITH, compilers=gcc(10)), {}),
    "a compiler too old, elsewhere": (replace(ELSEWHERE, compilers=clang(10)), {}),
    "a compiler too old for a CPU": (
        replace(CPU_HOST, compilers=gcc(10)),
        {"accelerator": "auto"},
    ),
    "no compiler of the user": (replace(WITH, compilers=()), {"scope": "user"}),
    "no compiler and none may be installed": (
        replace(WITH, compilers=()),
        {"install_packages": False},
    ),
    "no compiler and no manager": (replace(ELSEWHERE, compilers=()), {}),
    "another compiler than the one of the settings": (
        WITH,
        {"host_compiler": "/usr/bin/g++-77"},
    ),
    "no compiler where the settings name one": (
        replace(WITH, compilers=()),
        {"host_compiler": "/usr/bin/g++-77"},
    ),
    "a GPU newer than the driver's toolkits": (
        replace(WITH, gpus=(gpu("12.0"),), driver=driver("550")),
        {},
    ),
    "GPUs that no toolkit knows together": (
        replace(WITH, gpus=(gpu("3.5"), gpu("12.0", index=1))),
        {},
    ),
    "a GPU that no toolkit knows": (replace(WITH, gpus=(gpu("3.5"),)), {}),
    "a version that does not know the GPU": (
        replace(GPU_HOST, gpus=(gpu("12.0"),)),
        {"toolkit_version": "12.4"},
    ),
    "a version newer than the driver": (
        replace(WITH, driver=driver("550")),
        {"toolkit_version": "13.0"},
    ),
    "only a toolkit that is there, and none is": (GPU_HOST, {"toolkit_method": "present"}),
    "a toolkit that does not fit, and no other": (
        replace(GPU_HOST, toolkits=(toolkit("13.5"), toolkit("12.8", lacks="nvcc"))),
        {"toolkit_method": "present"},
    ),
    "packages of the user": (GPU_HOST, {"toolkit_method": "apt", "scope": "user"}),
    "packages of another manager": (GPU_HOST, {"toolkit_method": "dnf"}),
    "the distribution's on RHEL": (RHEL, {"toolkit_method": "distro"}),
    "packages that may not be installed": (
        GPU_HOST,
        {"toolkit_method": "apt", "install_packages": False},
    ),
    "apt elsewhere": (ELSEWHERE, {"toolkit_method": "apt"}),
    "wheels for another machine": (
        replace(GPU_HOST, arch="riscv64"),
        {"toolkit_method": "wheels"},
    ),
    "no compute capability": (
        replace(WITH, gpus=(replace(gpu(None), name="NVIDIA X"),)),
        {},
    ),
    "no GPU": (CPU_HOST, {}),
    "no driver": (
        replace(WITH, gpus=(), pci_gpus=(PciGpu("0000:01:00.0", "2684", None),), driver=Driver()),
        {},
    ),
    "Python too old": (replace(WITH, pythons=(Tool("/usr/bin/python3.9", "3.9.2"),)), {}),
    "no Python": (replace(WITH, pythons=()), {}),
    "another Python than the one of the settings": (WITH, {"python": "/usr/bin/python3.13"}),
    "no room": (replace(WITH, disk_free_mib={"prefix": 100, "state": 200}), {}),
    "room of which nothing is known": (replace(WITH, disk_free_mib={}), {}),
    "a 32-bit machine": (replace(WITH, arch="i686"), {}),
    "nothing read at all": (HostSnapshot(), {}),
}

WHOLE: dict[str, Asked] = {
    "a toolkit that is there": (WITH, {}),
    "wheels": (GPU_HOST, {}),
    "apt": (replace(GPU_HOST, os_version="12"), {"toolkit_method": "apt"}),
    "the user's own, without systemd": (replace(WITH, init="none"), {"scope": "user"}),
    "a CPU": (CPU_HOST, {"accelerator": "auto"}),
    "a compiler first": (replace(WITH, compilers=()), {}),
    "an unsupported compiler and options": (
        replace(WITH, compilers=gcc(99)),
        {
            "allow_unsupported_compiler": True,
            "cmake_options": {"LLAVA_BUILD": "on", "GGML_NATIVE": "True"},
            "jobs": 3,
            "verify_schedule": None,
            "hold_driver": True,
        },
    ),
}

HOUSES: dict[str, dict[str, Any]] = {
    "a wheelhouse without a toolkit that fits": {"toolkits": ("12.8",)},
    "a wheelhouse without toolkits": {"toolkits": ()},
    "a wheelhouse of another Python": {"pythons": ("3.14",)},
    "a wheelhouse of another machine": {"arches": ("aarch64",)},
}


def lines(value: object, name: str = "") -> Iterator[str]:
    """Each value that is not empty, with its place."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from lines(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(one, dict) for one in value):
        for number, one in enumerate(value):
            yield from lines(one, f"{name}.{number}")
    elif "\n" in str(value):
        yield f"  {name}: a text of several lines"
    elif value not in (None, (), [], "", False):
        yield f"  {name}: {value}"


def written(name: str, made: Plan, whole: bool) -> str:
    said = lines(asdict(made)) if whole else (f"  {one}" for one in (*made.problems, *made.notes))
    return "\n".join([f"{name}:", *said]) + "\n"


def test_a_plan_says_what_it_said() -> None:
    texts = [written(name, plan(host, **asked), False) for name, (host, asked) in STOPPED.items()]
    texts += [written(name, plan(host, **asked), True) for name, (host, asked) in WHOLE.items()]
    texts += [written("from a wheelhouse", plan(GPU_HOST, HOUSE), True)]
    for name, changes in HOUSES.items():
        texts.append(written(name, plan(GPU_HOST, with_house(**changes)), False))
    text = "\n".join(texts)
    if os.environ.get("LLAMAFLEET_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
