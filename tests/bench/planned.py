"""What a build of this machine would be, by the product's own settings, snapshot and plan."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import parse, render
from llamafleet.inventory import read_supplies, validate_fleet
from llamafleet.layout import Layout
from llamafleet.plans.make import make_plan, to_read
from llamafleet.plans.plan import BuildPlan
from llamafleet.zipapps import host_zipapp, pip_zipapp


def layout_below(root: Path) -> Layout:
    """Folders of a deployment below one of a measurement's own, with the job runner and pip."""
    layout = Layout("user", f"{root}/prefix", f"{root}/etc", f"{root}/state", f"{root}/units")
    for folder in (layout.prefix, layout.configs, layout.state):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Path(layout.zipapp).write_bytes(host_zipapp())
    Path(layout.pip).write_bytes(pip_zipapp())
    return layout


def planned(layout: Layout, data: Mapping[str, object]) -> BuildPlan:
    """The build that these settings ask for, made anew. Raises SystemExit where there is none."""
    chosen = {"scope": "user", "accelerator": "auto", "rebuild": True, **data}
    settings = validate_fleet({"here": chosen})["here"]
    supplies = read_supplies({"here": settings})["here"]
    script = render(layout, to_read(settings)[1])
    read = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
    host: HostSnapshot = parse(read.stdout.splitlines())
    plan = make_plan("here", settings, host, layout, supplies=supplies)
    if plan.build is None or plan.build.job is None:
        raise SystemExit("\n".join(map(str, plan.problems)) or "nothing to build")
    if supplies.wheelhouse and not Path(layout.wheelhouse).exists():
        Path(layout.wheelhouse).symlink_to(Path(str(settings.wheelhouse)).resolve())
    return plan.build


def settings_of(pairs: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE, the value as YAML has it: `compute_capabilities=["8.9"]`."""
    found = (pair.partition("=") for pair in pairs)
    return {key: yaml.safe_load(value) for key, _, value in found}
