"""`python -m tests.bench.warm`: what the compiler cache does for a build, measured in one run.

Builds of this machine's backend by the product's own plan and job: without a cache, with an empty
one, the same again, and again with one more option. Prints the table of docs/compiler-cache.md.

    .venv/bin/python -m tests.bench.warm [--wheelhouse FOLDER] [--set KEY=VALUE]...
        [--rows none,empty,again,option] [--stamps FOLDER] [FOLDER]

FOLDER, where all of it is made: a temporary one. CPU backend where there is no GPU. --stamps: where
the stamp of each build is kept, as ROW.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet.plans.plan import BuildPlan
from llamafleet.protocol.job import STAMP
from tests.bench.planned import layout_below, planned, settings_of

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("no cache", {"compiler_cache": "off"}),
    "empty": ("cache, empty", {}),
    "again": ("cache, the same again", {}),
    "option": ("cache, another option", {"cmake_options": {"GGML_SCHED_MAX_COPIES": "3"}}),
}


class Bench:
    """Builds below one folder."""

    def __init__(self, root: Path, common: dict[str, Any]) -> None:
        self.common = common
        self.layout = layout_below(root)

    def build(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Its stamp. Raises SystemExit where it fails."""
        return self._run(
            planned(self.layout, {**self.common, "compiler_cache": "ccache", **changes})
        )

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


def rows_named(text: str) -> list[str]:
    """Names of rows. Raises argparse.ArgumentTypeError."""
    names = text.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}; expected {', '.join(ROWS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--wheelhouse")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rows", type=rows_named, default=list(ROWS))
    parser.add_argument("--stamps", type=Path)
    options = parser.parse_args()
    common = settings_of(options.set)
    if options.wheelhouse:
        common["wheelhouse"] = options.wheelhouse
    with tempfile.TemporaryDirectory() as made:
        bench = Bench(Path(options.folder or made), common)
        print(f"{os.cpu_count()} cores\n")
        print("| build | wall | times faster | CPU | compile and link | files found | cache |")
        print("|---|---|---|---|---|---|---|")
        first = None
        for name in options.rows:
            title, changes = ROWS[name]
            stamp = bench.build(changes)
            first = first or stamp
            if options.stamps:
                (options.stamps / f"{name}.json").write_text(json.dumps(stamp, indent=1))
            print(row(title, stamp, first), flush=True)


if __name__ == "__main__":
    main()
