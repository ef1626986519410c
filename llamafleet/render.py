"""The files a plan puts on a host, as text: pure rendering, no host is touched."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llamafleet import sandbox
from llamafleet.layout import (
    APT_PIN,
    APT_SOURCE,
    CDI_FILE,
    CDI_KIND,
    DEVICES_UNIT,
    DNF_SOURCE,
    DRIVER_CHECK_UNIT,
    SERVE_TARGET,
    VERIFY_UNIT,
    Layout,
    serve_unit,
)
from llamafleet.managed import SERVE_CONFIG, SERVE_KEY, Managed
from llamafleet.onhost.driver_check import EXIT_REBOOT, EXIT_STALE, EXIT_VERIFY
from llamafleet.onhost.serve.run import EXIT_USAGE
from llamafleet.plans.driver.hold import expressions
from llamafleet.plans.plan import Plan, Repository, Served, ToolkitPlan, VerifyPlan
from llamafleet.plans.supplies import NO_SUPPLIES, Supplies
from llamafleet.protocol.job import PATH, Manager, PackagesConfig, ToolkitConfig
from llamafleet.protocol.serve import CREDENTIAL, ServeConfig
from llamafleet.protocol.verify import PROM, VerifyConfig
from llamafleet.settings import UNQUOTABLE, Settings
from llamafleet.zipapps import host_zipapp, pip_zipapp

LABEL = "NVIDIA CUDA"
"""Label of the Release files of NVIDIA's apt repositories; their own pin files go by it too."""

REPOSITORY_TEMPLATES: dict[Manager, dict[str, str]] = {
    "apt": {APT_SOURCE: "llamafleet-cuda.sources.j2", APT_PIN: "llamafleet-cuda.pref.j2"},
    "dnf": {DNF_SOURCE: "llamafleet-cuda.repo.j2"},
}
"""By package manager, the files of a repository and their templates."""

STOP_MARGIN_S = 30
"""Beside the time to drain, for a model to be unloaded."""

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

_jinja = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)


def content(
    row: Managed,
    plan: Plan,
    settings: Settings,
    layout: Layout,
    supplies: Supplies = NO_SUPPLIES,
) -> bytes:
    """The bytes of one managed file, the same for the same plan.

    Raises ValueError where a value can't stand in a quoted line of an environment file.
    """
    if row.source.endswith(".j2"):
        values = _values(plan, settings, layout)
        if row.profile:
            values["served"] = _served(row, plan)
        return _jinja.get_template(row.source).render(values).encode()
    if row.source == SERVE_CONFIG:
        return as_json(_served(row, plan).config)
    if row.source == SERVE_KEY:
        return f"{supplies.serve_keys[row.profile]}\n".encode()
    if row.source == "verify.json":
        assert plan.verify is not None
        return verify_config(plan.verify)
    if row.source == "netrc":
        assert supplies.netrc is not None
        return supplies.netrc.encode()
    return {"zipapp": host_zipapp, "pip": pip_zipapp}[row.source]()


def _served(row: Managed, plan: Plan) -> Served:
    assert plan.serve is not None
    return next(one for one in plan.serve.services if one.config.profile == row.profile)


def content_sha256(
    row: Managed,
    plan: Plan,
    settings: Settings,
    layout: Layout,
    supplies: Supplies = NO_SUPPLIES,
) -> str:
    """Of the same bytes, in hex."""
    return hashlib.sha256(content(row, plan, settings, layout, supplies)).hexdigest()


def _values(plan: Plan, settings: Settings, layout: Layout) -> dict[str, Any]:
    """What templates of managed files may use; of a part that is not planned they get nothing."""
    values: dict[str, Any] = {
        "layout": layout,
        "system": layout.scope == "system",
        "timeout_minutes": settings.verify_minutes,
        "schedule": settings.schedule,
        "sandbox": partial(sandbox.lines, layout=layout),
        "verify_unit": VERIFY_UNIT,
        "devices_unit": DEVICES_UNIT,
        "cdi_kind": CDI_KIND,
        "cdi_file": CDI_FILE,
        "driver_check_unit": DRIVER_CHECK_UNIT,
        "metrics_folder": settings.metrics_folder,
        "prom": PROM,
        "serves": bool(settings.serve),
        "serve_target": SERVE_TARGET,
        "serve_units": serve_unit("*"),
        "ctl": "systemctl" if layout.scope == "system" else "systemctl --user",
        "credential": CREDENTIAL,
        "stop_margin_s": STOP_MARGIN_S,
        "reboot_status": EXIT_REBOOT,
        "usage_status": EXIT_USAGE,
        "verify_status": EXIT_VERIFY,
        "stale_status": EXIT_STALE,
    }
    if plan.build:
        values |= {
            "fingerprint": plan.build.fingerprint,
            "prefix": plan.build.config.prefix,
            "python": plan.build.python,
            "search_path": PATH,
            # Quoted as the build backend splits it; quotes of this kind stand unchanged in "...".
            "cmake_args": shlex.join(plan.build.config.cmake_args),
            "environment": sorted(plan.build.config.environment.items()),
            "gpus": ",".join(plan.verify.config.gpus) if plan.verify else "",
        }
    if plan.container:
        values |= {"container": plan.container}
    if plan.hold:
        values |= {"held": plan.hold.record, "expressions": expressions(plan.hold.record)}
    return values


def _quotable(value: str, name: str) -> str:
    """The value, for "..." in a file that systemd and a shell read. Raises ValueError."""
    if any(c in value for c in UNQUOTABLE):
        raise ValueError(f"{name}: {value!r} can't stand in an environment file")
    return value


_jinja.filters["quotable"] = _quotable


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


def verify_config(plan: VerifyPlan) -> bytes:
    """The verification's settings: the same bytes for the same plan."""
    return as_json(plan.config)


def as_json(config: VerifyConfig | ServeConfig) -> bytes:
    """The same bytes for the same settings."""
    return (json.dumps(asdict(config), indent=1, sort_keys=True) + "\n").encode()
