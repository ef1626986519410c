"""The files a plan puts on a host, as text: pure rendering, no host is touched."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llamafleet.layout import (
    APT_KEY,
    APT_PIN,
    APT_SOURCE,
    DNF_KEY,
    DNF_SOURCE,
    USER,
    VERIFY_UNIT,
    Layout,
)
from llamafleet.managed import Managed
from llamafleet.onhost.driver_check import EXIT_STALE, EXIT_VERIFY
from llamafleet.plans.build import allowed_unused
from llamafleet.plans.driver.hold import expressions
from llamafleet.plans.plan import BuildPlan, Plan, Source, ToolkitPlan, VerifyPlan
from llamafleet.plans.requirements import toolkit_requirements
from llamafleet.settings import Settings
from llamafleet.zipapps import host_zipapp, pip_zipapp

LABEL = "NVIDIA CUDA"
"""Label of the Release files of NVIDIA's apt repositories; their own pin files go by it too."""

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

_jinja = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)


def content(row: Managed, plan: Plan, settings: Settings, layout: Layout) -> bytes:
    """The bytes of one managed file, the same for the same plan.

    Raises ValueError where a value can't stand in a quoted line of an environment file.
    """
    if row.source.endswith(".j2"):
        text = _jinja.get_template(row.source).render(_values(plan, settings, layout))
        return text.encode()
    if row.source == "verify.json":
        assert plan.verify is not None
        return verify_config(plan.verify)
    return {"zipapp": host_zipapp, "pip": pip_zipapp}[row.source]()


def content_sha256(row: Managed, plan: Plan, settings: Settings, layout: Layout) -> str:
    """Of the same bytes, in hex."""
    return hashlib.sha256(content(row, plan, settings, layout)).hexdigest()


def _values(plan: Plan, settings: Settings, layout: Layout) -> dict[str, Any]:
    """What templates of managed files may use; of a part that is not planned they get nothing."""
    values: dict[str, Any] = {
        "layout": layout,
        "system": layout.scope == "system",
        "user": USER,
        "timeout_minutes": settings.verify_timeout_minutes,
        # A model given by path may lie in a home.
        "protect_home": "read-only" if settings.model.startswith("/") else "yes",
        "schedule": settings.verify_schedule,
        "verify_unit": VERIFY_UNIT,
        "verify_status": EXIT_VERIFY,
        "stale_status": EXIT_STALE,
    }
    if plan.build:
        values |= {
            "fingerprint": plan.build.fingerprint,
            # Quoted as the build backend splits it; quotes of this kind stand unchanged in "...".
            "cmake_args": shlex.join(plan.build.cmake_args),
            "environment": sorted(plan.build.environment.items()),
        }
    if plan.hold:
        values |= {"held": plan.hold.record, "expressions": expressions(plan.hold.record)}
    return values


def _quotable(value: str, name: str) -> str:
    """The value, for "..." in a file that systemd and a shell read. Raises ValueError."""
    if any(c in value for c in '"\\$`\n'):
        raise ValueError(f"{name}: {value!r} can't stand in an environment file")
    return value


_jinja.filters["quotable"] = _quotable


def toolkit_config(
    plan: ToolkitPlan,
    build: BuildPlan,
    settings: Settings,
    layout: Layout,
    *,
    machine: str,
    find_links: str | None,
) -> dict[str, Any]:
    """config.json of the toolkit job; `machine` as uname -m names it.

    Raises OSError where the settings' toolkit_key can't be read.
    """
    config: dict[str, Any] = {
        "version": 1,
        "kind": "toolkit",
        "key": plan.job,
        "inputs": {"method": plan.method},
        "method": plan.method,
        "cuda": plan.version,
        "root": plan.root,
        "cxx": build.environment["CUDAHOSTCXX"],
    }
    if plan.method == "wheels":
        return config | {
            "python": build.python,
            "pip": layout.pip,
            "requirements": toolkit_requirements(plan.version),
            "index_url": settings.index_url,
            "find_links": find_links,
        }
    source = plan.source
    assert source is not None
    if plan.method == "runfile":
        return config | {"url": source.url, "sha256": source.sha256}
    key = Path(settings.toolkit_key).read_text(encoding="utf-8") if settings.toolkit_key else None
    return config | {
        "manager": source.manager,
        "packages": list(source.packages),
        "record": layout.installed_packages,
        "repository": source.repository and repository(source, machine, key),
    }


def repository(source: Source, machine: str, key: str | None) -> dict[str, Any]:
    """What the toolkit job needs to set up a repository: the files, and the key to trust.

    `key`: its text; None: the job downloads the pinned one.
    """
    assert source.repository is not None
    if source.manager == "apt":
        path, keyring = APT_SOURCE, APT_KEY
        templates = {APT_SOURCE: "llamafleet-cuda.sources.j2", APT_PIN: "llamafleet-cuda.pref.j2"}
    else:
        path, keyring = DNF_SOURCE, DNF_KEY
        templates = {DNF_SOURCE: "llamafleet-cuda.repo.j2"}
    files = {
        path: _jinja.get_template(template).render(
            repository=source.repository,
            architecture={"x86_64": "amd64", "aarch64": "arm64"}[machine],
            key=keyring,
            label=LABEL,
        )
        for path, template in templates.items()
    }
    return {
        "url": source.repository.url,
        "source": path,
        "keyring": keyring,
        "key_url": source.repository.key_url,
        "fingerprint": source.repository.fingerprint,
        "key": key,
        "files": files,
    }


def build_config(
    build: BuildPlan,
    settings: Settings,
    layout: Layout,
    *,
    requirements: str,
    llama_requirement: str,
    find_links: str | None,
) -> dict[str, Any]:
    """config.json of the build job; `find_links` is the folder that takes an index's place."""
    return {
        "version": 1,
        "kind": "build",
        "key": build.fingerprint,
        "inputs": build.inputs,
        "python": build.python,
        "pip": layout.pip,
        "prefix": layout.version(build.fingerprint),
        "requirements": requirements,
        "llama_requirement": llama_requirement,
        "cmake_args": list(build.cmake_args),
        "allowed_unused": list(allowed_unused()),
        "environment": build.environment,
        "jobs": build.jobs,
        "index_url": settings.index_url,
        "find_links": find_links,
    }


def verify_config(plan: VerifyPlan) -> bytes:
    """The verification's settings: the same bytes for the same plan."""
    return (json.dumps(asdict(plan.config), indent=1, sort_keys=True) + "\n").encode()
