"""`python -m tests.bench.warm`: what the compiler cache does for a build, measured in one run.

Four builds of this machine's backend by the product's own plan and job: without a cache, with an
empty one, the same again, and again with one more option. Prints the table of docs/cache.md.

    .venv/bin/python -m tests.bench.warm [--wheelhouse FOLDER] [--set KEY=VALUE]... [FOLDER]

FOLDER, where all of it is made: a temporary one. CPU backend where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import parse, render
from llamafleet.inventory import read_supplies, validate_fleet
from llamafleet.layout import Layout
from llamafleet.plans.make import make_plan, to_read
from llamafleet.plans.plan import BuildPlan
from llamafleet.protocol.job import STAMP
from llamafleet.zipapps import host_zipapp, pip_zipapp

ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("no cache", {"compiler_cache": "off"}),
    ("cache, empty", {}),
    ("cache, the same again", {}),
    ("cache, another option", {"cmake_options": {"GGML_SCHED_MAX_COPIES": "3"}}),
)


class Bench:
    """Builds below one folder."""

    def __init__(self, root: Path, common: dict[str, Any]) -> None:
        self.common = {"scope": "user", "accelerator": "auto", "rebuild": True, **common}
        self.layout = Layout(
            "user", f"{root}/prefix", f"{root}/etc", f"{root}/state", f"{root}/units"
        )
        for folder in (self.layout.prefix, self.layout.configs, self.layout.state):
            Path(folder).mkdir(parents=True, exist_ok=True)
        Path(self.layout.zipapp).write_bytes(host_zipapp())
        Path(self.layout.pip).write_bytes(pip_zipapp())
        self.python: str | None = None

    def build(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Its stamp."""
        data = {"here": {**self.common, "compiler_cache": "ccache", **changes}}
        settings = validate_fleet(data)["here"]
        supplies = read_supplies({"here": settings})["here"]
        script = render(self.layout, to_read(settings)[1])
        read = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
        host: HostSnapshot = parse(read.stdout.splitlines())
        plan = make_plan("here", settings, host, self.layout, supplies=supplies)
        if plan.build is None or plan.build.job is None:
            raise SystemExit("\n".join(map(str, plan.problems)) or "nothing to build")
        if supplies.wheelhouse and not Path(self.layout.wheelhouse).exists():
            Path(self.layout.wheelhouse).symlink_to(str(settings.wheelhouse))
        return self._run(plan.build)

    def _run(self, plan: BuildPlan) -> dict[str, Any]:
        assert plan.job is not None
        told, folder = Path(plan.job.config), Path(plan.job.folder)
        told.write_text(json.dumps(asdict(plan.config)))
        told.chmod(0o600)
        (folder / STAMP).unlink(missing_ok=True)
        argv = [plan.job.python, "-I", self.layout.zipapp, "job", "--kind", "build"]
        argv += ["--config", plan.job.config, "--dir", plan.job.folder]
        done = subprocess.run(argv, stdout=subprocess.DEVNULL, check=False)
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_text())
        if done.returncode:
            raise SystemExit("\n".join(stamp["error"]["lines"]))
        return stamp


def row(name: str, stamp: dict[str, Any], first: dict[str, Any]) -> str:
    phases, cache = stamp["phases"], stamp.get("cache") or {}
    found = f"{cache['hits']} of {cache['hits'] + cache['misses']}" if cache else ""
    figures = [
        f"{stamp['wall_s']:.1f} s",
        f"{first['wall_s'] / stamp['wall_s']:.1f}",
        f"{stamp['cpu_s'] / 60:.1f} min",
        f"{phases.get('compile', 0) + phases.get('link', 0):.1f} s",
        found,
        f"{cache.get('size_mib') or 0:.0f} MiB" if cache else "",
    ]
    return f"| {name} | {' | '.join(figures)} | {cache.get('problem', '')}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--wheelhouse")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    common = dict(pair.split("=", 1) for pair in options.set)
    if options.wheelhouse:
        common["wheelhouse"] = options.wheelhouse
    with tempfile.TemporaryDirectory() as made:
        bench = Bench(Path(options.folder or made), common)
        print(f"{os.cpu_count()} cores\n")
        print("| build | wall | times faster | CPU | compile and link | files found | cache |")
        print("|---|---|---|---|---|---|---|")
        first = None
        for name, changes in ROWS:
            stamp = bench.build(changes)
            first = first or stamp
            print(row(name, stamp, first), flush=True)


if __name__ == "__main__":
    sys.exit(main())
