"""Hosts to plan for: one that fits, to be changed by each test in one place."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from llamafleet.facts.host import (
    Build,
    Compiler,
    Driver,
    Gpu,
    HostSnapshot,
    Job,
    PciGpu,
    Tool,
    Toolkit,
)
from llamafleet.layout import Layout
from llamafleet.plans.make import make_plan
from llamafleet.plans.plan import BuildPlan, JobPlan, Plan, Problem, ToolkitPlan, VerifyPlan
from llamafleet.plans.supplies import Supplies
from llamafleet.plans.toolkit.choice import choose_toolkit
from llamafleet.protocol.job import BuildInputs, BuildProduct, Stamp
from llamafleet.protocol.result import Result, Verdict
from llamafleet.protocol.verify import VerifyConfig
from llamafleet.settings import LLAMA_VERSION, Settings
from llamafleet.tables import overlaid
from llamafleet.tables.toolkits import wheel_toolkits
from llamafleet.wheelhouse.manifest import File, Llama, Manifest, Wheelhouse
from tests.frozen_tables import FROZEN
from tests.history import RESULT
from tests.history import gpu as row

LAYOUT = Layout.system()

RTX_4090 = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-a", "00000000:01:00.0", "8.9", 24564)
CARD_4090 = PciGpu("0000:01:00.0", "2684", "nvidia")

CUDA_OF_BRANCH = {
    "470": "11.4",
    "535": "12.2",
    "550": "12.4",
    "570": "12.8",
    "580": "13.0",
    "590": "13.1",
}


def driver(branch: str = "580", **changes: Any) -> Driver:
    """A working driver; what nvidia-smi says is an input of the plans, not their knowledge."""
    version = {"580": "580.159.04"}.get(branch, f"{branch}.54.03")
    working = Driver(
        module=version,
        module_on_disk=version,
        library=version,
        smi=version,
        cuda=CUDA_OF_BRANCH[branch],
        smi_state="ok",
    )
    return replace(working, **changes)


def gcc(*majors: int) -> tuple[Compiler, ...]:
    return tuple(Compiler(f"/usr/bin/g++-{m}", "gcc", f"{m}.2.0") for m in majors)


def clang(*majors: int) -> tuple[Compiler, ...]:
    return tuple(Compiler(f"/usr/bin/clang++-{m}", "clang", f"{m}.1.0") for m in majors)


def gpu(capability: str | None, vram_mib: int = 24564, index: int = 0) -> Gpu:
    return replace(
        RTX_4090,
        index=index,
        uuid=f"GPU-{index}",
        compute_capability=capability,
        vram_mib=vram_mib,
    )


def toolkit(version: str, root: str = "", lacks: str = "") -> Toolkit:
    """A complete toolkit, but for the part named in `lacks`."""
    root = root or f"/usr/local/cuda-{version}"
    return Toolkit(
        root=root,
        version=version,
        nvcc=lacks != "nvcc",
        cudart=lacks != "cudart",
        cublas=lacks != "cublas",
        cccl=lacks != "cccl",
        libdir=f"{root}/lib64",
    )


GPU_HOST = HostSnapshot(
    account=True,
    os_id="debian",
    os_name="Debian GNU/Linux 12",
    arch="x86_64",
    glibc="2.36",
    package_manager="apt",
    cpu_flags=("avx2", "fma"),
    cores=16,
    memory_mib=64000,
    memory_available_mib=60000,
    disk_free_mib={"prefix": 100_000, "state": 200_000},
    pci_gpus=(CARD_4090,),
    gpus=(RTX_4090,),
    driver=driver(),
    compilers=gcc(12),
    pythons=(Tool("/usr/bin/python3.11", "3.11.2"),),
    init="systemd",
)

CPU_HOST = replace(GPU_HOST, pci_gpus=(), gpus=(), driver=Driver())


with overlaid(FROZEN):
    _WHEELS = tuple(sorted({row.cuda for row in wheel_toolkits()}))

HOUSE = Wheelhouse(
    folder="/srv/w",
    manifest=Manifest(
        created=0,
        files={
            "cmake-4.whl": File("c" * 64, 1),
            "llama_cpp_python-0.3.36.tar.gz": File("d" * 64, 1),
        },
        pythons=("3.11", "3.12"),
        arches=("x86_64", "aarch64"),
        toolkits=_WHEELS,
        slim=True,
        llama=Llama(LLAMA_VERSION, "d" * 64, Settings().llama_sha256),
    ),
    sha256="e" * 64,
)
"""A wheelhouse with all toolkits."""


def with_house(**changes: Any) -> Wheelhouse:
    """The same with another manifest."""
    return replace(HOUSE, manifest=replace(HOUSE.manifest, **changes))


@overlaid(FROZEN)
def plan(
    snapshot: HostSnapshot = GPU_HOST, house: Wheelhouse | None = None, **settings: Any
) -> Plan:
    """`house`: the wheelhouse that the settings name."""
    if house:
        settings["wheelhouse"] = house.folder
    supplies = Supplies(wheelhouse=house)
    return make_plan("lab-1", Settings(**settings), snapshot, LAYOUT, supplies=supplies)


def build_of(snapshot: HostSnapshot = GPU_HOST, **settings: Any) -> BuildPlan:
    made = plan(snapshot, **settings)
    assert made.build is not None, made.problems
    return made.build


@overlaid(FROZEN)
def toolkit_for(
    snapshot: HostSnapshot, house: Wheelhouse | None = None, **settings: Any
) -> ToolkitPlan | Problem:
    if house:
        settings["wheelhouse"] = house.folder
    found = tuple(g.compute_capability or "" for g in snapshot.gpus)
    return choose_toolkit(snapshot, Settings(**settings), found, LAYOUT, house)


def chosen(snapshot: HostSnapshot, **settings: Any) -> ToolkitPlan:
    made = toolkit_for(snapshot, **settings)
    assert isinstance(made, ToolkitPlan), made
    return made


def refused(snapshot: HostSnapshot, **settings: Any) -> Problem:
    made = toolkit_for(snapshot, **settings)
    assert isinstance(made, Problem), made
    return made


def only_problem(made: Plan) -> Problem:
    assert len(made.problems) == 1, made.problems
    assert made.build is None and made.toolkit is None and made.verify is None
    return made.problems[0]


def built(build: BuildPlan, ok: bool = True, **stamp: Any) -> Job:
    """The finished job of a build."""
    told = {"ok": ok, "finished": 100.0, "inputs": as_read(build.inputs), **stamp}
    key = build.fingerprint
    return Job("build", key, alive=False, stamp=Stamp(kind="build", key=key, **told))


LIBRARIES = {"lib/python3.11/site-packages/llama_cpp/lib/libllama.so": "a" * 64}


def there(build: BuildPlan, name: str = "", **stamp: Any) -> Build:
    """A whole build; `name`: of its folder, where it is not the fingerprint."""
    job = built(build, **stamp).stamp
    product = BuildProduct(
        wheel_bytes=1,
        wheel_sha256=None,
        libraries=LIBRARIES,
        units=135,
        llama_cpp_python="0.3.36",
        system_info="",
        import_s=0.1,
    )
    return Build(name or build.fingerprint, job, product, runs=True, libraries=LIBRARIES)


def with_builds(host: HostSnapshot, *builds: Build, current: str | None = "") -> HostSnapshot:
    """The host with these builds beside its own; `current` "": the last of them."""
    names = tuple(build.name for build in builds)
    return replace(
        host,
        versions=(*host.versions, *names),
        builds={**host.builds, **{build.name: build for build in builds}},
        current=names[-1] if current == "" else current,
    )


def as_read(inputs: BuildInputs) -> dict[str, Any]:
    """As a stamp gives them back."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(inputs)))
    return data


def installed(key: str, ok: bool = True, **stamp: Any) -> Job:
    """The finished job of a toolkit."""
    return Job("toolkit", key, alive=False, stamp=Stamp(kind="toolkit", key=key, ok=ok, **stamp))


def proven(verify: VerifyPlan | None, verdict: Verdict = "PASS") -> Result:
    """The result of that very verification, with a row for each of its GPUs."""
    assert verify is not None
    inputs = verify.config.inputs
    prefix = verify.config.prefix
    rows = tuple(
        replace(row(number), uuid=name.rpartition(" ")[2], verdict=verdict)
        for number, name in enumerate(inputs.gpus)
    )
    return replace(
        RESULT,
        key=verify.key,
        inputs=inputs,
        fingerprint=inputs.fingerprint,
        verdict=verdict,
        gpus=rows,
        prefix=prefix,
    )


def verification(key: str, config: VerifyConfig) -> VerifyPlan:
    """One that is yet to be started."""
    told = LAYOUT.verify_config
    job = JobPlan("verify", key, config.job, told, "/usr/bin/python3", minutes=30, start=True)
    return VerifyPlan(key, config, job, needed=True, reason="")
