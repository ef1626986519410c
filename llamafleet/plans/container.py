"""The image of Dockerfile.rtx4090: what is built into it, by the rules and pins of the hosts.

The image is planned as a host is, of the very snapshot of the container that it is built in, but
for what only the host of a container can have: a driver and GPUs. These come from build arguments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamafleet.facts.host import Driver, HostSnapshot
from llamafleet.layout import Layout
from llamafleet.plans.build import plan_build
from llamafleet.plans.host import choose_python
from llamafleet.plans.network import plan_network
from llamafleet.plans.plan import BuildPlan, JobPlan, Problem, ToolkitPlan, account_job
from llamafleet.plans.serve_libraries import plan_libraries
from llamafleet.plans.supplies import NO_SUPPLIES
from llamafleet.plans.toolkit.architectures import sorted_capabilities
from llamafleet.plans.toolkit.choice import choose_toolkit
from llamafleet.plans.toolkit.compiler import choose_compiler
from llamafleet.plans.toolkit.installation import plan_installation
from llamafleet.plans.verify import variables
from llamafleet.protocol import models
from llamafleet.protocol.container import ContainerConfig, verify_file
from llamafleet.protocol.job import LibrariesConfig
from llamafleet.protocol.serve import Limits, Placement, ServeConfig
from llamafleet.protocol.verify import BenchSettings, VerifyConfig, VerifyInputs
from llamafleet.serving import DEFAULT_PORT
from llamafleet.settings import Settings
from llamafleet.tables.toolkits import toolkit as toolkit_row

CONFIG = "container.json"
"""In the folder of settings: a ContainerConfig."""
MODELS = "/models"
"""Where a volume with models is mounted."""
PROFILE = "container"
ANY = "0.0.0.0"
DRAIN_S = 8
"""For the answers under way: `docker stop` kills after 10 s."""
BENCH = BenchSettings(prompt=64, gen=16, repetitions=2)
"""Each first start of a container waits for it, and needs the proof of offload, no figures."""
BUILD_ONLY = ("cmake", "ninja", "scikit-build-core")
"""Packages of the host's requirements that nothing needs once the library is built."""


def states(layout: Layout) -> tuple[str, ...]:
    """Folders that a container writes to."""
    verified = layout.job("verify", "run").rpartition("/")[0]
    served = layout.serve_state(PROFILE).rpartition("/")[0]
    return (verified, layout.results, layout.models, layout.compiled, served)


@dataclass(frozen=True)
class ImagePlan:
    """What an image is made of."""

    toolkit: ToolkitPlan | None
    """None: for the CPU."""
    build: BuildPlan
    libraries: LibrariesConfig
    """Of the server."""
    libraries_job: JobPlan
    container: ContainerConfig


def capabilities_of(architectures: str) -> tuple[str, ...]:
    """Of CMake's numbers, as ("8.6", "8.9") of "89;86". Raises ValueError on anything else."""
    numbers = [one for one in re.split(r"[;, ]+", architectures) if one]
    for number in numbers:
        if not re.fullmatch(r"[1-9][0-9]{1,2}", number):
            raise ValueError(
                f"CUDA_ARCHITECTURES: found {number[:20]!r}; expected numbers as 89 or 86;89; "
                "next: leave it out for an RTX 4090"
            )
    return sorted_capabilities(f"{number[:-1]}.{number[-1]}" for number in numbers)


