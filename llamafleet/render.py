"""The files a plan puts on a host, as text: pure rendering, no host is touched."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llamafleet.layout import (
    APT_PIN,
    APT_SOURCE,
    DNF_SOURCE,
    DRIVER_CHECK_PATH,
    DRIVER_CHECK_UNIT,
    HOLD_APT,
    USER,
    VERIFY_TIMER,
    VERIFY_UNIT,
    Layout,
)
from llamafleet.onhost.driver_check import EXIT_STALE, EXIT_VERIFY
from llamafleet.plans.driver.hold import expressions
from llamafleet.plans.plan import BuildPlan, HoldPlan, Plan, Repository, ToolkitPlan, VerifyPlan
from llamafleet.protocol.job import Manager, PackagesConfig, ToolkitConfig
from llamafleet.settings import Settings
from llamafleet.zipapps import host_zipapp, pip_zipapp

LABEL = "NVIDIA CUDA"
"""Label of the Release files of NVIDIA's apt repositories; their own pin files go by it too."""

REPOSITORY_TEMPLATES: dict[Manager, dict[str, str]] = {
    "apt": {APT_SOURCE: "llamafleet-cuda.sources.j2", APT_PIN: "llamafleet-cuda.pref.j2"},
    "dnf": {DNF_SOURCE: "llamafleet-cuda.repo.j2"},
}
"""By package manager, the files of a repository and their templates."""

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

_jinja = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)


@dataclass(frozen=True)
class ManagedFile:
    """One file on a host: its bytes, and whether it is a unit of systemd."""

    path: str
    content: bytes
    unit: bool = False

    @property
    def sha256(self) -> str:
        return sha256(self.content).hexdigest()


def tool_files(layout: Layout) -> tuple[ManagedFile, ...]:
    """What the jobs run: llamafleet's own zipapp and pip as one."""
    return (ManagedFile(layout.zipapp, host_zipapp()), ManagedFile(layout.pip, pip_zipapp()))


def settings_files(
    plan: Plan, settings: Settings, layout: Layout, *, systemd: bool
) -> tuple[ManagedFile, ...]:
    """Environment, verification settings and, under systemd, the units.

    Raises ValueError where a value can't stand in a quoted line of an environment file.
    """
    if plan.build is None or plan.verify is None:
        return ()
    files = [
        ManagedFile(layout.env, environment(plan.build, layout).encode()),
        ManagedFile(
            layout.verify_config, verify_config(plan, plan.build, plan.verify, settings, layout)
        ),
    ]
    if systemd:
        files.append(
            ManagedFile(f"{layout.units}/{VERIFY_UNIT}", service(settings, layout).encode(), True)
        )
        if settings.verify_schedule:
            files.append(
                ManagedFile(f"{layout.units}/{VERIFY_TIMER}", timer(settings).encode(), True)
            )
        if plan.backend == "cuda":
            for unit in (DRIVER_CHECK_UNIT, DRIVER_CHECK_PATH):
                content = driver_check(unit, layout).encode()
                files.append(ManagedFile(f"{layout.units}/{unit}", content, True))
    return tuple(files)


def hold_files(hold: HoldPlan, layout: Layout, *, apt: bool) -> tuple[ManagedFile, ...]:
    """The record of what llamafleet holds and, for apt, the same for unattended-upgrades."""
    if not hold.record:
        return ()
    record = ManagedFile(layout.hold_record, "".join(f"{n}\n" for n in hold.record).encode())
    text = _jinja.get_template("52llamafleet-hold-driver.j2").render(
        expressions=expressions(hold.record)
    )
    return (record, ManagedFile(HOLD_APT, text.encode())) if apt else (record,)


def environment(build: BuildPlan, layout: Layout) -> str:
    values = sorted(build.config.environment.items())
    # Quoted as the build backend splits it; quotes of this kind stand unchanged in "...".
    cmake_args = shlex.join(build.config.cmake_args)
    for name, value in (*values, ("CMAKE_ARGS", cmake_args)):
        if any(c in value for c in '"\\$`\n'):
            raise ValueError(f"{name}: {value!r} can't stand in an environment file")
    return _jinja.get_template("llamafleet.env.j2").render(
        layout=layout,
        fingerprint=build.fingerprint,
        cmake_args=cmake_args,
        environment=values,
    )


def service(settings: Settings, layout: Layout) -> str:
    return _jinja.get_template("llamafleet-verify.service.j2").render(
        layout=layout,
        system=layout.scope == "system",
        user=USER,
        timeout_minutes=settings.verify_timeout_minutes,
        # A model given by path may lie in a home.
        protect_home="read-only" if settings.model.startswith("/") else "yes",
    )


def timer(settings: Settings) -> str:
    return _jinja.get_template("llamafleet-verify.timer.j2").render(
        schedule=settings.verify_schedule
    )


def driver_check(unit: str, layout: Layout) -> str:
    return _jinja.get_template(f"{unit}.j2").render(
        layout=layout,
        system=layout.scope == "system",
        user=USER,
        verify_unit=VERIFY_UNIT,
        verify_status=EXIT_VERIFY,
        stale_status=EXIT_STALE,
    )


def toolkit_config(plan: ToolkitPlan) -> ToolkitConfig | None:
    """What the plan's job is told, with the files of the repository that it sets up."""
    config, source = plan.config, plan.source
    if not isinstance(config, PackagesConfig) or config.repository is None:
        return config
    assert source is not None and source.repository is not None
    files = repository_files(source.repository, config.manager, config.repository.keyring)
    return replace(config, repository=replace(config.repository, files=files))


def repository_files(repository: Repository, manager: Manager, keyring: str) -> dict[str, str]:
    """Text by path; `keyring`: path of the key."""
    return {
        path: _jinja.get_template(template).render(
            repository=repository,
            architecture={"x86_64": "amd64", "aarch64": "arm64"}[repository.machine],
            key=keyring,
            label=LABEL,
        )
        for path, template in REPOSITORY_TEMPLATES[manager].items()
    }


def verify_config(
    plan: Plan, build: BuildPlan, verify: VerifyPlan, settings: Settings, layout: Layout
) -> bytes:
    """The verification's settings: the same bytes for the same plan."""
    config: dict[str, Any] = {
        "version": 1,
        "host": plan.host,
        "inputs": verify.inputs,
        "fingerprint": build.fingerprint,
        "backend": plan.backend,
        "toolkit": build.inputs.toolkit,
        "prefix": layout.version(build.fingerprint),
        "stamp": f"{layout.job('build', build.fingerprint)}/stamp.json",
        "job": layout.job("verify", "run"),
        "results": layout.results,
        "models": layout.models,
        "model": verify.inputs["model"],
        "compute_capabilities": list(settings.compute_capabilities or ()),
        "bench": {
            "prompt": settings.bench_prompt,
            "gen": settings.bench_gen,
            "repetitions": settings.bench_repetitions,
        },
        "context": settings.context,
        "allow_cpu_only": settings.accelerator != "cuda",
    }
    return (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()