def plan_image(settings: Settings, snapshot: HostSnapshot, layout: Layout) -> ImagePlan | Problem:
    """What is installed and built in the container that `snapshot` is of.

    The settings name the backend, and for CUDA the toolkit's version and the compute capabilities:
    nothing there could tell them. Raises ValueError as `plan_build` does.
    """
    python = choose_python(settings, snapshot, None)
    if isinstance(python, Problem):
        return python
    toolkit: ToolkitPlan | None = None
    capabilities: Sequence[str] = ()
    if settings.accelerator == "cuda":
        capabilities = sorted_capabilities(settings.compute_capabilities or ())
        choice = _toolkit(settings, snapshot, capabilities, layout)
        if isinstance(choice, Problem):
            return choice
        toolkit = choice
    row = toolkit_row(toolkit.version) if toolkit else None
    compiler = choose_compiler(snapshot, settings, row)
    if isinstance(compiler, Problem):
        return compiler
    build = plan_build(
        settings,
        snapshot,
        compiler=compiler,
        toolkit=toolkit,
        capabilities=capabilities,
        python=python.path,
        layout=layout,
        house=None,
    )
    if toolkit:
        installed = plan_installation(
            toolkit,
            settings,
            snapshot,
            layout,
            capabilities=tuple(capabilities),
            cxx=compiler.path,
            python=python.path,
            supplies=NO_SUPPLIES,
        )
        if isinstance(installed, Problem):
            return installed
        toolkit = installed
    network = plan_network(settings, snapshot, layout)
    libraries = plan_libraries(
        settings, layout, network, python=python.path, version=python.version
    )
    job = account_job(
        libraries.kind,
        libraries.key,
        layout,
        python=python.path,
        minutes=settings.build_timeout_minutes,
        start=True,
    )
    container = _container(settings, build, libraries, layout)
    return ImagePlan(toolkit, build, libraries, job, container)


def _toolkit(
    settings: Settings, snapshot: HostSnapshot, capabilities: Sequence[str], layout: Layout
) -> ToolkitPlan | Problem:
    """As the settings name it, for drivers that run it; what builds the image has no driver."""
    if not settings.compute_capabilities or not settings.toolkit_version:
        return _untold(settings)
    made_for = replace(snapshot, driver=Driver(cuda=settings.toolkit_version))
    return choose_toolkit(made_for, settings, capabilities, layout, None)


def _untold(settings: Settings) -> Problem:
    return Problem(
        "image",
        found=f"CUDA_VERSION {settings.toolkit_version or 'not set'}, "
        f"CUDA_ARCHITECTURES {settings.compute_capabilities or 'not set'}",
        expected="both: no driver and no GPU is there when an image is built",
        next="docker build --build-arg CUDA_VERSION=13.0 --build-arg CUDA_ARCHITECTURES=89 "
        "-f Dockerfile.rtx4090 -t llama-rtx4090 .",
    )


def _container(
    settings: Settings, build: BuildPlan, libraries: LibrariesConfig, layout: Layout
) -> ContainerConfig:
    backend = build.inputs.backend
    cuda = backend == "cuda"
    verify = VerifyConfig(
        version=1,
        host=PROFILE,
        inputs=VerifyInputs(
            fingerprint=build.fingerprint,
            driver=None,
            gpus=(),
            # It proves offload, and is written anew in each container: 0.1 GB.
            model=models.FOR_CPU,
            bench=BENCH,
            context=settings.context,
        ),
        backend=backend,
        toolkit=build.inputs.toolkit,
        prefix=build.config.prefix,
        stamp=build.proof,
        job=layout.job("verify", "run"),
        results=layout.results,
        models=layout.models,
        compute_capabilities=tuple(settings.compute_capabilities or ()),
        allow_cpu_only=not cuda,
        # A container shares its GPU with whom the host gave it to as well: that is no fault of it.
        busy_minutes=0,
        allow_busy=True,
        timer=False,
        environment=variables(build, layout),
    )
    return ContainerConfig(
        version=1,
        verify=verify,
        serve=_serve(verify, libraries, layout),
        models=MODELS,
    )


def _serve(verify: VerifyConfig, libraries: LibrariesConfig, layout: Layout) -> ServeConfig:
    folder = layout.serve_state(PROFILE)
    return ServeConfig(
        version=1,
        profile=PROFILE,
        host=verify.host,
        verify=verify_file(folder),
        folder=folder,
        libraries=libraries.root,
        model=models_path(verify),
        alias="",
        placement=Placement(n_gpu_layers=-1, n_ctx=4096),
        address=ANY,
        port=DEFAULT_PORT,
        key=True,
        limits=Limits(drain_s=DRAIN_S),
    )


def models_path(verify: VerifyConfig) -> str:
    """Where the verification writes its synthetic model."""
    named = models.parse(verify.inputs.model)
    assert named, "the image names a synthetic one"
    return f"{verify.models}/{models.file_name(*named)}"
